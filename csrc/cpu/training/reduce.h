// Sums over pixels: those of parts, in fp64, and from them the result, in a fixed order.
#pragma once

#include <vector>

#include "cpu/training/ops.h"
#include "cpu/training/work.h"

namespace effnet_fast::cpu::training {

// Zeros at first.
using Sums = std::vector<double>;

// out[l] = factor * sum over i of parts[i * length + l].
template <class T>
void sum_parts(const T* parts, long count, long length, double factor, float* out) {
    Sums total(length, 0.0);
    for (long i = 0; i < count; ++i) {
        for (long l = 0; l < length; ++l) total[l] += parts[i * length + l];
    }
    for (long l = 0; l < length; ++l) out[l] = float(total[l] * factor);
}

// parts [N][T][length / C][C] -> out [length / C][N][C], times factor.
void sum_parts_of_images(const double* parts, int n, long t, int c, int length, double factor,
                         float* out);

// The moments of several parts of a map, each about values near its own means.
class MomentParts {
public:
    MomentParts(long count, int c)
        : c_(c), counts_(count, 0), shifts_(count * c), sums_(count * 2 * c) {}
    // Takes up a tile of part i, whose channels are those from c0 on; `first`: of these channels.
    void add(const Kernels& kernels, long i, const Tile& tile, int c0, const float* a, bool first);
    // (mean, biased variance) [2,C] of all; zeros if there is nothing.
    void merge(float* stats) const;

private:
    int c_;
    std::vector<long> counts_;
    Floats shifts_;  // [part][C]
    Sums sums_;      // [part][sum, sum of squares][C], about the shift
};

}  // namespace effnet_fast::cpu::training
