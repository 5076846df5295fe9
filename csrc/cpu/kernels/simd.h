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
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kPer = kBlock / kLanes;  // registers for one block

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int IntVec __attribute__((vector_size(4 * kLanes)));
typedef unsigned UnsignedVec __attribute__((vector_size(4 * kLanes)));
typedef unsigned short HalfVec __attribute__((vector_size(2 * kLanes)));
typedef Vec UnalignedVec __attribute__((aligned(4), may_alias));
typedef HalfVec UnalignedHalfVec __attribute__((aligned(2), may_alias));
typedef unsigned UnsignedBits __attribute__((aligned(2), may_alias));

#define EFFNET_FAST_INLINE static inline __attribute__((always_inline))
#define EFFNET_FAST_UNROLL _Pragma("GCC unroll 32")

EFFNET_FAST_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
EFFNET_FAST_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
EFFNET_FAST_INLINE Vec broadcast(float x) { return x - Vec{}; }

EFFNET_FAST_INLINE Vec load(const Bf16* p) {
    const HalfVec half = *reinterpret_cast<const UnalignedHalfVec*>(p);
    return reinterpret_cast<Vec>(__builtin_convertvector(half, UnsignedVec) << 16);
}

// The bits of v rounded to the upper half: to nearest, ties to even; NaN stays NaN.
EFFNET_FAST_INLINE UnsignedVec rounded(Vec v) {
    const UnsignedVec bits = reinterpret_cast<UnsignedVec>(v);
    return v == v ? bits + 0x7fff + ((bits >> 16) & 1) : (bits | 0x400000);
}

// AVX512_BF16's own instruction also makes denormals zero.
EFFNET_FAST_INLINE void store(Bf16* p, Vec v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    *reinterpret_cast<UnalignedHalfVec*>(p) = __builtin_convertvector(rounded(v) >> 16, HalfVec);
#endif
}

// `count` neighbouring pixels of a map: a conversion of two Bf16 takes as long as that of one.
template <int count, typename T>
EFFNET_FAST_INLINE void store_pixels(T* p, const Vec* v) {
    int x = 0;
#if defined(__AVX512BF16__)
    EFFNET_FAST_UNROLL for (; sizeof(T) == 2 && x + 2 <= count; x += 2) {
        const __m512bh both = _mm512_cvtne2ps_pbh((__m512)v[x + 1], (__m512)v[x]);
        _mm512_storeu_si512(p + x * kBlock, (__m512i)both);
    }
#endif
    EFFNET_FAST_UNROLL for (; x < count; ++x) store(p + x * kBlock, v[x]);
}

// Two neighbours in each lane, as Bf16 weights lie.
EFFNET_FAST_INLINE Vec low(Vec pairs) {
    return reinterpret_cast<Vec>(reinterpret_cast<UnsignedVec>(pairs) << 16);
}
EFFNET_FAST_INLINE Vec high(Vec pairs) {
    return reinterpret_cast<Vec>(reinterpret_cast<UnsignedVec>(pairs) & 0xffff0000);
}
EFFNET_FAST_INLINE Vec pairs(Vec low, Vec high) {
#if defined(__AVX512BF16__)
    alignas(64) static const short kInterleaved[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (Vec)_mm512_permutexvar_epi16(_mm512_load_si512(kInterleaved), both);
#else
    return reinterpret_cast<Vec>((rounded(low) >> 16) | (rounded(high) & 0xffff0000));
#endif
}

// Both give x where it is NaN: what min and max instructions do with their second operand.
EFFNET_FAST_INLINE Vec at_least(Vec bound, Vec x) { return bound > x ? bound : x; }

EFFNET_FAST_INLINE Vec at_most(Vec bound, Vec x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)bound, (__m512)x);
#else
    return bound < x ? bound : x;
#endif
}

