// What the depthwise kernel for tensor cores is made of, less its loop: constants of an
// instantiation, the copies that fill its ring, its operands and its sums.
#pragma once

#include "cuda/box_copy.cuh"
#include "cuda/depthwise_fwd.cuh"
#include "cuda/tensor_core.cuh"

namespace effnet_fast {

constexpr int kOctet = 8;           // columns of y that are the rows of an 8 x 8 matrix
constexpr int kOctetsPerWarp = 2;   // the 16 rows of a product
constexpr int kVectorsPerWarp = 2;  // of 8 channels: whole sectors of y
constexpr int kTensorVectors = 4;   // per block, at most
constexpr int kTensorLine = kTensorVectors * 8;
// Bytes from pixel to pixel: 7 places of 16 bytes, so that any 8 neighbours are in distinct banks.
constexpr int kTensorPitch = (kTensorVectors + 1) * kVectorBytes;
static_assert(kTensorPitch / kVectorBytes % 2 == 1, "8 rows of a matrix share no bank");

template <class T, int K, int S, bool kPrologue, bool kBoxes>
struct TensorUnroll {
    static constexpr int kAccumulators = (K + S - 1) / S;  // output rows in flight
    static constexpr int kPeriod = S * kAccumulators;      // input rows until the pattern repeats
    static constexpr int kRing = S == 1 ? 8 : 5;           // rows; all but one of them on their way
    static constexpr int kSplitRows = kPrologue ? 4 : 0;   // high and low halves, twice
    static constexpr int kThreads = 128;
    // Blocks per multiprocessor. Boxes spare a thread the addresses of its copies, and so may leave
    // registers for one more; which bench/issue_model.py makes nothing of in 3 x 3 at stride 2.
    static constexpr int kMoreResident = kBoxes && (K == 3) == (S == 1) ? 1 : 0;
    static constexpr int kResident = (K == 3 ? 4 : 3) + kMoreResident;
    static constexpr int kSlots = S + 1;              // vectors of a row that a thread copies
    static constexpr int kHalo = K - 1;               // columns of a row beside 8 S per octet
    // Bytes per pixel of a row, and floats beside the rows.
    static constexpr int kPixelBytes = (kRing + kSplitRows) * kTensorPitch;
    static constexpr int kLineRows = kPrologue ? 4 : 2;  // scale, shift of y; of x
    static constexpr int kThreadFloats = kPrologue ? 4 : 0;
    static constexpr int kMaxRows = 56;  // of y per item: of pool cells there is one every 4th
    static constexpr int kFixedBytes = 4 * (kLineRows * kTensorLine + kThreadFloats * kThreads +
                                            kMaxRows / kPoolRows * (kThreads / 32) * kTensorLine);
    static_assert(kRing >= K, "no row above x is as far ahead as the copies run");
    static_assert(K % 2 == 1, "an output row ends with the parity that it began with");
};

// Octets that have cells of pool sums: all of the warps'.
__host__ __device__ inline int cells_of(int octets) {
    return ceil_div(octets, kOctetsPerWarp) * kOctetsPerWarp;
}

// How a row of the ring lies in shared memory: [plane][images][columns_in / S][vectors]. At stride
// 2 the even columns of a row come first and then the odd ones, so that the columns which
// neighbouring outputs read at one tap are neighbours too. A row for boxes ends in their barrier.
template <int S, bool kBoxes>
struct RowLayout {
    int columns;  // of an image in a plane
    int pixels;   // of a plane,
    int plane;    // and from it to the next
    int bytes;    // from row to row of the ring

    __host__ __device__ explicit RowLayout(const Tile& tile) {
        constexpr int kPixels = kBoxAlignment / kBoxBytes;
        columns = tile.columns_in / S;
        pixels = columns * tile.images;
        plane = kBoxes && S > 1 ? ceil_div(pixels, kPixels) * kPixels : pixels;
        const int whole = (S - 1) * plane + pixels;
        bytes = kBoxes ? ceil_div(whole * kBoxBytes + kBarrierBytes, kBoxAlignment) * kBoxAlignment
                       : whole * kTensorPitch;
    }
    __device__ static int place(int pixel, int vector) {
        return kBoxes ? swizzled(pixel * kBoxBytes + vector * kVectorBytes)
                      : pixel * kTensorPitch + vector * kVectorBytes;
    }
    __device__ BoxBarrier* barrier(unsigned char* row) const {
        return reinterpret_cast<BoxBarrier*>(row + bytes - kBarrierBytes);
    }

