// What the two depthwise kernels share: the shape of a block's tile, the ring of rows that it reads
// through, and the asynchronous copies that fill the ring.
//
// A block owns a line of 64, 96 or 128 bytes of channels. A thread owns `lanes` neighbouring
// channels, 2 or 4, so that 16 or 32 threads read 128 contiguous bytes of shared memory and write
// whole sectors, and kCols neighbouring columns. Lanes are innermost, then column groups, then, for
// small maps, images. Rows stream down H.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <type_traits>

#include "cuda/async_copy.cuh"
#include "cuda/intrinsics.cuh"
#include "cuda/numeric.cuh"

namespace effnet_fast {

constexpr int kCols = 4;         // columns per thread, of y forward and of x backward
constexpr int kLineVectors = 8;  // 16-byte vectors of channels per pixel and block, at most
constexpr int kLineBytes = kLineVectors * kVectorBytes;

// Bytes from pixel to pixel in shared memory. A 64-byte line needs two column groups per warp to
// fill 32 banks: kCols pixels further on must be 64 bytes (mod 128) away, and they are.
constexpr int kPitch = kLineBytes + kVectorBytes;
// The same of a row widened to fp32.
template <class T>
constexpr int kWidePitch = kLineBytes * int(sizeof(float) / sizeof(T)) + kVectorBytes;
static_assert(kPitch % kVectorBytes == 0, "cp.async writes aligned vectors");
static_assert(kCols * kPitch % 128 == 64, "two column groups of half a line share no bank");

// How a depthwise op is cut into blocks; the same for every program, made by make_tile.
struct Tile {
    int vectors;         // of channels per block
    int lines;           // threads that share a pixel
    int groups;          // of `columns` columns per block
    int images;          // per block
    int threads;         // per block
    int columns_in;      // of a row of the ring, per image
    int rows;            // output rows per work item
    int strips;          // ceil(P / rows)
    int column_tiles;    // that an item walks through
    int items;           // image groups x strips
    int channel_blocks;  // ceil(C / channels)
    int parts;           // programs per channel block; each takes items part, part + parts, ...
};

// What a strip costs beside its rows, in rows: its halo, and the time until the first row is there.
constexpr int kStripRows = 4;

struct TileLimits {
    int vector;      // elements of 16 bytes
    int lanes;       // channels per thread
    int columns;     // output columns per thread
    int columns_in;  // that those read, and
    int halo;        // how many more a row of threads does
    int slots;       // 16-byte vectors per thread and row of the ring
    int threads;     // per block, at most
    int resident;    // blocks per multiprocessor,
    int resident_threads;  // or, of small blocks, as many as have so many threads
    int unit;        // threads per vector for each `unit_groups` groups; 0: `lanes` says
    int unit_groups;
    int images;        // per block, at most
    int max_rows;      // output rows per item
    int pixel_bytes;   // of shared memory per pixel of a row of the ring
    int shared_bytes;  // for those
};

// Output [n, rows, columns, c] in blocks whose channel lines are `vectors` long.
inline Tile cut(const TileLimits& limits, int n, int c, int rows, int columns, int vectors) {
    Tile tile = {};
    tile.vectors = vectors;
    const bool units = limits.unit > 0;
    tile.lines = units ? 0 : vectors * limits.vector / limits.lanes;
    tile.channel_blocks = ceil_div(c, vectors * limits.vector);
    const int warps = vectors % 3 == 0 ? 96 : 32;  // whole ones, and whole lines
    const int unit = units ? limits.unit * vectors : warps;
    const auto fits = [&](int groups, int images) {
        tile.columns_in = groups * limits.columns_in + limits.halo;
        const int loads = ceil_div(tile.columns_in * images * vectors, limits.slots);
        const int busy = units ? ceil_div(groups * images, limits.unit_groups) * unit
                               : tile.lines * groups * images;
        tile.threads = ceil_div(busy > loads ? busy : loads, unit) * unit;
        return tile.threads <= limits.threads &&
               tile.columns_in * images * limits.pixel_bytes <= limits.shared_bytes;
    };
    const int all_groups = ceil_div(columns, limits.columns);
    tile.groups = all_groups;
    while (tile.groups > 1 && !fits(tile.groups, 1)) tile.groups--;
    tile.column_tiles = ceil_div(all_groups, tile.groups);
    tile.groups = ceil_div(all_groups, tile.column_tiles);
    // Several small images per block, once there are blocks enough for every multiprocessor.
    const int wanted = limits.resident * multiprocessors();
    tile.images = 1;
    const int most = std::min(n, limits.images);
    while (tile.column_tiles == 1 && tile.images < most && fits(tile.groups, tile.images + 1) &&
           int64_t(ceil_div(n, tile.images + 1)) * tile.channel_blocks >= wanted) {
        tile.images++;
    }
    fits(tile.groups, tile.images);
    const int resident = std::max(limits.resident, limits.resident_threads / tile.threads);
    const int programs = programs_per_share(resident, tile.channel_blocks);
    // Strips as long as makes the program with most of them end first.
    const int planes = ceil_div(n, tile.images);
    int64_t best = INT64_MAX;
    for (int strips = 1; strips <= ceil_div(rows, kPoolRows); strips++) {
        const int length = ceil_div(ceil_div(rows, strips), kPoolRows) * kPoolRows;
        const int64_t items = int64_t(planes) * ceil_div(rows, length);
        const int64_t time = ceil_div(items, int64_t(programs)) * (length + kStripRows);
        if (length <= limits.max_rows && time < best) best = time, tile.rows = length;
    }
    tile.strips = ceil_div(rows, tile.rows);
    tile.items = planes * tile.strips;
    tile.parts = std::min(programs, tile.items);
    return tile;
}

// The same with the line that keeps a block, of which so many are resident, busiest: with channels
// and columns that exist, in all waves, and not with halo. Of equals the fewest threads; of at most
// `longest` vectors.
inline Tile make_tile(const TileLimits& limits, int n, int c, int rows, int columns, int longest) {
    Tile best = {};
    double best_share = 0.0;
    for (const int vectors : {kLineVectors, 6, 4}) {
        if (vectors > longest) continue;
        const Tile tile = cut(limits, n, c, rows, columns, vectors);
        const double blocks = double(tile.channel_blocks) * tile.column_tiles;
        const double read = double(tile.column_tiles) * tile.columns_in / limits.columns_in;
        const double waves = ceil_div(tile.items, tile.parts) * double(tile.parts);
        const double share = double(c) * columns / blocks * tile.images *
                             (double(columns) / limits.columns / read) * (tile.items / waves);
        if (share > best_share || (share == best_share && tile.threads < best.threads)) {
            best = tile, best_share = share;
        }
    }
    return best;
}

// The vectors of a row of the ring that one thread copies: slot s is vector threadIdx.x + s *
// blockDim.x of [images, columns_in, vectors]. blockDim.x is a multiple of `vectors`, so that all
// slots hold the same channels.
//
// kRowPitch: bytes from pixel to pixel of a row of the ring.
template <class T, int kSlots, int kRowPitch = kPitch>
struct RowLoader {
    const unsigned char* source;  // of slot 0, in the ring's first row
    int offset[kSlots];           // of slot s from there, in bytes
    bool inside[kSlots];          // the tensor
    int image[kSlots];            // relative to the block's first
    int pixel;                    // of slot 0, in a row of the ring
    int pixel_step;               // from slot to slot
    int channel;                  // first, relative to the block's