// A register of values as products take them: those of a lane side by side.
template <typename T>
EFFNET_FAST_INLINE Vec load_lanes(const T* p) {
    return *reinterpret_cast<const UnalignedVec*>(p);
}
EFFNET_FAST_INLINE Vec broadcast_lane(const float* p) { return broadcast(*p); }
EFFNET_FAST_INLINE Vec broadcast_lane(const Bf16* p) {
    return reinterpret_cast<Vec>(reinterpret_cast<UnsignedVec>(Vec{}) |
                                 *reinterpret_cast<const UnsignedBits*>(p));
}
EFFNET_FAST_INLINE void store_lanes(float* p, const Vec* v) { store(p, *v); }
EFFNET_FAST_INLINE void store_lanes(Bf16* p, const Vec* v) {
    *reinterpret_cast<UnalignedVec*>(p) = pairs(v[0], v[1]);
}

// sum + x * w, of all the T in each lane. What is not `has` is zero in w.
template <typename T>
EFFNET_FAST_INLINE Vec add_dot(Vec sum, Vec x, Vec w, [[maybe_unused]] bool has_low = true,
                               [[maybe_unused]] bool has_high = true) {
    if constexpr (kPair<T> == 1) {
        return sum + x * w;
    } else {
#if defined(__AVX512BF16__)
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
        if (has_low) sum += low(x) * low(w);
        if (has_high) sum += high(x) * high(w);
        return sum;
#endif
    }
}

// What a sum starts as, and what becomes of it.
template <typename T>
EFFNET_FAST_INLINE Vec started(const float* bias) {
    return kPair<T> == 1 ? load(bias) : Vec{};
}
template <typename T>
EFFNET_FAST_INLINE Vec ended(Vec sum, const float* scale, const float* bias) {
    return kPair<T> == 1 ? sum : sum * load(scale) + load(bias);
}

// Keeps the compiler from moving what made v past what uses it: stages of independent chains stay
// side by side, where the processor finds them.
#if defined(__aarch64__)
#define EFFNET_FAST_KEEP(v) asm("" : "+w"(v))
#elif defined(__AVX512F__)
#define EFFNET_FAST_KEEP(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define EFFNET_FAST_KEEP(v) asm("" : "+x"(v))
#else
#define EFFNET_FAST_KEEP(v)
#endif

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147182f;

#if defined(__AVX512F__)

// 2^(j / 32).
alignas(64) static const float kPowers[32] = {
    1.0f,         1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f,
    1.1637249f,   1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f,
    1.35425556f,  1.38390994f, 1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f,
    1.5759809f,   1.61049032f, 1.64575553f, 1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f,
    1.8340081f,   1.87416768f, 1.91520655f, 1.95714414f};

// v = 1 + exp(-v), `count` times, for any v, NaN included. Relative error of the exponential 2e-7
// where |v| < 16; `rough`, for what is rounded to bfloat16: 1e-4.
//
// 2^n e^r with n a multiple of 1/32: a permutation of 32 powers takes three terms off the
// polynomial. r is what n ln(2) leaves of -v, since log2(e) is rounded five times as far off as
// ln(2).
template <int count, bool rough = false>
EFFNET_FAST_INLINE void one_and_exp_of_minus(Vec* v) {
    const Vec magic = broadcast(393216.0f);  // 1.5 * 2^18: adding it rounds to a multiple of 1/32
    const Vec low = load(kPowers), high = load(kPowers + 16);
    Vec shifted[count], n[count], from[count], power[count];
    EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
        v[i] = at_most(broadcast(88.0296919f), v[i]);  // beyond it n ln(2) - v may be NaN
        shifted[i] = v[i] * -kLog2E + magic;
        from[i] = rough ? 1.0f - v[i] : -v[i];  // 1 + r: all that is rough wants of e^r
        EFFNET_FAST_KEEP(shifted[i]);
    }
    EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
        n[i] = shifted[i] - magic;
        EFFNET_FAST_KEEP(n[i]);
    }
    EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
        v[i] = n[i] * -kLn2 + from[i];
        // By the five lowest bits, those of the fraction.
        power[i] = (Vec)_mm512_permutex2var_ps((__m512)low, (__m512i)shifted[i], (__m512)high);
        EFFNET_FAST_KEEP(v[i]);
    }
    if constexpr (rough) {
        EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
            power[i] = (Vec)_mm512_scalef_ps((__m512)power[i], (__m512)n[i]);
        }
        EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) v[i] = v[i] * power[i] + 1.0f;
        return;
    }
    Vec p[count];
    EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
        p[i] = v[i] * 0.50000727f + 1.0000147f;
        v[i] = v[i] * power[i];
        EFFNET_FAST_KEEP(v[i]);
    }
    EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
        p[i] = p[i] * v[i] + power[i];
        EFFNET_FAST_KEEP(p[i]);
    }
    // Last, so that infinity times NaN is infinity, as this instruction has it: sigmoid(-inf) = 0.
    EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
        v[i] = 1.0f + (Vec)_mm512_scalef_ps((__m512)p[i], (__m512)n[i]);
        EFFNET_FAST_KEEP(v[i]);
    }
}

