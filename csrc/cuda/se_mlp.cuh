// What the two directions of the squeeze-and-excitation MLP share.
//
// A cluster of blocks has kImages images; each block has a slice of their channels, so that a weight
// is read once per cluster. Sums over channels are exchanged through shared memory. Products are on
// the fp32 pipes: an image's vector times a matrix, for all images of the block with one read of it.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/cluster.cuh"
#include "cuda/sweep.cuh"

namespace effnet_fast {

constexpr int kWarp = 32;
constexpr int kMlpThreads = 256;
constexpr int kManyImages = 8;      // of a cluster, where there are enough to fill the chip
constexpr int kSliceChannels = 128;  // of a block, about, where the cluster can still grow
constexpr int kChunk = 8;            // weights of a row that a lane multiplies
constexpr int kRowsAtOnce = 4;       // of which a lane waits for the weights together
constexpr int kMaxSharedBytes = 99 * 1024;

struct Mlp {
    int n, c, r;
    SeWeights weights;
    Act act;
    int cluster, slice;               // blocks; channels of each, a multiple of kChunk
    int hidden;                       // r rounded up to a multiple of kChunk
    int reduce_grain, expand_grain;   // of load_chunk()
};

// A block's place.
struct MlpBlock {
    int rank, image0, images, c0, channels;  // images and channels that exist

    __device__ __forceinline__ MlpBlock(const Mlp& m, int most_images) {
        const int group = blockIdx.x / m.cluster;
        rank = blockIdx.x - group * m.cluster;
        image0 = group * most_images;
        images = min(most_images, m.n - image0);
        c0 = rank * m.slice;
        channels = min(m.slice, m.c - c0);
    }
};

// Where element i of an image's vector is in shared memory: lanes that read eight neighbours each,
// four at a time, then find them in different banks.
__device__ __forceinline__ int place(int i) { return i ^ (i >> 3 & 4); }

// Weights of the slice on their way to L2 while the images are still awaited.
template <class W>
__device__ __forceinline__ void prefetch_weights(const Mlp& m, const MlpBlock& b) {
    constexpr int kLine = 128 / int(sizeof(W));
    if (b.channels <= 0) return;
    const W* const reduce = static_cast<const W*>(m.weights.w_reduce) + b.c0;
    const int lines = ceil_div(b.channels, kLine) + 1;
    for (int i = threadIdx.x; i < lines * m.r; i += kMlpThreads) {
        const int row = i / lines, at = (i - row * lines) * kLine;
        prefetch_line(reduce + int64_t(row) * m.c + min(at, b.channels - 1));
    }
    const W* const expand = static_cast<const W*>(m.weights.w_expand) + int64_t(b.c0) * m.r;
    const int64_t count = int64_t(b.channels) * m.r;
    for (int64_t i = int64_t(threadIdx.x) * kLine; i < count; i += kMlpThreads * kLine) {
        prefetch_line(expand + i);
    }
}

// kChunk weights from p on, of which `count` exist (none if not positive), and zeros. So many
// neighbours are aligned together and exist together as `grain` says: kChunk, 2 or 1.
template <class W>
__device__ __forceinline__ void load_chunk(const W* p, int grain, int count, float (&v)[kChunk]) {
#pragma unroll
    for (int e = 0; e < kChunk; e++) v[e] = 0.0f;
    if (count <= 0) return;
    if (grain == kChunk) {
#pragma unroll
        for (int e = 0; e < kChunk; e += kVector<W>) {
            float some[kVector<W>];
            load_some(p + e, some);
#pragma unroll
            for (int i = 0; i < kVector<W>; i++) v[e + i] = some[i];
        }
    } else if (grain == 2) {
#pragma unroll
        for (int e = 0; e < kChunk; e += 2) {
            float pair[2] = {};
            if (e < count) load_some(p + e, pair);
            v[e] = pair[0], v[e + 1] = pair[1];
        }
    } else {
#pragma unroll
        for (int e = 0; e < kChunk; e++) {
            if (e < count) v[e] = to_float(p[e]);
        }
    }
}

// Of kCount values per lane the sums over `lanes` lanes, at least kCount of them, that are `step`
// apart: lane l * step gets that of value l % kCount.
template <int kCount>
__device__ __forceinline__ float sum_lanes(float (&v)[kCount], int lanes, int step = 1) {
#pragma unroll
    for (int half = kCount / 2; half > 0; half /= 2) {
        const bool upper = (threadIdx.x & (half * step)) != 0;
#pragma unroll
        for (int i = 0; i < half; i++) {
            const float sent = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
            v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, half * step);
        }
    }
    for (int distance = kCount; distance < lanes; distance *= 2) {
        v[0] += __shfl_xor_sync(0xffffffffu, v[0], distance * step);
    }
    return v[0];
}

