// The operands of a product's gradients and of the product itself, as rows of fragments (mma.cuh):
// loaded 16 bytes a lane, changed in registers, rounded to T.
//
// Loads run ahead through a ring of shared memory that is each lane's own: it copies into its slot
// what it will read from there, so that a wait for its own copies is all it waits for, and what is
// under way takes no registers.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/async_copy.cuh"
#include "cuda/gradient.cuh"
#include "cuda/mma.cuh"

namespace effnet_fast {

// What goes before the product.
enum class Prologue {
    kNone,      // x as it is
    kScaled,    // gate * act(affine(x))
    kGradient,  // coef of g * drop_scale and y, of a batch norm without activation: gradient.cuh
};

struct Operand {
    const void* x;    // kGradient: y
    const void* g;    // kGradient: dense
    int64_t x_step;   // elements from pixel to pixel
    int channels;
    const float* affine;      // kScaled, and
    const float* gate;
    Act act;
    const float* coef;        // kGradient, and
    const float* drop_scale;
};

constexpr int kPieceBytes = 32 * kVectorBytes;  // 16 bytes of every lane of a warp

// One chunk of a tile's rows: 2 rows per lane and step.
template <Prologue kPrologue, int kSteps>
struct ChunkRows {
    static constexpr int kMaps = kPrologue == Prologue::kGradient ? 2 : 1;
    static constexpr int kBytes = 2 * kSteps * kMaps * kPieceBytes;  // in a warp's ring
    Row8 x[kSteps][2];
    Row8 g[kMaps == 2 ? kSteps : 1][2];

    // What TileRows::copy has brought to `slot`.
    __device__ __forceinline__ void read(const unsigned char* slot) {
#pragma unroll
        for (int i = 0; i < 2 * kSteps; i++) {
            x[i / 2][i % 2] = load_row8(slot + i * kPieceBytes);
            if constexpr (kMaps == 2) {
                g[i / 2][i % 2] = load_row8(slot + (2 * kSteps + i) * kPieceBytes);
            }
        }
    }
};

template <class T>
__device__ __forceinline__ void widen_four(const uint32_t* words, float (&v)[4]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float pair[2];
        widen_pair(words[i], pair, T());
        v[2 * i] = pair[0], v[2 * i + 1] = pair[1];
    }
}

// A warp's slots, taken in turn: this lane's place in the next to copy to and to read from.
template <int kStages, int kSlotBytes>
struct Ring {
    static constexpr int kBytes = kStages * kSlotBytes;
    unsigned char* own;
    int in = 0, out = 0;

    __device__ __forceinline__ Ring(unsigned char* shared, int warp)
        : own(shared + warp * kBytes + threadIdx.x % 32 * kVectorBytes) {}
    __device__ __forceinline__ unsigned char* to_copy() { return own + turn(in); }
    __device__ __forceinline__ const unsigned char* to_read() { return own + turn(out); }

  private:
    __device__ __forceinline__ static int turn(int& at) {
        const int before = at;
        at = at == (kStages - 1) * kSlotBytes ? 0 : at + kSlotBytes;
        return before;
    }
};

// How many of a lane's rows, 8 apart, are among the next `count`.
__device__ __forceinline__ int clamp_rows(int count, int most) {
    return min(max(ceil_div(count, 8), 0), most);
}

// A tile's rows.
template <class T, Prologue kPrologue>
struct TileRows {
    const T* x;
    const T* g;
    int64_t first;  // row, through all groups
    int group, count;  // count: from this lane's first row on

    // The `rows` rows from `row` on of a group of `all`, as far as they exist.
    __device__ __forceinline__ void place(const Operand& p, int own_group, int64_t all, int64_t row,
                                          int rows, const Lane& lane) {
        group = own_group;
        first = group * all + row;
        count = int(min(int64_t(rows), all - row)) - lane.g;
        x = static_cast<const T*>(p.x) + (first + lane.g) * p.x_step + kLaneChannels * lane.t;
        if (kPrologue == Prologue::kGradient) {
            g = static_cast<const T*>(p.g) + (first + lane.g) * p.channels + kLaneChannels * lane.t;
        }
    }