#else

// v = 1 + exp(-v), `count` times, for any v, NaN included; infinity below -88.38. Relative error of
// the exponential 2e-7 where |v| < 16; `rough`, for what is rounded to bfloat16: 1e-4.
template <int count, bool rough = false>
EFFNET_FAST_INLINE void one_and_exp_of_minus(Vec* v) {
    // e^r over [-ln(2) / 2, ln(2) / 2], from the highest power down.
    constexpr int degree = rough ? 3 : 5;
    constexpr float kCubic[] = {0.165668072f, 0.504963753f, 1.00016423f, 0.99992806f};
    constexpr float kQuintic[] = {8.29766117e-03f, 4.19154036e-02f, 0.166675748f,
                                  0.499988947f,    0.999999692f,    1.00000007f};
    const float* c = rough ? kCubic : kQuintic;
    const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
        // At these bounds the exponent's bits are those of infinity and of 0.
        v[i] = at_least(broadcast(-88.7228394f), at_most(broadcast(88.0296919f), v[i]));
        const Vec shifted = v[i] * -kLog2E + magic;
        const Vec n = shifted - magic;
#if defined(__FMA__) || defined(__aarch64__)
        const Vec r = n * -kLn2 - v[i];
#else  // in two parts, of which the first multiplies exactly
        const Vec r = (n * -0.693359375f - v[i]) + n * 2.12194440e-4f;
#endif
        Vec p = broadcast(c[0]);
        EFFNET_FAST_UNROLL for (int j = 1; j <= degree; ++j) p = p * r + c[j];
        const IntVec exponent = reinterpret_cast<IntVec>(shifted) - 0x4b400000 + 127;
        v[i] = 1.0f + p * reinterpret_cast<Vec>(exponent << 23);
    }
}

#endif

// m / (1 + exp(-x)).
EFFNET_FAST_INLINE Vec times_sigmoid(Vec m, Vec x) {
    one_and_exp_of_minus<1>(&x);
    return m / x;
}

// v = v / (1 + exp(-v)), `count` times, four at a time: four independent chains hide the latency of
// the polynomial. silu(inf) = inf, silu(-inf) = NaN and silu(NaN) = NaN, as in torch.
template <int count, bool rough = false>
EFFNET_FAST_INLINE void silu(Vec* v) {
    constexpr int now = count < 4 ? count : 4;
    Vec e[now];
    EFFNET_FAST_UNROLL for (int i = 0; i < now; ++i) e[i] = v[i];
    one_and_exp_of_minus<now, rough>(e);
    EFFNET_FAST_UNROLL for (int i = 0; i < now; ++i) v[i] = v[i] / e[i];
    if constexpr (count > 4) silu<count - 4, rough>(v + 4);
}

// Whether SiLU may be so, by how its result is stored.
template <typename T>
constexpr bool kRough = sizeof(T) == 2;

template <Activation act, int count, bool rough>
EFFNET_FAST_INLINE void activated(Vec* v) {
    if constexpr (act == Activation::silu) {
        silu<count, rough>(v);
    } else {
        EFFNET_FAST_UNROLL for (int i = 0; i < count; ++i) {
            // torch's relu and relu6 keep NaN: so do comparisons that ask for the change.
            if (act == Activation::relu || act == Activation::relu6) {
                v[i] = v[i] < 0.0f ? Vec{} : v[i];
            }
            if (act == Activation::relu6) v[i] = v[i] > 6.0f ? broadcast(6.0f) : v[i];
        }
    }
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