    static constexpr int kBarrierBytes = int(sizeof(BoxBarrier));
    static_assert(kTensorVectors * kVectorBytes == kBoxBytes, "a block's channels are a box's");
};

// x for boxes: at stride 2 its even columns and its odd ones are a tensor each.
template <int S>
struct RowMaps {
    BoxMap of[S];
};

// The vectors of a row that one thread copies: slot s is vector threadIdx.x + s * blockDim.x of
// [images, columns_in, vectors]. blockDim.x is a multiple of `vectors`.
template <class T, int S, int kSlots>
struct TensorLoader {
    const unsigned char* from[kSlots];  // of slot s in the row that is copied next
    int to[kSlots];                     // its place in a row of the ring; negative: nothing to copy

    // What lies outside the tensor is zeroed in the `rows` rows at `zeroed` that products read, and
    // is never written again.
    __device__ __forceinline__ void place(const Tile& tile, const RowLayout<S, false>& layout,
                                          const Map& x, int n, int w, int c, int image0, int row0,
                                          int column0, int channel0, unsigned char* zeroed,
                                          int rows) {
        const int64_t start =
            image0 * x.n_stride + row0 * x.h_stride + column0 * x.w_stride + channel0;
        const int vector = threadIdx.x % tile.vectors;
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            const int pixel = (threadIdx.x + s * blockDim.x) / tile.vectors;
            const int image = pixel / tile.columns_in, column = pixel - image * tile.columns_in;
            from[s] = opaque_global(static_cast<const unsigned char*>(x.data) +
                                    (start + image * x.n_stride + column * x.w_stride +
                                     vector * kVector<T>)*int64_t(sizeof(T)));
            to[s] = layout.place(column % S * layout.plane + image * layout.columns + column / S,
                                 vector);
            const bool exists = image < tile.images;
            const bool inside = exists && image0 + image < n && column0 + column >= 0 &&
                                column0 + column < w && channel0 + vector * kVector<T> < c;
            for (int r = 0; r < rows && exists && !inside; r++) {
                *reinterpret_cast<uint4*>(zeroed + r * layout.bytes + to[s]) = uint4{};
            }
            if (!inside) to[s] = -1;
        }
    }

    // Starts the copies of the next row.
    __device__ __forceinline__ void start(unsigned char* row, const RowLayout<S, false>&,
                                          const RowMaps<S>&) const {
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            if (to[s] >= 0) copy_async<kVectorBytes>(row + to[s], from[s], true);
        }
    }
    // Closes it: a group of copies, be it empty.
    __device__ __forceinline__ void advance(int row_bytes) {
#pragma unroll
        for (int s = 0; s < kSlots; s++) from[s] += row_bytes;
        commit_async();
    }

    // Until this thread's copies are there, but those of the last kPending rows. The block's
    // barrier makes them everybody's.
    template <int kPending>
    __device__ __forceinline__ void wait_for_own() const {
        wait_async<kPending>();
    }
    __device__ __forceinline__ void wait_for_row(unsigned char*, const RowLayout<S, false>&,
                                                 int) const {}

    // high + low = f(row) to 16 bits, for every vector of this thread; its copies are complete.
    template <class F>
    __device__ __forceinline__ void split(const unsigned char* row, unsigned char* high,
                                          int row_bytes, F f) const {
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            if (to[s] < 0) continue;
            float v[kVector<T>], rest[kVector<T>];
            load_some(reinterpret_cast<const T*>(row + to[s]), v);
            f(v);
            uint32_t words[kVector<T> / 2];
#pragma unroll
            for (int i = 0; i < kVector<T> / 2; i++) {
                words[i] = narrow_pair(v[2 * i], v[2 * i + 1], T());
                float rounded[2];
                widen_pair(words[i], rounded, T());
                rest[2 * i] = v[2 * i] - rounded[0], rest[2 * i + 1] = v[2 * i + 1] - rounded[1];
            }
            *reinterpret_cast<uint4*>(high + to[s]) = {words[0], words[1], words[2], words[3]};
            store_some(reinterpret_cast<T*>(high + row_bytes + to[s]), rest);
        }
    }
};

