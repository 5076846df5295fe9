// CUDA's built-in device functions, as far as csrc/cuda uses them, for the emulator.
#pragma once

#define EMULATOR_SITE emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

namespace emulator {

// tanh.approx.f32 is within a relative 2^-11 (PTX manual); this one is as far off as it may be.
inline float tanh_approx(float x) {
    const float exact = std::tanh(x);
    float rounded;
    uint32_t bits;
    std::memcpy(&bits, &exact, sizeof bits);
    bits = (bits + (1u << 12)) & ~((1u << 13) - 1);  // 10 bits of the fraction stay: 2^-11 at most
    std::memcpy(&rounded, &bits, sizeof rounded);
    return rounded;
}

inline float max_nan(float a, float b) { return a != a || a > b ? a : b; }
inline float min_nan(float a, float b) { return a != a || a < b ? a : b; }

template <class To, class From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "the bits of one are those of the other");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline int segment(int width) { return lane() & ~(width - 1); }

// mma.sync.m16n8k16: row-major A, column-major B, C in fp32. `unpack` makes two floats of a word.
template <class Unpack>
void mma_m16n8k16(float (&c)[4], std::array<uint32_t, 4> a, std::array<uint32_t, 2> b,
                  Unpack unpack, EMULATOR_SITE) {
    float own[6][2];
    for (int i = 0; i < 4; i++) unpack(a[i], own[i]);
    for (int i = 0; i < 2; i++) unpack(b[i], own[4 + i]);
    multiply_matrices(c, own, site);
}

// movmatrix.sync.m8n8.trans.b16.
inline uint32_t movmatrix_trans(uint32_t pair, EMULATOR_SITE) {
    const Lanes& lanes = all_gather(0xffffffffu, &pair, sizeof pair, site);
    const int g = lane() / 4, t = lane() % 4;
    uint16_t result[2];
    for (int e = 0; e < 2; e++)  // element (row 2 t + e, column g)
        std::memcpy(&result[e], lanes.bytes[4 * (2 * t + e) + g / 2] + 2 * (g % 2), 2);
    uint32_t bits;
    std::memcpy(&bits, result, sizeof bits);
    return bits;
}

}  // namespace emulator

// ---------------------------------------------------------------- warp collectives

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
    emulator::all_gather(mask, nullptr, 0, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_SITE) {
    const int from = emulator::segment(width) | (source & (width - 1));
    return emulator::exchange(mask, value, from, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_SITE) {
    const int lane = emulator::lane(), from = lane ^ bits;
    const bool here = from < emulator::segment(width) + width;
    return emulator::exchange(mask, value, here ? from : lane, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
    const int lane = emulator::lane(), from = lane + static_cast<int>(delta);
    const bool here = from < emulator::segment(width) + width;
    return emulator::exchange(mask, value, here ? from : lane, site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
    const int lane = emulator::lane(), from = lane - static_cast<int>(delta);
    const bool here = from >= emulator::segment(width);
    return emulator::exchange(mask, value, here ? from : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    const unsigned char mine = predicate != 0;
    const emulator::Lanes& lanes = emulator::all_gather(mask, &mine, 1, site);
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1u) votes |= unsigned(lanes.bytes[i][0]) << i;
    return votes;
}

inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return __ballot_sync(mask, predicate, site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
    return __ballot_sync(mask, predicate, site) == mask;
}

inline unsigned __activemask() { return emulator::alive_lanes(); }

// ---------------------------------------------------------------- memory

template <class T, class U>
T atomicAdd(T* p, U value) {
    const T old = *p;
    *p = old + T(value);
    return old;
}

inline unsigned atomicInc(unsigned* p, unsigned limit) {
    const unsigned old = *p;
    *p = old >= limit ? 0 : old + 1;
    return old;
}

template <class T>
T atomicExch(T* p, T value) {
    const T old = *p;
    *p = value;
    return old;
}

template <class T>
T __ldg(const T* p) { return *p; }
template <class T>
T __ldcg(const T* p) { return *p; }
template <class T>
T __ldca(const T* p) { return *p; }
template <class T>
T __ldcs(const T* p) { return *p; }
template <class T>
T __ldlu(const T* p) { return *p; }
template <class T>
void __stcg(T* p, T value) { *p = value; }
template <class T>
void __stcs(T* p, T value) { *p = value; }
template <class T>
void __stwt(T* p, T value) { *p = value; }

inline void __threadfence() {}
inline void __threadfence_block() {}

// ---------------------------------------------------------------- arithmetic

using std::max;
using std::min;

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __int_as_float(int x) { return emulator::bit_cast<float>(x); }
inline int __float_as_int(float x) { return emulator::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bit_cast<unsigned>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

#undef EMULATOR_SITE
