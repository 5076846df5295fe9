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

// Moments of samples first, first + step, ... of `samples`, kTogether under way at a time. In fp64,
// about the first sample's mean: that is as near to all their mean as an fp64 sum of squares needs
// by far.
template <int kTogether = 1, class F>
__device__ __forceinline__ Moments merge_moments(int samples, int first, int step, F sample) {
    double shift = 0.0, count = 0.0, sum = 0.0, squares = 0.0;
#pragma unroll 1
    for (int i = first; i < samples; i += kTogether * step) {
        // Past the last sample it is read again, so that no load waits for a branch.
        Moments some[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; k++) some[k] = sample(min(i + k * step, samples - 1));
        if (i == first) shift = some[0].mean;
#pragma unroll
        for (int k = 0; k < kTogether; k++) {
            const bool exists = i + k * step < samples;
            const double own = exists ? some[k].count : 0.0f, d = some[k].mean - shift;
            count += own, sum += own * d;
            squares += (exists ? some[k].m2 : 0.0f) + own * d * d;
        }
    }
    if (count == 0.0) return {0.0f, 0.0f, 0.0f};
    const double d = sum / count, m2 = squares - sum * d;
    return {float(count), float(shift + d), m2 < 0.0 ? 0.0f : float(m2)};
}

}  // namespace effnet_fast
