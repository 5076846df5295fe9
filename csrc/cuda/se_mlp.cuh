// What the two directions of the squeeze-and-excitation MLP share.
//
// A cluster of blocks has kImages images; each block has a slice of their channels, so that a
// weight is read once per cluster. Sums over channels are exchanged through shared memory. Products
// are on the fp32 pipes: an image's vector times a matrix, for all images of the block with one
// read of it.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/async_copy.cuh"
#include "cuda/cluster.cuh"
#include "cuda/sweep.cuh"

namespace effnet_fast {

constexpr int kWarp = 32;
constexpr int kMlpThreads = 256;
constexpr int kManyImages = 8;      // of a cluster, where there are enough to fill the chip
constexpr int kSliceChannels = 128;  // of a block, about, where the cluster can still grow
constexpr int kChunk = 8;            // weights of a row that a lane multiplies
constexpr int kRowsAtOnce = 2;       // of which a lane waits for the weights together

// Bytes that are aligned and exist together, of every row of a matrix.
enum class Grain : int { kVector = 16, kWord = 4, kElement = 2 };

struct Mlp {
    int n, c, r;
    SeWeights weights;
    Act act;
    int cluster, slice;  // blocks; channels of each, a multiple of kChunk
    int hidden;          // r rounded up to a multiple of kChunk
    Grain reduce_grain, expand_grain;
    bool staged;  // a block's weights are copied to its shared memory
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

// Parameters first, first + 1, ... on their way to shared memory: a thread's is loaded at once and
// stored later, so that it need not be waited for before other loads.
struct Biases {
    Param p;
    int first, count;
    uint32_t bits = 0;  // as they lie in memory

    __device__ __forceinline__ Biases(const Param& p, int first, int count)
        : p(p), first(first), count(count) {
        const int i = first + int(threadIdx.x);
        if (p.data == nullptr || int(threadIdx.x) >= count) return;
        if (p.dtype == DType::kFloat32) {
            bits = static_cast<const uint32_t*>(p.data)[i];
        } else {
            bits = static_cast<const uint16_t*>(p.data)[i];
        }
    }

