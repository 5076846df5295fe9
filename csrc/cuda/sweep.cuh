// One pass over [N, H, W, C] for ops that treat pixels alike: how it is cut into blocks, and the
// loads and stores of its vectors.
//
// A thread keeps one 16-byte vector of channels, so that everything per channel stays in registers,
// and walks the pixels of a work item: a chunk of one image, so that everything per image does too.
// Lines of up to 32 vectors are innermost: a warp's accesses are 512 contiguous bytes.
#pragma once

#include "cuda/numeric.cuh"

namespace effnet_fast {

constexpr int kSweepThreads = 256;
constexpr int kSweepLines = 32;      // vectors of channels per block, at most
constexpr int kPixelsPerThread = 8;  // of an item, at least: what a partial result is worth

struct Sweep {
    int lines;  // vectors of channels per block
    int rows;   // pixels that a block treats at once
    int channel_blocks;
    int chunk;       // pixels of an image per item
    int chunks;      // items per image
    int64_t items;   // per channel block
    int parts;       // programs per channel block; each takes items part, part + parts, ...
    int64_t pixels;  // per image
    bool vectors;    // every vector is aligned and whole
};

// `n` images of `pixels` pixels with `c` channels, in vectors of `vector` elements, for a kernel
// with `resident` blocks per multiprocessor. `per_image`: it has a result for every image, so that
// more than one item of an image takes a second launch.
inline Sweep make_sweep(int n, int64_t pixels, int c, int vector, bool vectors, int resident,
                        bool per_image) {
    Sweep sweep = {};
    const int all_lines = ceil_div(c, vector);
    sweep.channel_blocks = ceil_div(all_lines, kSweepLines);
    sweep.lines = ceil_div(all_lines, sweep.channel_blocks);
    sweep.rows = kSweepThreads / sweep.lines;
    sweep.pixels = pixels;
    sweep.vectors = vectors;
    const int64_t wanted = int64_t(resident) * multiprocessors();
    const int64_t images = int64_t(n) * sweep.channel_blocks;
    // As many chunks as fill the chip four times, of kPixelsPerThread pixels a thread or more.
    const int64_t most = ceil_div(pixels, int64_t(sweep.rows) * kPixelsPerThread);
    const int64_t enough = per_image && 2 * images >= wanted ? 1 : ceil_div(4 * wanted, images);
    const int64_t chunks = enough < most ? enough : most;
    sweep.chunk = int(ceil_div(ceil_div(pixels, chunks), int64_t(sweep.rows)) * sweep.rows);
    sweep.chunks = int(ceil_div(pixels, int64_t(sweep.chunk)));
    sweep.items = int64_t(n) * sweep.chunks;
    // As many parts as fit the chip, or fewer, of as many items each.
    const int64_t turns = ceil_div(sweep.items * sweep.channel_blocks, wanted);
    sweep.parts = int(ceil_div(sweep.items, turns));
    return sweep;
}

// Where a thread stands in a sweep.
template <class T>
struct SweepThread {
    int part, row, c, channels;  // c: first channel; channels: of the vector that exist, <= 0: none