    // Starts the copies of a chunk to this lane's place in a slot; zeros for what does not exist.
    template <int kSteps>
    __device__ __forceinline__ void copy(const Operand& p, int chunk, int t,
                                         unsigned char* slot) const {
        const int channel = kChunk * chunk;
        const bool exists = channel + kLaneChannels * t < p.channels;
#pragma unroll
        for (int i = 0; i < 2 * kSteps; i++) {
            const bool inside = exists && 8 * i < count;
            copy_async<kVectorBytes>(slot + i * kPieceBytes, x + 8 * i * p.x_step + channel,
                                     inside);
            if constexpr (kPrologue == Prologue::kGradient) {
                copy_async<kVectorBytes>(slot + (2 * kSteps + i) * kPieceBytes,
                                         g + 8 * i * int64_t(p.channels) + channel, inside);
            }
        }
    }
};

// Four neighbouring per-channel parameters in one load, or `absent` where p is null or they are not
// there.
__device__ __forceinline__ void load_parameters4(const float* p, int64_t at, bool exists,
                                                 float absent, float (&v)[4]) {
    if (p != nullptr && exists) {
        load_some(p + at, v);
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] = absent;
    }
}

// The rows' operand, rounded to T, in place of what was loaded: four channels at a time, for their
// parameters take as many registers as the rows.
template <class T, Prologue kPrologue, int kSteps>
__device__ __forceinline__ void apply_prologue(const Operand& p, int group, int chunk, int t,
                                               ChunkRows<kPrologue, kSteps>& rows) {
    if constexpr (kPrologue == Prologue::kNone) return;
    const bool exists = kChunk * chunk + kLaneChannels * t < p.channels;
    const float drop = kPrologue == Prologue::kGradient && p.drop_scale != nullptr
                           ? p.drop_scale[group]
                           : 1.0f;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int c = kChunk * chunk + kLaneChannels * t + 4 * half;
        // kScaled: scale, shift, gate; kGradient: coef.
        float q[4][4];
        if constexpr (kPrologue == Prologue::kScaled) {
            load_parameters4(p.affine, c, exists, 1.0f, q[0]);
            load_parameters4(p.affine, p.channels + c, exists, 0.0f, q[1]);
            load_parameters4(p.gate, int64_t(group) * p.channels + c, exists, 1.0f, q[2]);
#pragma unroll
            for (int e = 0; e < 4; e++) q[0][e] *= p.act.factor, q[1][e] *= p.act.factor;
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                load_parameters4(p.coef, int64_t(i) * p.channels + c, exists, 0.0f, q[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * kSteps; i++) {
            uint32_t* const words = rows.x[i / 2][i % 2].words + 2 * half;
            float v[4];
            widen_four<T>(words, v);
            if constexpr (kPrologue == Prologue::kScaled) {
#pragma unroll
                for (int e = 0; e < 4; e++) v[e] = fmaf(v[e], q[0][e], q[1][e]);
                apply<T>(p.act, v);
#pragma unroll
                for (int e = 0; e < 4; e++) v[e] *= q[2][e];
            } else {
                float g[4];
                widen_four<T>(rows.g[i / 2][i % 2].words + 2 * half, g);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    v[e] = bn_input_grad(drop * g[e], v[e], q[0][e], q[1][e], q[2][e], q[3][e]);
                }
            }
            words[0] = narrow_pair(v[0], v[1], T()), words[1] = narrow_pair(v[2], v[3], T());
        }
    }
}

// Calls f with a null T* for 16-bit types.
template <class F>
cudaError_t with_half_type(DType dtype, F f) {
    if (dtype == DType::kBFloat16) return f(static_cast<__nv_bfloat16*>(nullptr));
    if (dtype == DType::kHalf) return f(static_cast<__half*>(nullptr));
    return cudaErrorInvalidValue;
}

// What the kernels take: whole vectors, evenly spaced pixels.
inline bool whole_pixels(const Pixels& pixels) {
    return pixels.data == nullptr ||
           (reinterpret_cast<uintptr_t>(pixels.data) % kVectorBytes == 0 && pixels.step % 8 == 0);
}

}  // namespace effnet_fast