    // image0, row0, column0, channel0: what pixel 0, vector 0 of the ring's first row stands for.
    // What lies outside the tensor is zeroed in the `rows` rows that a window will be read from,
    // and is never written again.
    template <int kZeroedPitch, class Element>
    __device__ __forceinline__ void place(const Tile& tile, const Map& x, int n, int w, int c,
                                          int image0, int row0, int column0, int channel0,
                                          unsigned char* row, int rows, int row_bytes) {
        pixel_step = blockDim.x / tile.vectors;
        pixel = threadIdx.x / tile.vectors;
        channel = (threadIdx.x - pixel * tile.vectors) * kVector<T>;
        const int first = pixel / tile.columns_in;
        const int64_t start = (image0 + first) * x.n_stride + row0 * x.h_stride +
                              (column0 + pixel - first * tile.columns_in) * x.w_stride;
        source = opaque_global(static_cast<const unsigned char*>(x.data) +
                               (start + channel0 + channel) * int64_t(sizeof(T)));
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            const int at = pixel + s * pixel_step;
            const int image_s = image[s] = at / tile.columns_in;
            const int column = column0 + at - image_s * tile.columns_in;
            offset[s] = int(((image_s - first) * x.n_stride +
                             (s * pixel_step - (image_s - first) * tile.columns_in) * x.w_stride) *
                            int64_t(sizeof(T)));
            const bool exists = image_s < tile.images;
            inside[s] = exists && image0 + image_s < n && column >= 0 && column < w &&
                        channel0 + channel < c;
            if (!exists || inside[s]) continue;
            Element zeros[kVector<T>] = {};
            for (int r = 0; r < rows; r++) {
                __builtin_memcpy(
                    row + r * row_bytes + at * kZeroedPitch + channel * int(sizeof(Element)), zeros,
                    sizeof(zeros));
            }
        }
    }