    __device__ __forceinline__ explicit SweepThread(const Sweep& sweep, int all_channels) {
        part = blockIdx.x / sweep.channel_blocks;
        const int block = blockIdx.x - part * sweep.channel_blocks;
        row = threadIdx.x / sweep.lines;
        c = (block * sweep.lines + threadIdx.x - row * sweep.lines) * kVector<T>;
        channels = row < sweep.rows ? all_channels - c : 0;
    }
};

// Element offset of a pixel of image n. `dense_rows`: h_stride is W * w_stride.
__device__ __forceinline__ int64_t pixel_offset(const Map& map, bool dense_rows, int w, int n,
                                                int pixel) {
    if (dense_rows) return n * map.n_stride + pixel * map.w_stride;
    const int h = pixel / w;
    return n * map.n_stride + h * map.h_stride + (pixel - h * w) * map.w_stride;
}

// The items of a thread's part: body(image, first pixel of this thread, end).
template <class T, class F>
__device__ __forceinline__ void for_items(const Sweep& sweep, const SweepThread<T>& thread,
                                          F body) {
    for (int64_t item = thread.part; item < sweep.items; item += sweep.parts) {
        const int n = int(item / sweep.chunks);
        const int first = int(item - int64_t(n) * sweep.chunks) * sweep.chunk;
        const int end = int(min(int64_t(first) + sweep.chunk, sweep.pixels));
        body(n, first + thread.row, end);
    }
}

template <class T>
__device__ __forceinline__ void load_channels(const T* p, bool vectors, int channels,
                                              float (&v)[kVector<T>]) {
    if (vectors) {
        load_some(p, v);
    } else {
#pragma unroll
        for (int e = 0; e < kVector<T>; e++) v[e] = e < channels ? to_float(p[e]) : 0.0f;
    }
}

template <class T>
__device__ __forceinline__ void store_channels(T* p, bool vectors, int channels,
                                               const float (&v)[kVector<T>]) {
    if (vectors) {
        store_some(p, v);
    } else {
#pragma unroll
        for (int e = 0; e < kVector<T>; e++) {
            if (e < channels) p[e] = from_float<T>(v[e]);
        }
    }
}

// The vector at p as it lies in memory; load_channels() without the widening.
template <class T>
__device__ __forceinline__ uint4 load_raw(const T* p, bool vectors, int channels) {
    uint4 raw = {};
    if (vectors) {
        raw = *reinterpret_cast<const uint4*>(p);
    } else {
        T elements[kVector<T>];
#pragma unroll
        for (int e = 0; e < kVector<T>; e++) {
            elements[e] = e < channels ? p[e] : from_float<T>(0.0f);
        }
        __builtin_memcpy(&raw, elements, sizeof(raw));
    }
    return raw;
}

template <class T>
__device__ __forceinline__ void widen(const uint4& raw, float (&v)[kVector<T>]) {
    load_some(reinterpret_cast<const T*>(&raw), v);
}

// The pixels of a thread from `first` on, kBatch together: load(k, pixel) for all of a batch, then
// use(k, pixel), so that as many loads are under way. A multiprocessor needs about 24 KB of them.
template <int kBatch, class Load, class Use>
__device__ __forceinline__ void for_pixels(const Sweep& sweep, int first, int end, Load load,
                                           Use use) {
#pragma unroll 1
    for (int pixel = first; pixel < end; pixel += kBatch * sweep.rows) {
#pragma unroll
        for (int k = 0; k < kBatch; k++) {
            if (pixel + k * sweep.rows < end) load(k, pixel + k * sweep.rows);
        }
#pragma unroll
        for (int k = 0; k < kBatch; k++) {
            if (pixel + k * sweep.rows < end) use(k, pixel + k * sweep.rows);
        }
    }
}

// A vector of fp32 parameters, or `absent` where there are none. `vectors`: c is a multiple of four
// and all of the vector exists.
template <int kCount>
__device__ __forceinline__ void load_parameters(const float* p, int64_t c, bool vectors,
                                                int channels, float factor, float absent,
                                                float (&v)[kCount]) {
#pragma unroll
    for (int e = 0; e < kCount; e++) v[e] = factor * absent;
    if (p == nullptr || channels <= 0) return;
#pragma unroll
    for (int e = 0; e < kCount; e += 4) {
        float some[4];
        load_channels(p + c + e, vectors, channels - e, some);
#pragma unroll
        for (int i = 0; i < 4; i++) v[e + i] = factor * some[i];
    }
}

// The sums of a block's rows, in their order: kSums values per channel, stored by
// store(sum, channel, value) for each channel that exists. `shared` holds kVector * threads floats.
template <class T, int kSums, class Store>
__device__ __forceinline__ void reduce_rows(const Sweep& sweep, const SweepThread<T>& thread,
                                            const float (&sums)[kSums][kVector<T>], float* shared,
                                            Store store) {
    // Thread i: element i / lines of line i % lines, of which it has a part of the rows.
    const int total = sweep.lines * kVector<T>, parts = kSweepThreads / total;
    const int part = int(threadIdx.x) / total, i = int(threadIdx.x) - part * total;
    const int e = i / sweep.lines, line = i - e * sweep.lines;
    const int first_line = int(blockIdx.x) % sweep.channel_blocks * sweep.lines;
#pragma unroll
    for (int s = 0; s < kSums; s++) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kVector<T>; k++) {
            shared[k * kSweepThreads + threadIdx.x] = sums[s][k];
        }
        __syncthreads();
        float sum = 0.0f;
        if (part < parts) {
#pragma unroll 4
            for (int row = part; row < sweep.rows; row += parts) {
                sum += shared[e * kSweepThreads + row * sweep.lines + line];
            }
        }
        if (parts > 1) {
            __syncthreads();
            shared[threadIdx.x] = sum;
            __syncthreads();
            sum = 0.0f;
#pragma unroll 4
            for (int other = 0; part == 0 && other < parts; other++) {
                sum += shared[other * total + i];
            }
        }
        if (part == 0) store(s, (first_line + line) * kVector<T> + e, sum);
    }
}

}  // namespace effnet_fast
