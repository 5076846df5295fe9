#include "cuda/numeric.cuh"
#include "cuda/reduce.cuh"

namespace effnet_fast {
namespace {

// A block is 32 columns x 16 rows: a row's loads are one 128-byte line. A thread has every 16th term
// of a column and waits for kBatch of them together.
constexpr int kColumns = 32;
constexpr int kRows = 16;
constexpr int kBatch = 8;
constexpr int kResident = 1;  // of such blocks: else ptxas saves registers and waits load by load
constexpr int kZeroThreads = 256;

__global__ void __launch_bounds__(kColumns* kRows, kResident)
    sum_kernel(const float* partials, int64_t terms, int64_t length, float scale, float* out) {
    __shared__ float partial[kRows][kColumns];
    const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
    const int64_t l = int64_t(blockIdx.x) * kColumns + column;
    float sum = 0.0f;
    if (l < length) {
        const int64_t step = kRows * length;
        const float* at = partials + row * length + l;
        // Past the last term its own column is read again, so that no load waits for a branch.
#pragma unroll 1
        for (int64_t left = terms - row; left > 0; left -= kRows * kBatch, at += kBatch * step) {
            const int more = int((min(left, int64_t(kRows * kBatch)) - 1) / kRows);
            float some[kBatch];
#pragma unroll
            for (int k = 0; k < kBatch; k++) some[k] = at[min(k, more) * step];
#pragma unroll
            for (int k = 0; k < kBatch; k++) sum += k <= more ? some[k] : 0.0f;
        }
    }
    partial[row][column] = sum;
    __syncthreads();
    if (row == 0 && l < length) {
        for (int other = 1; other < kRows; other++) sum += partial[other][column];
        out[l] = scale * sum;
    }
}

__global__ void __launch_bounds__(kColumns* kRows, kResident)
    merge_moments_kernel(const float* partials, const float* counts, int parts, int c, float* out) {
    __shared__ Moments partial[kRows][kColumns];
    const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
    const int64_t channel = int64_t(blockIdx.x) * kColumns + column;
    Moments own = {0.0f, 0.0f, 0.0f};
    if (channel < c) {
        own = merge_moments<kBatch>(parts, row, kRows, [&](int t) {
            const float* const moments = partials + int64_t(t) * 2 * c + channel;
            return Moments{counts[t], moments[0], moments[c]};
        });
    }
    partial[row][column] = own;
    __syncthreads();
    if (row == 0 && channel < c) {
        const Moments total =
            merge_moments<kBatch>(kRows, 0, 1, [&](int other) { return partial[other][column]; });
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