// The same rows by boxes, for which one thread asks. Zeros arrive for what lies outside the tensor.
template <int S>
struct BoxLoader {
    int channel, column, row, image;  // where the box of the row that is copied next begins

    __device__ __forceinline__ void place(const Tile&, const RowLayout<S, true>&, const Map&, int,
                                          int, int, int image0, int row0, int column0,
                                          int channel0, unsigned char*, int) {
        channel = channel0, column = column0, row = row0, image = image0;
    }
    __device__ __forceinline__ void start(unsigned char* to, const RowLayout<S, true>& layout,
                                          const RowMaps<S>& maps) const {
        if (threadIdx.x != 0) return;
        BoxBarrier* const barrier = layout.barrier(to);
        expect_boxes(barrier, S * layout.pixels * kBoxBytes);
#pragma unroll
        for (int plane = 0; plane < S; plane++) {
            const int first = column + plane;  // of x; a map of one parity counts half of them
            copy_box(to + plane * layout.plane * kBoxBytes, maps.of[first & (S - 1)], channel,
                     first >> (S - 1), row, image, barrier);
        }
    }
    __device__ __forceinline__ void advance(int) { row++; }
    template <int kPending>
    __device__ __forceinline__ void wait_for_own() const {}
    __device__ __forceinline__ void wait_for_row(unsigned char* to,
                                                 const RowLayout<S, true>& layout,
                                                 int parity) const {
        wait_boxes(layout.barrier(to), parity);
    }
};

// Where a lane's row of the matrices is in a row of the ring. Boxes turn the vectors of every pixel
// in their own way, so that a place for each pair of columns is kept.
template <int K, int S, bool kBoxes>
struct LanePlaces {
    int pairs[kBoxes ? K / 2 : 1];  // of two neighbouring columns: 0 and 1, 2 and 3
    int singles;                    // of two vectors of column K - 1

    // The lane's pixel of the first column, and the first of the warp's two vectors.
    __device__ __forceinline__ LanePlaces(const RowLayout<S, kBoxes>& layout, int pixel,
                                          int vector) {
        const int second = threadIdx.x % 32 / 16;
#pragma unroll
        for (int i = 0; i < (kBoxes ? K / 2 : 1); i++) {
            const int next_column = S == 1 ? 1 : layout.plane;
            pairs[i] = layout.place(pixel + step(2 * i) + second * next_column, vector);
        }
        singles = layout.place(pixel + step(K - 1), vector + second);
    }
    // Pixels to column j, an even one.
    __device__ static constexpr int step(int j) { return S == 1 ? j : j / 2; }

    // Of columns j and j + 1, the warp's vector v.
    __device__ __forceinline__ int pair(int j, int v) const {
        if constexpr (kBoxes) return pairs[j / 2] ^ v * kVectorBytes;  // its first is an even one
        return pairs[0] + step(j) * kTensorPitch + v * kVectorBytes;
    }
};

