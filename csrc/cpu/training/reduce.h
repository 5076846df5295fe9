// Second stages: the sums of parts to one result, in fp64 and a fixed order.
#pragma once

#include "cpu/training/ops.h"
#include "cpu/training/work.h"

namespace effnet_fast::cpu::training {

// out[l] = factor * sum over i of parts[i * length + l].
void sum_parts(const float* parts, long count, long length, double factor, float* out);

// parts [N][T][length / C][C] -> out [length / C][N][C], times factor.
void sum_parts_of_images(const float* parts, int n, long t, int c, int length, double factor,
                         float* out);

// The moments of several parts of a map, each about values near its own means.
class MomentParts {
public:
    MomentParts(long count, int c) : c_(c), counts_(count, 0), values_(count * 3 * c) {}
    // Takes up a tile of part i, whose channels are those from c0 on; `first`: of these channels.
    void add(const Kernels& kernels, long i, const Tile& tile, int c0, const float* a, bool first);
    // (mean, biased variance) [2,C] of all; zeros if there is nothing.
    void merge(float* stats) const;

private:
    int c_;
    std::vector<long> counts_;
    Floats values_;  // [part][shift, sum, sum of squares][C]
};

}  // namespace effnet_fast::cpu::training
