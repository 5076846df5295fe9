// The tensor cores by their warp-wide instructions (sm_80 and newer), and the fragments that
// activations are to them as they come from memory.
//
// A lane is (g, t) = (lane / 4, lane % 4). mma.m16n8k16 wants of A, 16 rows by 16 of the contracted
// axis, from lane (g, t) rows g and g + 8 at positions 2 t, 2 t + 1 and 2 t + 8, 2 t + 9; of B, 8
// columns, column g at those positions; and leaves of C rows g and g + 8 at columns 2 t, 2 t + 1.
// A sum does not care in which order it is taken, nor do columns, so positions stand for channels
// as suits memory: a lane loads channels 8 t ... 8 t + 7 of a chunk of 32 in one 16-byte word of
// four, and words 0, 1 are its positions of one instruction, words 2, 3 of the next. Column n of
// tile j of a chunk of outputs is channel 8 (n / 2) + 2 j + n % 2: a lane's eight sums of a row,
// over the chunk's four tiles, are channels 8 t ... 8 t + 7 again, and leave in one 16-byte store.
// No activation passes through shared memory, and no warp waits for another.
#pragma once

#include "cuda/numeric.cuh"

namespace effnet_fast {

constexpr int kChunk = 32;               // channels that the four lanes of a row load at once
constexpr int kTiles = 4;                // of 8 columns in a chunk of outputs
constexpr int kLaneChannels = 8;         // of a chunk
constexpr int kRowsPerMma = 16;

struct Lane {
    int g, t;
    __device__ __forceinline__ Lane() : g(int(threadIdx.x) % 32 / 4), t(int(threadIdx.x) % 4) {}
};

// The channel, relative to its chunk, that position `n` of tile `j` stands for.
__device__ __forceinline__ int channel_of(int n, int j) { return 8 * (n / 2) + 2 * j + n % 2; }

// c += a b, a pair of T in each word.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
#ifdef EFFNET_FAST_EMULATED
    emulator::mma_m16n8k16(c, {a0, a1, a2, a3}, {b0, b1}, [](uint32_t pair, float* v) {
        float wide[2];
        widen_pair(pair, wide, T());
        v[0] = wide[0], v[1] = wide[1];
    });
#else
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
#endif
}

// Row g, columns 2 t and 2 t + 1 of an 8 x 8 matrix of 16-bit values -> those of its transpose.
__device__ __forceinline__ uint32_t transpose(uint32_t pair) {
#ifdef EFFNET_FAST_EMULATED
    return emulator::movmatrix_trans(pair);
#else
    uint32_t result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
#endif
}

// A lane's eight channels of a row.
struct Row8 {
    uint32_t words[4];
};

__device__ __forceinline__ Row8 load_row8(const void* p) {
    const uint4 v = *static_cast<const uint4*>(p);
    return {{v.x, v.y, v.z, v.w}};
}

template <class T>
__device__ __forceinline__ void store_row8(T* p, const Row8& row) {
    *reinterpret_cast<uint4*>(p) = uint4{row.words[0], row.words[1], row.words[2], row.words[3]};
}

template <class T>
__device__ __forceinline__ void widen(const Row8& row, float (&v)[kLaneChannels]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float pair[2];
        widen_pair(row.words[i], pair, T());
        v[2 * i] = pair[0], v[2 * i + 1] = pair[1];
    }
}

// A lane's eight per-channel parameters: two 16-byte loads, or `absent` where p is null.
__device__ __forceinline__ void load_parameters8(const float* p, bool inside, float absent,
                                                 float (&v)[kLaneChannels]) {
    if (p != nullptr && inside) {
        load_some(p, reinterpret_cast<float (&)[4]>(v[0]));
        load_some(p + 4, reinterpret_cast<float (&)[4]>(v[4]));
    } else {
#pragma unroll
        for (int e = 0; e < kLaneChannels; e++) v[e] = absent;
    }
}

// Bytes from row to row of weights in shared memory, `channels` of the contracted axis each: an odd
// number of 64-byte chunks, so that the two rows that eight lanes read at once share no bank.
__host__ __device__ constexpr int weight_pitch(int channels) {
    return (ceil_div(channels, kChunk) | 1) * kChunk * 2;
}

// Rows first ... first + rows - 1 of a weight [outputs, channels], zeros beyond its ends, to shared
// memory; kTransposed: of the transpose of [channels, outputs].
template <class T, bool kTransposed>
__device__ __forceinline__ void copy_weights(const T* weight, int outputs, int channels, int first,
                                             int rows, unsigned char* shared) {
    const int pitch = weight_pitch(channels);
    const int padded = ceil_div(channels, kChunk) * kChunk;
    if constexpr (kTransposed) {
        for (int i = threadIdx.x; i < rows * padded; i += blockDim.x) {
            const int channel = i / rows, row = i - channel * rows;
            const bool inside = channel < channels && first + row < outputs;
            reinterpret_cast<T*>(shared + row * pitch)[channel] =
                inside ? weight[int64_t(channel) * outputs + first + row] : from_float<T>(0.0f);
        }
    } else {
        const int vectors = padded / kVector<T>;
        for (int i = threadIdx.x; i < rows * vectors; i += blockDim.x) {
            const int row = i / vectors, channel = (i - row * vectors) * kVector<T>;
            const bool inside = channel < channels && first + row < outputs;
            const T* const from = weight + int64_t(first + row) * channels + channel;
            const Row8 v = inside ? load_row8(from) : Row8{};
            store_row8(reinterpret_cast<T*>(shared + row * pitch) + channel, v);
        }
    }
}

// The eight words of a chunk's tile j of B, both instructions': lane's row of the shared weights is
// that of `channel_of(g, j)`; `weights` points at that of g = 0, j = 0, channel 8 t of the chunk.
__device__ __forceinline__ uint4 weight_words(const unsigned char* weights, int pitch, int g,
                                              int j) {
    return *reinterpret_cast<const uint4*>(weights + channel_of(g, j) * pitch);
}

}  // namespace effnet_fast
