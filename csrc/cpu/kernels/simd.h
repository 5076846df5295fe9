// The registers of one instruction set, as the compiler's own vectors: arithmetic is written with
// operators, and a multiplication that is added becomes one FMA where there is one.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "cpu/kernels/kernels.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kPanelBlocks = 2, kMaxRows = 14;  // 28 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kPanelBlocks = 1, kMaxRows = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kPanelBlocks = 1, kMaxRows = 6;  // 24 of 32
#else
constexpr int kLanes = 4;
constexpr int kPanelBlocks = 1, kMaxRows = 3;  // 12 of 16
#endif
constexpr int kPer = kBlock / kLanes;  // registers for one block

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int IntVec __attribute__((vector_size(4 * kLanes)));
typedef Vec UnalignedVec __attribute__((aligned(4)));
typedef unsigned UnsignedVec __attribute__((vector_size(4 * kLanes)));
typedef unsigned short HalfVec __attribute__((vector_size(2 * kLanes)));
typedef HalfVec UnalignedHalfVec __attribute__((aligned(2)));

#define EFFNET_FAST_INLINE static inline __attribute__((always_inline))

EFFNET_FAST_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
EFFNET_FAST_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
EFFNET_FAST_INLINE Vec broadcast(float x) { return x - Vec{}; }

EFFNET_FAST_INLINE Vec load(const Bf16* p) {
    const HalfVec half = *reinterpret_cast<const UnalignedHalfVec*>(p);
    return reinterpret_cast<Vec>(__builtin_convertvector(half, UnsignedVec) << 16);
}

// To nearest, ties to even; NaN stays NaN. AVX512_BF16's own instruction also makes denormals zero.
EFFNET_FAST_INLINE void store(Bf16* p, Vec v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    const UnsignedVec bits = reinterpret_cast<UnsignedVec>(v);
    const UnsignedVec rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const UnsignedVec kept = v == v ? rounded : (bits | 0x400000);
    *reinterpret_cast<UnalignedHalfVec*>(p) = __builtin_convertvector(kept >> 16, HalfVec);
#endif
}

// Both give x where it is NaN: what min and max instructions do with their second operand.
EFFNET_FAST_INLINE Vec at_least(Vec bound, Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)bound, (__m512)x);
#else
    return bound > x ? bound : x;
#endif
}

EFFNET_FAST_INLINE Vec at_most(Vec bound, Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)bound, (__m512)x);
#else
    return bound < x ? bound : x;
#endif
}

// exp(x) for any x, NaN included; infinity above 88.38, 0 below -87.7. Relative error 3e-7 where
// |x| < 16: rounding log2(e) costs 1.3e-8 |x|.
EFFNET_FAST_INLINE Vec exp(Vec x) {
    // At these bounds the exponent's bits are those of infinity and of 0.
    x = at_least(broadcast(-88.0296919f), at_most(broadcast(88.7228394f), x));
    const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec shifted = x * 1.44269502f + magic;
    const Vec n = shifted - magic;
    const Vec f = x * 1.44269502f - n;
    Vec p = broadcast(1.535332703e-04f);
    p = p * f + 1.339887502e-03f;
    p = p * f + 9.618437849e-03f;
    p = p * f + 5.550332367e-02f;
    p = p * f + 2.402264774e-01f;
    p = p * f + 6.931471825e-01f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const IntVec exponent = reinterpret_cast<IntVec>(shifted) - 0x4b400000 + 127;
    return p * reinterpret_cast<Vec>(exponent << 23);
#endif
}

// 1 / (1 + exp(-x)) times m. silu(inf) = inf, silu(-inf) = NaN and silu(NaN) = NaN, as in torch;
// below -88.38 it gives -0, torch below -88.72.
EFFNET_FAST_INLINE Vec times_sigmoid(Vec m, Vec x) {
    return m / (1.0f + exp(-x));
}

template <Activation act>
EFFNET_FAST_INLINE Vec activated(Vec x) {
    // torch's relu and relu6 keep NaN: so do comparisons that ask for the change.
    if (act == Activation::relu || act == Activation::relu6) x = x < 0.0f ? Vec{} : x;
    if (act == Activation::relu6) x = x > 6.0f ? broadcast(6.0f) : x;
    if (act == Activation::silu) x = times_sigmoid(x, x);
    return x;
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
