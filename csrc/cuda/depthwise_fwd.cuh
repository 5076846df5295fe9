// What the depthwise forward kernel is made of, less its loop: constants of an instantiation, its
// parameters, and the sums that it takes of what it stores.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/depthwise.cuh"
#include "cuda/reduce.cuh"

namespace effnet_fast {

constexpr int kFwdResident = 2;  // blocks per multiprocessor
constexpr int kMaxFwdRows = 32;  // output rows per item, so 8 pool cells per thread

template <class T, int K, int S, bool kGeneral>
struct FwdUnroll {
    static constexpr int kAccumulators = (K + S - 1) / S;  // output rows in flight
    static constexpr int kRing = S * kAccumulators;        // input rows until the pattern repeats
    // 25 taps of 2 channels: 50 registers of weights, 40 of accumulators at stride 1, under the 168
    // that 384 threads on a multiprocessor leave each.
    static constexpr int kLanes = 2;
    // 255 registers where addresses of fp32's twice as many loads come on top.
    static constexpr int kThreads = K == 5 && sizeof(T) == 4 ? 128 : 192;
    // A thread has kCols * S columns of kLanes channels to load, and the halo beside them.
    static constexpr int kLoadBytes = kCols * S * kLanes * int(sizeof(T));
    static constexpr int kSlots = kLoadBytes / kVectorBytes + 1;
    static constexpr int kColumns = (kCols - 1) * S + K;
    // Shared memory: a pixel's place in every row, and what a block has besides.
    static constexpr int kPixelBytes = kRing * kPitch + (kGeneral ? 2 * kWidePitch<T> : 0);
    static constexpr int kLine = kLineVectors * kVector<T>;
    static constexpr int kLineRows = kGeneral ? 3 : 0;             // scale, shift of x; shift of y
    static constexpr int kMomentRows = kGeneral ? 3 * kLanes : 0;  // of RunningMoments
    static_assert(kRing >= K, "no row above x is as far ahead as the copies run");
    static_assert(K % 2 == 1, "an output row ends with the parity that it began with");
};

struct FwdParams {
    DepthwiseArgs op;
    Tile tile;
    Act in_act, out_act;
    bool vectors;  // of x: copied asynchronously
    bool lanes;    // of y: stored together
    int x_row_bytes, y_row_bytes, y_column_bytes;
    bool finish;  // an activation or batch norm follows
    float* partials;
    float* counts;
};

// Whether x is changed on load or moments are wanted: what inference never asks for.
inline bool prologue(const DepthwiseArgs& args) {
    return args.in_affine != nullptr || args.in_act != Activation::kIdentity ||
           args.reduce == Reduce::kStats;
}

// depthwise_tensor.cu: whether its kernel takes an op, its programs per channel, and its launch.
bool tensor_takes(const DepthwiseArgs& args);
int tensor_parts(const DepthwiseArgs& args);
cudaError_t depthwise_tensor(FwdParams& p, cudaStream_t stream);

// Moments of a stream of values about a shift, which moves to the mean of what has been seen while
// that is little: a first row of padding would otherwise cost the digits of mean >> std.
template <int kLanes>
struct RunningMoments {
    float shift[kLanes], sum[kLanes], squares[kLanes];