    // Starts the copies of the row `steps` rows after that of slot 0's source `base`. kWhole:
    // vectors are.
    template <bool kWhole>
    __device__ __forceinline__ void copy(const unsigned char* base, int steps, int row_bytes,
                                         unsigned char* ring_row, bool vectors,
                                         int channels) const {
        // One multiply-add per address: cheaper than 64-bit pointers that advance.
        const unsigned char* const from = base + int64_t(steps) * row_bytes;
        // Unless a step's slots count: no register for what can be computed again.
        const int first = kWhole ? pixel : opaque(pixel);
        unsigned char* const to = ring_row + first * kRowPitch + channel * int(sizeof(T));
        if (kWhole || vectors) {
#pragma unroll
            for (int s = 0; s < kSlots; s++) {
                if (inside[s]) {
                    copy_async<kVectorBytes>(to + s * pixel_step * kRowPitch, from + offset[s],
                                             true);
                }
            }
        }
        // Pixels are not aligned to 16 bytes, or C ends inside a vector: one by one.
        if constexpr (!kWhole) {
            if (vectors) return;
#pragma unroll
            for (int s = 0; s < kSlots; s++) {
                if (!inside[s]) continue;
                const T* const elements = reinterpret_cast<const T*>(from + offset[s]);
                T* const ring_elements = reinterpret_cast<T*>(to + s * pixel_step * kRowPitch);
#pragma unroll 1
                for (int e = 0; e < kVector<T>; e++) {
                    ring_elements[e] = channel + e < channels ? elements[e] : from_float<T>(0.0f);
                }
            }
        }
    }

    // wide = f(ring) for every vector of this thread inside the tensor; its copies are complete.
    template <class F>
    __device__ __forceinline__ void widen(const unsigned char* ring_row, unsigned char* wide_row,
                                          F f) const {
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            if (!inside[s]) continue;
            const int at = opaque(pixel) + s * pixel_step;
            float v[kVector<T>];
            load_some(reinterpret_cast<const T*>(ring_row + at * kRowPitch) + channel, v);
            f(v);
            float* const to = reinterpret_cast<float*>(wide_row + at * kWidePitch<T>) + channel;
#pragma unroll
            for (int e = 0; e < kVector<T>; e += 4) {
                store_some(to + e, {v[e], v[e + 1], v[e + 2], v[e + 3]});
            }
        }
    }
};

// What a RowLoader's offsets, four elements' bytes at most each, must stay below.
constexpr int64_t kReach = int64_t(1) << 30;

// The most images of a map that a block may share, so that their offsets fit 32 bits: at least one,
// whose offset is 0.
inline int images_in_reach(const Map& map) {
    const int64_t stride = std::abs(map.n_stride);
    return stride == 0 ? int(kReach) : int(std::max((kReach - 1) / (4 * stride), int64_t(1)));
}

// Whether a RowLoader's steps from row to row, and its offsets within one, fit 32 bits.
inline bool offsets_fit(const Map& map, const Tile& tile) {
    return 4 * std::abs(map.h_stride) < 2 * kReach &&
           4 * tile.columns_in * std::abs(map.w_stride) < kReach;
}

// Whether sizes are positive and every output row begins above x's last row and ends in x or below
// its first: what the accumulators' set-up needs.
inline bool sound(const DepthwiseShape& s) {
    return s.n >= 0 && s.c > 0 && s.h > 0 && s.w > 0 && s.p > 0 && s.q > 0 && s.pad_top >= 0 &&
           s.pad_left >= 0 && s.pad_top < s.kernel && (s.p - 1) * s.stride - s.pad_top < s.h;
}

// f(T*, kernel size, stride), the sizes as integral constants; cudaErrorInvalidValue for others.
template <class F>
cudaError_t dispatch(const DepthwiseShape& shape, F f) {
    return with_type(shape.dtype, [&](auto* type) {
        using std::integral_constant;
        switch (10 * shape.kernel + shape.stride) {
            case 31:
                return f(type, integral_constant<int, 3>(), integral_constant<int, 1>());
            case 32:
                return f(type, integral_constant<int, 3>(), integral_constant<int, 2>());
            case 51:
                return f(type, integral_constant<int, 5>(), integral_constant<int, 1>());
            case 52:
                return f(type, integral_constant<int, 5>(), integral_constant<int, 2>());
            default:
                return cudaErrorInvalidValue;
        }
    });
}

}  // namespace effnet_fast
