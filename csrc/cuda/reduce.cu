#include "cuda/numeric.cuh"
#include "cuda/reduce.cuh"

namespace effnet_fast {
namespace {

// A block is 32 columns x 8 rows: a row's loads are one 128-byte line, and eight partial sums per
// column are in flight, each over every eighth term.
constexpr int kColumns = 32;
constexpr int kRows = 8;
constexpr int kZeroThreads = 256;

__global__ void __launch_bounds__(kColumns* kRows)
    sum_kernel(const float* partials, int64_t terms, int64_t length, float scale, float* out) {
    __shared__ float partial[kRows][kColumns];
    const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
    const int64_t l = int64_t(blockIdx.x) * kColumns + column;
    float sum = 0.0f;
    if (l < length) {
        for (int64_t t = row; t < terms; t += kRows) sum += partials[t * length + l];
    }
    partial[row][column] = sum;
    __syncthreads();
    if (row == 0 && l < length) {
        for (int other = 1; other < kRows; other++) sum += partial[other][column];
        out[l] = scale * sum;
    }
}

__global__ void __launch_bounds__(kColumns* kRows)
    merge_moments_kernel(const float* partials, const float* counts, int parts, int c, float* out) {
    __shared__ Moments partial[kRows][kColumns];
    const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
    const int64_t channel = int64_t(blockIdx.x) * kColumns + column;
    Moments own = {0.0f, 0.0f, 0.0f};
    if (channel < c) {
        own = merge_moments(parts, row, kRows, [&](int t) {
            const float* const moments = partials + int64_t(t) * 2 * c + channel;
            return Moments{counts[t], moments[0], moments[c]};
        });
    }
    partial[row][column] = own;
    __syncthreads();
    if (row == 0 && channel < c) {
        const Moments total =
            merge_moments(kRows, 0, 1, [&](int other) { return partial[other][column]; });
        out[channel] = total.mean;
        out[c + channel] = total.count > 0.0f ? total.m2 / total.count : 0.0f;
    }
}

__global__ void __launch_bounds__(kZeroThreads) zero_kernel(float* out, int64_t count) {
    const int64_t i = int64_t(blockIdx.x) * kZeroThreads + threadIdx.x;
    if (i < count) out[i] = 0.0f;
}

}  // namespace

cudaError_t launch_sum(const float* partials, int64_t terms, int64_t length, float scale,
                       float* out, cudaStream_t stream) {
    if (length == 0) return cudaSuccess;
    const dim3 grid(unsigned(ceil_div(length, int64_t(kColumns))));
    return launch(sum_kernel, grid, dim3(kColumns * kRows), 0, stream, partials, terms, length,
                  scale, out);
}

cudaError_t launch_merge_moments(const float* partials, const float* counts, int parts, int c,
                                 float* out, cudaStream_t stream) {
    const dim3 grid(unsigned(ceil_div(c, kColumns)));
    return launch(merge_moments_kernel, grid, dim3(kColumns * kRows), 0, stream, partials, counts,
                  parts, c, out);
}

cudaError_t launch_zero(float* out, int64_t count, cudaStream_t stream) {
    if (out == nullptr || count == 0) return cudaSuccess;
    const dim3 grid(unsigned(ceil_div(count, int64_t(kZeroThreads))));
    return launch(zero_kernel, grid, dim3(kZeroThreads), 0, stream, out, count);
}

}  // namespace effnet_fast