// out[row][image] = sum over columns of w[row][column] x[image][place(column)]. x has rows of
// `stride`, a multiple of kChunk, with zeros behind the columns. All threads call it; their barriers
// before and after are the caller's.
template <int kImages, class W>
__device__ __forceinline__ void multiply_rows(const W* w, int64_t pitch, int grain, int rows,
                                              int columns, const float* x, int stride,
                                              float* out) {
    const int chunks = ceil_div(columns, kChunk);
    int lanes = kImages;  // of a row
    while (lanes < chunks && lanes < kWarp) lanes *= 2;
    const int group = int(threadIdx.x) / lanes, lane = int(threadIdx.x) - group * lanes;
    const int groups = kMlpThreads / lanes;
    for (int first = 0; first < chunks; first += lanes) {
        const int column = (first + lane) * kChunk, count = columns - column;
        float own[kImages][kChunk] = {};
        if (count > 0) {
#pragma unroll
            for (int i = 0; i < kImages; i++) {
#pragma unroll
                for (int e = 0; e < kChunk; e += 4) {
                    float some[4];
                    load_some(x + i * stride + place(column + e), some);
#pragma unroll
                    for (int k = 0; k < 4; k++) own[i][e + k] = some[k];
                }
            }
        }
        // All lanes of a warp take every turn, as they must for the shuffles.
        for (int row0 = 0; row0 < rows; row0 += kRowsAtOnce * groups) {
            float weights[kRowsAtOnce][kChunk];
#pragma unroll
            for (int k = 0; k < kRowsAtOnce; k++) {
                const int row = row0 + k * groups + group;
                load_chunk(w + row * pitch + column, grain, row < rows ? count : 0, weights[k]);
            }
#pragma unroll
            for (int k = 0; k < kRowsAtOnce; k++) {
                const int row = row0 + k * groups + group;
                float sums[kImages] = {};
#pragma unroll
                for (int e = 0; e < kChunk; e++) {
#pragma unroll
                    for (int i = 0; i < kImages; i++) {
                        sums[i] = fmaf(weights[k][e], own[i][e], sums[i]);
                    }
                }
                const float sum = sum_lanes(sums, lanes);
                if (row < rows && lane < kImages) {
                    float* const to = out + row * kImages + lane;
                    *to = first == 0 ? sum : *to + sum;
                }
            }
        }
    }
}

// ---------------------------------------------------------------- host

// As many neighbours as lie in rows of `columns` weights, aligned and whole: kChunk, 2 or 1.
inline int grain_of(const void* data, DType dtype, int columns) {
    const auto fits = [&](int count) {
        const size_t bytes = count * size_of(dtype), vector = bytes < 16 ? bytes : 16;
        return columns % count == 0 && reinterpret_cast<uintptr_t>(data) % vector == 0;
    };
    return fits(kChunk) ? kChunk : fits(2) ? 2 : 1;
}

// For clusters of up to `limit` blocks; false: not to be had.
inline bool make_mlp(int n, int c, int r, const SeWeights& weights, Activation act, int limit,
                     Mlp* m) {
    *m = {};
    if (n < 0 || c <= 0 || r <= 0 || !make_act(act, &m->act)) return false;
    m->n = n, m->c = c, m->r = r, m->weights = weights;
    m->cluster = 1;
    while (m->cluster < limit && m->cluster * kSliceChannels < c) m->cluster *= 2;
    m->slice = ceil_div(ceil_div(c, kChunk), m->cluster) * kChunk;
    m->hidden = ceil_div(r, kChunk) * kChunk;
    m->reduce_grain = grain_of(weights.w_reduce, weights.dtype, c);
    m->expand_grain = grain_of(weights.w_expand, weights.dtype, r);
    return true;
}

// Launches `one`, for one image per cluster, or `many`, for kManyImages, with shared memory of
// shared_floats(mlp, images) and the Mlp as the last argument.
template <class... Params, class Floats, class... Args>
cudaError_t launch_mlp(void (*one)(Params...), void (*many)(Params...), int n, int c, int r,
                       const SeWeights& weights, Activation act, Floats shared_floats,
                       cudaStream_t stream, const Args&... args) {
    int limit = 1;
    const cudaError_t status = largest_cluster(many, &limit);
    if (status != cudaSuccess) return status;
    Mlp m = {};
    if (!make_mlp(n, c, r, weights, act, limit, &m)) return cudaErrorInvalidValue;
    if (n == 0) return cudaSuccess;
    // Few images: two blocks to a multiprocessor hold them all.
    const bool few = int64_t(n) * m.cluster <= 2 * multiprocessors();
    const size_t many_bytes = shared_floats(m, kManyImages) * sizeof(float);
    const bool single = few || many_bytes > kMaxSharedBytes;
    const size_t bytes = single ? shared_floats(m, 1) * sizeof(float) : many_bytes;
    if (bytes > kMaxSharedBytes) return cudaErrorInvalidValue;
    const int groups = single ? n : ceil_div(n, kManyImages);
    return launch_clusters(single ? one : many, m.cluster,
                           dim3(unsigned(groups * m.cluster)), dim3(kMlpThreads), bytes, stream,
                           args..., m);
}

}  // namespace effnet_fast