    __device__ __forceinline__ void store(float* to) const {
        if (int(threadIdx.x) < count) {
            to[threadIdx.x] = p.data == nullptr ? 0.0f : load_any(&bits, p.dtype, 0);
        }
#pragma unroll 1
        for (int i = threadIdx.x + kMlpThreads; i < count; i += kMlpThreads) {
            to[i] = load_or(p, first + i, 0.0f);
        }
    }
};

// The slice's columns of w_reduce, `pitch` apart, and rows of w_expand.
template <class W>
struct SliceWeights {
    const W* reduce;
    int64_t pitch;
    const W* expand;
};

// Where the slice's weights are to be read. Where they fit they are on their way to `shared`, to be
// awaited with wait_async<0>() and a barrier, while the images are; else on their way to L2.
template <class W>
__device__ __forceinline__ SliceWeights<W> fetch_weights(const Mlp& m, const MlpBlock& b,
                                                         void* shared) {
    const SliceWeights<W> from = {static_cast<const W*>(m.weights.w_reduce) + b.c0, m.c,
                                  static_cast<const W*>(m.weights.w_expand) + int64_t(b.c0) * m.r};
    const int count = b.channels * m.r;
    if (!m.staged) {
        constexpr int kLine = 128 / int(sizeof(W));
        const int lines = ceil_div(b.channels, kLine) + 1;  // of a row, that may start anywhere
#pragma unroll 1
        for (int i = threadIdx.x; i < lines * m.r && b.channels > 0; i += kMlpThreads) {
            const int row = i / lines, at = (i - row * lines) * kLine;
            prefetch_line(from.reduce + row * from.pitch + min(at, b.channels - 1));
        }
#pragma unroll 1
        for (int i = threadIdx.x * kLine; i < count; i += kMlpThreads * kLine) {
            prefetch_line(from.expand + i);
        }
        return from;
    }
    W* const reduce = static_cast<W*>(shared);
    W* const expand = reduce + m.r * m.slice;
    const int vectors = b.channels / kVector<W>;
#pragma unroll 1
    for (int i = threadIdx.x; i < vectors * m.r; i += kMlpThreads) {
        const int row = i / vectors, at = (i - row * vectors) * kVector<W>;
        copy_async<16>(reduce + row * m.slice + at, from.reduce + row * from.pitch + at, true);
        copy_async<16>(expand + i * kVector<W>, from.expand + i * kVector<W>, true);
    }
    commit_async();
    return {reduce, m.slice, expand};
}

template <class W>
constexpr int kChunkWords = kChunk * int(sizeof(W)) / 4;

// Chunks of kRowsAtOnce rows `step` apart, as they lie in memory: of the first `rows` of them (may
// be more), `count` weights each (none if not positive), and zeros. All loads are under way
// together.
template <class W>
__device__ __forceinline__ void load_chunks(const W* p, int64_t step, Grain grain, int rows,
                                            int count,
                                            uint32_t (&words)[kRowsAtOnce][kChunkWords<W>]) {
    constexpr int kPerWord = 4 / int(sizeof(W));
    const bool vectors = grain == Grain::kVector, whole = grain != Grain::kElement;
#pragma unroll
    for (int k = 0; k < kRowsAtOnce; k++) {
#pragma unroll
        for (int i = 0; i < kChunkWords<W>; i++) words[k][i] = 0;
    }
    if (vectors && count > 0) {
#pragma unroll
        for (int k = 0; k < kRowsAtOnce; k++) {
#pragma unroll
            for (int i = 0; i < kChunkWords<W>; i += 4) {
                if (k >= rows) continue;
                const uint4 some =
                    *reinterpret_cast<const uint4*>(p + k * step + i * kPerWord);
                words[k][i] = some.x, words[k][i + 1] = some.y;
                words[k][i + 2] = some.z, words[k][i + 3] = some.w;
            }
        }
    }
    if (!vectors && whole) {
#pragma unroll
        for (int k = 0; k < kRowsAtOnce; k++) {
#pragma unroll
            for (int i = 0; i < kChunkWords<W>; i++) {
                if (k < rows && i * kPerWord < count) {
                    words[k][i] =
                        *reinterpret_cast<const uint32_t*>(p + k * step + i * kPerWord);
                }
            }
        }
    }
    if constexpr (sizeof(W) == 2) {
        if (!whole) {
#pragma unroll
            for (int k = 0; k < kRowsAtOnce; k++) {
#pragma unroll
                for (int e = 0; e < kChunk; e++) {
                    if (k < rows && e < count) {
                        const uint16_t bits = reinterpret_cast<const uint16_t*>(p + k * step)[e];
                        words[k][e / 2] |= uint32_t(bits) << (e % 2 * 16);
                    }
                }
            }
        }
    }
}

template <class W>
__device__ __forceinline__ void widen(const uint32_t (&words)[kChunkWords<W>],
                                      float (&v)[kChunk]) {
#pragma unroll
    for (int i = 0; i < kChunkWords<W>; i++) {
        if constexpr (sizeof(W) == 4) {
            v[i] = __uint_as_float(words[i]);
        } else {
            float pair[2];
            widen_pair(words[i], pair, W());
            v[2 * i] = pair[0], v[2 * i + 1] = pair[1];
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
#pragma unroll
    for (int distance = kCount; distance < kWarp; distance *= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, v[0], distance * step);
        v[0] += distance < lanes ? other : 0.0f;
    }
    return v[0];
}

// out[row][image] += sum over columns of w[row][column] x[image][place(column)]. x has rows of
// `stride`, a multiple of kChunk, with zeros behind the columns. All threads call it; their
// barriers before and after are the caller's.
template <int kImages, class W>
__device__ __forceinline__ void multiply_rows(const W* w, int64_t pitch, Grain grain, int rows,
                                              int columns, const float* x, int stride,
                                              float* out) {
    const int chunks = ceil_div(columns, kChunk);
    int lanes = kImages;  // of a row
    while (lanes < chunks && lanes < kWarp) lanes *= 2;
    const int group = int(threadIdx.x) / lanes, lane = int(threadIdx.x) - group * lanes;
    const int groups = kMlpThreads / lanes;
#pragma unroll 1
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
#pragma unroll 1
        for (int row0 = 0; row0 < rows; row0 += kRowsAtOnce * groups) {
            uint32_t words[kRowsAtOnce][kChunkWords<W>];
            const int left = ceil_div(rows - row0 - group, groups);
            load_chunks(w + (row0 + group) * pitch + column, groups * pitch, grain, left, count,
                        words);
#pragma unroll
            for (int k = 0; k < kRowsAtOnce; k++) {
                if (row0 + k * groups >= rows) break;
                const int row = row0 + k * groups + group;
                float sums[kImages] = {}, weights[kChunk];
                widen<W>(words[k], weights);
#pragma unroll
                for (int e = 0; e < kChunk; e++) {
#pragma unroll
                    for (int i = 0; i < kImages; i++) {
                        sums[i] = fmaf(weights[e], own[i][e], sums[i]);
                    }
                }
                const float sum = sum_lanes(sums, lanes);
                if (row < rows && lane < kImages) out[row * kImages + lane] += sum;
            }
        }
    }
}

// The sum over the cluster's blocks of what each has at `own` in its shared memory.
__device__ __forceinline__ float sum_over_cluster(float* own, int cluster) {
    float parts[kMaxCluster];
#pragma unroll
    for (int rank = 0; rank < kMaxCluster; rank++) {
        parts[rank] = rank < cluster ? *shared_of(own, rank) : 0.0f;
    }
    float sum = parts[0];
#pragma unroll
    for (int rank = 1; rank < kMaxCluster; rank++) sum += parts[rank];
    return sum;
}

// ---------------------------------------------------------------- host

inline Grain grain_of(const void* data, DType dtype, int columns) {
    const auto fits = [&](Grain grain) {
        const size_t bytes = size_t(grain);
        return columns * size_of(dtype) % bytes == 0 &&
               reinterpret_cast<uintptr_t>(data) % bytes == 0;
    };
    if (fits(Grain::kVector) && columns % kChunk == 0) return Grain::kVector;
    return fits(Grain::kWord) ? Grain::kWord : Grain::kElement;
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

// Launches `one`, for one image per cluster, or `many`, for kManyImages, with the Mlp as the last
// argument. Their shared memory: shared_floats(mlp, images), then the weights if they are staged.
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
    size_t bytes = single ? shared_floats(m, 1) * sizeof(float) : many_bytes;
    if (bytes > kMaxSharedBytes) return cudaErrorInvalidValue;
    const size_t staged_bytes = size_t(2) * r * m.slice * size_of(weights.dtype);
    m.staged = m.reduce_grain == Grain::kVector && bytes + staged_bytes <= kMaxSharedBytes &&
               reinterpret_cast<uintptr_t>(weights.w_expand) % kVectorBytes == 0;
    if (m.staged) bytes += staged_bytes;
    const int groups = single ? n : ceil_div(n, kManyImages);
    return launch_clusters(single ? one : many, m.cluster,
                           dim3(unsigned(groups * m.cluster)), dim3(kMlpThreads), bytes, stream,
                           args..., m);
}

}  // namespace effnet_fast
