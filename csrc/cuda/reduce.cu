#include "cuda/numeric.cuh"
#include "cuda/reduce.cuh"

namespace effnet_fast {
namespace {

// A block is columns x rows of threads: 32 columns, whose loads are a 128-byte line, or 8, a
// sector, where there are few columns to fill the chip with. A thread has every rows-th term of a
// column and waits for kBatch of them together.
constexpr int kThreads = 512;
constexpr int kColumns = 32;
constexpr int kFewColumns = 8;
constexpr int kRows = kThreads / kColumns;
constexpr int kBatch = 8;
constexpr int kResident = 1;  // of such blocks: else ptxas saves registers and waits load by load
constexpr int kLineThreads = 256;
constexpr int kZeroThreads = 256;

// Of the terms first, first + step, ... those of kCount neighbours.
template <int kCount>
__device__ __forceinline__ void sum_terms(const float* partials, int64_t terms, int64_t length,
                                          int first, int step, float (&sums)[kCount]) {
    const float* at = partials + first * length;
#pragma unroll 1
    for (int64_t left = terms - first; left > 0; left -= step * kBatch) {
        const int here = int(min(left, int64_t(step) * kBatch));
        float some[kBatch][kCount] = {};
#pragma unroll
        for (int k = 0; k < kBatch; k++) {
            if (k * step < here) load_some(at + k * step * length, some[k]);
        }
#pragma unroll
        for (int k = 0; k < kBatch; k++) {
#pragma unroll
            for (int i = 0; i < kCount; i++) sums[i] += some[k][i];
        }
        at += kBatch * step * length;
    }
}

__global__ void __launch_bounds__(kThreads, kResident)
    sum_kernel(const float* partials, int64_t terms, int64_t length, int columns, float scale,
               float* out) {
    constexpr int kGroups = 8;  // of rows, to which their sums are added first
    __shared__ float partial[kThreads], groups[kGroups * kColumns];
    const int row = int(threadIdx.x) / columns, column = int(threadIdx.x) - row * columns;
    const int64_t l = int64_t(blockIdx.x) * columns + column;
    float sums[1] = {};
    if (l < length) sum_terms(partials + l, terms, length, row, kThreads / columns, sums);
    partial[threadIdx.x] = sums[0];
    __syncthreads();
    if (row < kGroups) {
        float sum = 0.0f;
#pragma unroll 2
        for (int i = threadIdx.x; i < kThreads; i += kGroups * columns) sum += partial[i];
        groups[threadIdx.x] = sum;
    }
    __syncthreads();
    if (row == 0 && l < length) {
        float sum = 0.0f;
#pragma unroll
        for (int group = 0; group < kGroups; group++) sum += groups[group * columns + column];
        out[l] = scale * sum;
    }
}

// For columns enough for all threads, or two terms: a thread has all terms of kCount columns.
template <int kCount>
__global__ void __launch_bounds__(kLineThreads, 4)
    sum_lines_kernel(const float* partials, int64_t terms, int64_t length, float scale,
                     float* out) {
    const int64_t l = (int64_t(blockIdx.x) * kLineThreads + threadIdx.x) * kCount;
    if (l >= length) return;
    float sums[kCount] = {};
    sum_terms(partials + l, terms, length, 0, 1, sums);
#pragma unroll
    for (int i = 0; i < kCount; i++) sums[i] *= scale;
    store_some(out + l, sums);
}

__global__ void __launch_bounds__(kThreads, kResident)
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
    const auto grid = [&](int columns) {
        return dim3(unsigned(ceil_div(length, int64_t(columns))));
    };
    constexpr int kQuad = 4;
    if (terms > 2 && length < int64_t(kQuad) * kLineThreads * multiprocessors()) {
        const bool few = length < int64_t(2) * kColumns * multiprocessors();
        const int columns = few ? kFewColumns : kColumns;
        return launch(sum_kernel, grid(columns), dim3(kThreads), 0, stream, partials, terms, length,
                      columns, scale, out);
    }
    const bool quads = (length % kQuad | reinterpret_cast<uintptr_t>(partials) % kVectorBytes |
                        reinterpret_cast<uintptr_t>(out) % kVectorBytes) == 0;
    return launch(quads ? sum_lines_kernel<kQuad> : sum_lines_kernel<1>,
                  grid(kLineThreads * (quads ? kQuad : 1)), dim3(kLineThreads), 0, stream, partials,
                  terms, length, scale, out);
}

cudaError_t launch_merge_moments(const float* partials, const float* counts, int parts, int c,
                                 float* out, cudaStream_t stream) {
    const dim3 grid(unsigned(ceil_div(c, kColumns)));
    return launch(merge_moments_kernel, grid, dim3(kThreads), 0, stream, partials, counts,
                  parts, c, out);
}

cudaError_t launch_zero(float* out, int64_t count, cudaStream_t stream) {
    if (out == nullptr || count == 0) return cudaSuccess;
    const dim3 grid(unsigned(ceil_div(count, int64_t(kZeroThreads))));
    return launch(zero_kernel, grid, dim3(kZeroThreads), 0, stream, out, count);
}

}  // namespace effnet_fast