    // A thread's own column of shared memory, [3 * kLanes][threads]: registers for the taps.
    __device__ __forceinline__ void load(const float* own) {
#pragma unroll
        for (int l = 0; l < kLanes; l++) {
            shift[l] = own[3 * l * blockDim.x];
            sum[l] = own[(3 * l + 1) * blockDim.x];
            squares[l] = own[(3 * l + 2) * blockDim.x];
        }
    }
    __device__ __forceinline__ void store(float* own) const {
#pragma unroll
        for (int l = 0; l < kLanes; l++) {
            own[3 * l * blockDim.x] = shift[l];
            own[(3 * l + 1) * blockDim.x] = sum[l];
            own[(3 * l + 2) * blockDim.x] = squares[l];
        }
    }
    __device__ __forceinline__ void add(const float (&v)[kLanes]) {
#pragma unroll
        for (int l = 0; l < kLanes; l++) {
            const float d = v[l] - shift[l];
            sum[l] += d;
            squares[l] = fmaf(d, d, squares[l]);
        }
    }
    // Exact algebra for whatever the new shift is rounded to.
    __device__ __forceinline__ void rebase(float count) {
#pragma unroll
        for (int l = 0; l < kLanes; l++) {
            const float shifted = shift[l] + sum[l] / count, d = shifted - shift[l];
            const float rest = fmaf(-count, d, sum[l]);
            squares[l] = fmaf(-d, sum[l] + rest, squares[l]);
            shift[l] = shifted, sum[l] = rest;
        }
    }
};

// The moments of a block's channels, one partial each. `channels` of them; of channel i the
// `samples` are threads thread(i, 0), thread(i, 1), ..., each with it as its lane(i). First the
// mean, then the squares about it. Scratch of (2 * kLanes + 1) * threads floats.
template <int kLanes, class Lane, class Thread>
__device__ __forceinline__ void store_moments(const RunningMoments<kLanes>& own, int count,
                                              const FwdParams& p, int part, int channel0,
                                              float* scratch, int channels, int samples, Lane lane,
                                              Thread thread) {
    const int threads = blockDim.x;
    float* const counts = scratch + 2 * kLanes * threads;
    counts[threadIdx.x] = float(count);
#pragma unroll
    for (int l = 0; l < kLanes; l++) {
        const float mean = count > 0 ? own.shift[l] + own.sum[l] / float(count) : 0.0f;
        const float d = mean - own.shift[l];
        scratch[2 * l * threads + threadIdx.x] = mean;
        scratch[(2 * l + 1) * threads + threadIdx.x] =
            fmaxf(fmaf(-d, own.sum[l], own.squares[l]), 0.0f);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < channels; i += threads) {
        const int c = channel0 + i;
        if (c >= p.op.shape.c) continue;
        const auto of = [&](int s) {
            const int t = thread(i, s), l = lane(i);
            return Moments{counts[t], scratch[2 * l * threads + t],
                           scratch[(2 * l + 1) * threads + t]};
        };
        const Moments total = merge_moments(samples, 0, 1, of);
        float* const to = p.partials + int64_t(part) * 2 * p.op.shape.c + c;
        to[0] = total.mean;
        to[p.op.shape.c] = total.m2;
        if (c == 0) p.counts[part] = total.count;
    }
}

// Sums over a strip's columns: the cells of a line's threads, in their order.
template <int kLanes>
__device__ __forceinline__ void store_pool(const float* cells, const FwdParams& p, int item,
                                           int channel0) {
    const int image0 = item / p.tile.strips * p.tile.images;
    const int p0 = item % p.tile.strips * p.tile.rows;
    const int rows = min(p.tile.rows, p.op.shape.p - p0);
    const Tile& tile = p.tile;
    const int channels = kLanes * tile.lines;
    const int sums = ceil_div(rows, kPoolRows) * tile.images * channels;
    for (int i = threadIdx.x; i < sums; i += blockDim.x) {
        const int line = i % channels / kLanes, l = i % kLanes, c = channel0 + i % channels;
        const int image = i / channels % tile.images, t = i / channels / tile.images;
        float sum = 0.0f;
        for (int g = 0; g < tile.groups; g++) {
            const int thread = (image * tile.groups + g) * tile.lines + line;
            sum += cells[(t * blockDim.x + thread) * kLanes + l];
        }
        if (c >= p.op.shape.c || image0 + image >= p.op.shape.n) continue;
        const int64_t strip = p0 / kPoolRows + t;
        p.op.reduced[(strip * p.op.shape.n + image0 + image) * p.op.shape.c + c] = sum;
    }
}

// Running statistics of channel c to scale and shift, times the activation's factor.
__device__ __forceinline__ void fold(const BatchNorm& bn, float factor, int c, float* scale,
                                     float* shift) {
    const float invstd = rsqrtf(load_any(bn.var.data, bn.var.dtype, c) + bn.eps);
    const float a = load_or(bn.gamma, c, 1.0f) * invstd;
    *scale = factor * a;
    *shift = factor * (load_or(bn.beta, c, 0.0f) - load_any(bn.mean.data, bn.mean.dtype, c) * a);
}

}  // namespace effnet_fast
