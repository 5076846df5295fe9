// What the depthwise kernel for tensor cores is made of, less its loop: constants of an
// instantiation, the copies that fill its ring, its operands and its sums.
#pragma once

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

template <class T, int K, int S, bool kPrologue>
struct TensorUnroll {
    static constexpr int kAccumulators = (K + S - 1) / S;  // output rows in flight
    static constexpr int kPeriod = S * kAccumulators;      // input rows until the pattern repeats
    static constexpr int kRing = S == 1 ? 8 : 5;           // rows; all but one of them on their way
    static constexpr int kSplitRows = kPrologue ? 4 : 0;   // high and low halves, twice
    static constexpr int kThreads = 128;
    static constexpr int kResident = K == 3 ? 4 : 3;  // blocks per multiprocessor
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

// The vectors of a row that one thread copies: slot s is vector threadIdx.x + s * blockDim.x of
// [images, columns_in, vectors]. blockDim.x is a multiple of `vectors`.
//
// At stride 2 the even columns of a row come first and then the odd ones, so that the columns which
// neighbouring outputs read at one tap are neighbours too.
template <class T, int S, int kSlots>
struct TensorLoader {
    const unsigned char* from[kSlots];  // of slot s in the row that is copied next
    int to[kSlots];                     // its place in a row of the ring; negative: nothing to copy

    // What lies outside the tensor is zeroed in the `rows` rows at `zeroed` that products read, and
    // is never written again.
    __device__ __forceinline__ void place(const Tile& tile, const Map& x, int n, int w, int c,
                                          int image0, int row0, int column0, int channel0,
                                          unsigned char* zeroed, int rows, int row_bytes) {
        const int64_t start =
            image0 * x.n_stride + row0 * x.h_stride + column0 * x.w_stride + channel0;
        const int vector = threadIdx.x % tile.vectors;
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            const int pixel = (threadIdx.x + s * blockDim.x) / tile.vectors;
            const int image = pixel / tile.columns_in, column = pixel - image * tile.columns_in;
            const int at = S == 1 ? column : column / 2 + column % 2 * (tile.columns_in / 2);
            from[s] = opaque_global(static_cast<const unsigned char*>(x.data) +
                                    (start + image * x.n_stride + column * x.w_stride +
                                     vector * kVector<T>)*int64_t(sizeof(T)));
            to[s] = (image * tile.columns_in + at) * kTensorPitch + vector * kVectorBytes;
            const bool exists = image < tile.images;
            const bool inside = exists && image0 + image < n && column0 + column >= 0 &&
                                column0 + column < w && channel0 + vector * kVector<T> < c;
            for (int r = 0; r < rows && exists && !inside; r++) {
                *reinterpret_cast<uint4*>(zeroed + r * row_bytes + to[s]) = uint4{};
            }
            if (!inside) to[s] = -1;
        }
    }

    // Starts the copies of the next row, or of what lies `beside` it in another tensor.
    __device__ __forceinline__ void start(unsigned char* row, int64_t beside = 0) const {
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            if (to[s] >= 0) copy_async<kVectorBytes>(row + to[s], from[s] + beside, true);
        }
    }
    __device__ __forceinline__ void advance(int row_bytes) {
#pragma unroll
        for (int s = 0; s < kSlots; s++) from[s] += row_bytes;
    }

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

// acc += row * taps over the K columns of a row's window, for every output row that it belongs to.
// taps[v][i][j] is tap (i, j) of vector v on the diagonal of an 8 x 8 matrix: two taps make a
// product of 16, so that a zero is added for 14 of 16 terms, exactly.
//
// `pairs` and `singles`: this lane's matrix row, of two neighbouring columns, or of two vectors.
template <class T, int K, int S, int kAccumulators>
__device__ __forceinline__ void multiply_row(float (&acc)[kAccumulators][kVectorsPerWarp][4],
                                             const uint32_t (&taps)[kVectorsPerWarp][K][K],
                                             const unsigned char* pairs,
                                             const unsigned char* singles, int phase, bool first) {
    constexpr float kZeros[4] = {};
    // At tap row i this row adds to the output row that began i rows ago.
    const auto sum_of = [&](int i) -> float (&)[kVectorsPerWarp][4] {
        return acc[(phase - i + S * kAccumulators * K) / S % kAccumulators];
    };
    const auto column = [](int j) { return (S == 1 ? j : j / 2) * kTensorPitch; };
#pragma unroll
    for (int j = 0; j + 1 < K; j += 2) {
        uint32_t a[kVectorsPerWarp][4];
#pragma unroll
        for (int v = 0; v < kVectorsPerWarp; v++) {
            load_matrices(pairs + column(j) + v * kVectorBytes, a[v]);
        }
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
    load_matrices(singles + column(K - 1), a);
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
