// Second stages: partials of independent programs to one result, in a fixed order.
//
// A first stage gives every program its own row of fp32 partials in the workspace; nothing is ever
// added by atomics, so that two runs agree to the bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"

namespace effnet_fast {

// out[l] = scale * sum over t of partials[t * length + l].
cudaError_t launch_sum(const float* partials, int64_t terms, int64_t length, float scale,
                       float* out, cudaStream_t stream);

// partials [parts, 2, c] = (mean, M2), counts [parts] (0: an empty part) -> out [2, c] = (mean,
// biased variance), merged about the common mean: sum(x * x) never appears.
cudaError_t launch_merge_moments(const float* partials, const float* counts, int parts, int c,
                                 float* out, cudaStream_t stream);

// Zeros, also for a null `out` or a count of 0.
cudaError_t launch_zero(float* out, int64_t count, cudaStream_t stream);

// Of a sample.
struct Moments {
    float count, mean, m2;
};

// Moments of samples first, first + step, ... of `samples`, in two passes: the mean, then the
// squares about it. fp64 for a handful of sums, and no division but one.
template <class F>
__device__ __forceinline__ Moments merge_moments(int samples, int first, int step, F sample) {
    double count = 0.0, sum = 0.0, squares = 0.0;
    for (int i = first; i < samples; i += step) {
        const Moments m = sample(i);
        count += m.count, sum += double(m.count) * m.mean;
    }
    if (count == 0.0) return {0.0f, 0.0f, 0.0f};
    const double mean = sum / count;
    for (int i = first; i < samples; i += step) {
        const Moments m = sample(i);
        const double d = m.mean - mean;
        squares += m.m2 + m.count * d * d;
    }
    return {float(count), float(mean), float(squares)};
}

}  // namespace effnet_fast