// acc += row * taps over the K columns of a row's window, for every output row that it belongs to.
// taps[v][i][j] is tap (i, j) of vector v on the diagonal of an 8 x 8 matrix: two taps make a
// product of 16, so that a zero is added for 14 of 16 terms, exactly.
template <class T, int K, int S, bool kBoxes, int kAccumulators>
__device__ __forceinline__ void multiply_row(float (&acc)[kAccumulators][kVectorsPerWarp][4],
                                             const uint32_t (&taps)[kVectorsPerWarp][K][K],
                                             const unsigned char* row,
                                             const LanePlaces<K, S, kBoxes>& places, int phase,
                                             bool first) {
    constexpr float kZeros[4] = {};
    // At tap row i this row adds to the output row that began i rows ago.
    const auto sum_of = [&](int i) -> float (&)[kVectorsPerWarp][4] {
        return acc[(phase - i + S * kAccumulators * K) / S % kAccumulators];
    };
#pragma unroll
    for (int j = 0; j + 1 < K; j += 2) {
        uint32_t a[kVectorsPerWarp][4];
#pragma unroll
        for (int v = 0; v < kVectorsPerWarp; v++) load_matrices(row + places.pair(j, v), a[v]);
#pragma unroll
        for (int i = phase % S; i < K; i += S) {
#pragma unroll
            for (int v = 0; v < kVectorsPerWarp; v++) {
                float (&sum)[4] = sum_of(i)[v];
                if (first && i == 0 && j == 0) {
                    multiply_add<T>(sum, a[v], taps[v][i][j], taps[v][i][j + 1], kZeros);
                } else {
                    multiply_add<T>(sum, a[v], taps[v][i][j], taps[v][i][j + 1], sum);
                }
            }
        }
    }
    uint32_t a[4];
    load_matrices(row + places.singles, a);
#pragma unroll
    for (int i = phase % S; i < K; i += S) {
#pragma unroll
        for (int v = 0; v < kVectorsPerWarp; v++) {
            float (&sum)[4] = sum_of(i)[v];
            multiply_add<T>(sum, a[2 * v], a[2 * v + 1], taps[v][i][K - 1], sum);
        }
    }
}

// One output, tap by tap, of the window whose first row and column are h and w. `affine` is the
// channel's scale, with its shift kTensorLine further on.
template <class T, int K, int S, bool kPrologue>
__device__ __forceinline__ float sum_of_taps(const FwdParams& p, int n, int c, int h, int w,
                                             const float* affine) {
    const DepthwiseShape& shape = p.op.shape;
    const T* const x = static_cast<const T*>(p.op.x.data);
    const T* const taps = static_cast<const T*>(p.op.weight) + int64_t(c) * (K * K);
    float sum = 0.0f;
#pragma unroll 1
    for (int tap = 0; tap < K * K; tap++) {
        const int row = h + tap / K, column = w + tap % K;
        if (unsigned(row) >= unsigned(shape.h) || unsigned(column) >= unsigned(shape.w)) continue;
        float v =
            to_float(x[n * p.op.x.n_stride + row * p.op.x.h_stride + column * p.op.x.w_stride + c]);
        if (kPrologue) v = apply<T>(p.in_act, fmaf(v, affine[0], affine[kTensorLine]));
        sum = fmaf(v, to_float(taps[tap]), sum);
    }
    return sum;
}

// Eight values of each lane to one sum over the lanes of equal lane % 4: value lane / 4.
__device__ __forceinline__ float sum_across(float (&v)[8]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int bit = 16, half = 4; half > 0; bit /= 2, half /= 2) {
        const bool upper = (lane & bit) != 0;
#pragma unroll
        for (int i = 0; i < half; i++) {
            const float kept = upper ? v[i + half] : v[i], sent = upper ? v[i] : v[i + half];
            v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, bit);
        }
    }
    return v[0];
}

// Sums over a strip's columns: the octets of an image, in their order.
__device__ __forceinline__ void store_octets(const float* cells, const FwdParams& p, int item,
                                             int channel0) {
    const Tile& tile = p.tile;
    const int image0 = item / tile.strips * tile.images;
    const int p0 = item % tile.strips * tile.rows;
    const int strips = ceil_div(min(tile.rows, p.op.shape.p - p0), kPoolRows);
    const int channels = tile.vectors * 8, octets = cells_of(tile.groups * tile.images);
    for (int i = threadIdx.x; i < strips * tile.images * channels; i += blockDim.x) {
        const int channel = i % channels, image = i / channels % tile.images;
        const int strip = i / channels / tile.images;
        const float* const own =
            cells + (strip * octets + image * tile.groups) * kTensorLine + channel;
        float sum = 0.0f;
        for (int g = 0; g < tile.groups; g++) sum += own[g * kTensorLine];
        const int c = channel0 + channel;
        if (c >= p.op.shape.c || image0 + image >= p.op.shape.n) continue;
        const int64_t row = int64_t(p0 / kPoolRows + strip) * p.op.shape.n + image0 + image;
        p.op.reduced[row * p.op.shape.c + c] = sum;
    }
}

}  // namespace effnet_fast
