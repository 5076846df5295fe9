// Channels by registers: whole ones, and a last one of which only some lanes exist in memory.
#pragma once

#include "cpu/kernels/simd.h"
#include "cpu/training/kernels/kernels.h"

#define EFFNET_FAST_MEMBER inline __attribute__((always_inline))

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

typedef double DoubleVec __attribute__((vector_size(8 * kLanes)));
typedef DoubleVec UnalignedDoubleVec __attribute__((aligned(8), may_alias));

#if defined(__AVX512F__)
EFFNET_FAST_INLINE void add_half(double* p, __mmask8 mask, __m256 v) {
    const __m512d sum = _mm512_add_pd(_mm512_maskz_loadu_pd(mask, p), _mm512_cvtps_pd(v));
    _mm512_mask_storeu_pd(p, mask, sum);
}
#endif

struct Whole {
    template <class T>
    EFFNET_FAST_MEMBER Vec get(const T* p) const { return load(p); }
    template <class T>
    EFFNET_FAST_MEMBER void put(T* p, Vec v) const { store(p, v); }
    EFFNET_FAST_MEMBER void add(double* p, Vec v) const {
#if defined(__AVX512F__)  // GCC's own way leads through memory
        add_half(p, 0xff, _mm512_castps512_ps256((__m512)v));
        add_half(p + 8, 0xff, _mm512_extractf32x8_ps((__m512)v, 1));
#else
        *reinterpret_cast<UnalignedDoubleVec*>(p) += __builtin_convertvector(v, DoubleVec);
#endif
    }
};

// Lanes that do not exist are read as 0.
struct Part {
    int count;

    EFFNET_FAST_MEMBER Vec get(const float* p) const {
#if defined(__AVX512F__)
        return (Vec)_mm512_maskz_loadu_ps(mask(), p);
#else
        float whole[kLanes] = {};
        for (int i = 0; i < count; ++i) whole[i] = p[i];
        return load(whole);
#endif
    }
    EFFNET_FAST_MEMBER Vec get(const Bf16* p) const {
#if defined(__AVX512F__)
        const HalfVec half = (HalfVec)_mm256_maskz_loadu_epi16(mask(), p);
        return reinterpret_cast<Vec>(__builtin_convertvector(half, UnsignedVec) << 16);
#else
        Bf16 whole[kLanes] = {};
        for (int i = 0; i < count; ++i) whole[i] = p[i];
        return load(whole);
#endif
    }
    EFFNET_FAST_MEMBER void put(float* p, Vec v) const {
#if defined(__AVX512F__)
        _mm512_mask_storeu_ps(p, mask(), (__m512)v);
#else
        for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
    }
    EFFNET_FAST_MEMBER void put(Bf16* p, Vec v) const {
        Bf16 whole[kLanes];
        store(whole, v);
        for (int i = 0; i < count; ++i) p[i] = whole[i];
    }
    EFFNET_FAST_MEMBER void add(double* p, Vec v) const {
#if defined(__AVX512F__)
        add_half(p, __mmask8(mask()), _mm512_castps512_ps256((__m512)v));
        add_half(p + 8, __mmask8(mask() >> 8), _mm512_extractf32x8_ps((__m512)v, 1));
#else
        for (int i = 0; i < count; ++i) p[i] += v[i];
#endif
    }

#if defined(__AVX512F__)
    EFFNET_FAST_MEMBER __mmask16 mask() const { return __mmask16((1 << count) - 1); }
#endif
};

template <class F>
EFFNET_FAST_INLINE void for_channels(int channels, F f) {
    int c = 0;
    for (; c + kLanes <= channels; c += kLanes) f(c, Whole{});
    if (c < channels) f(c, Part{channels - c});
}

// Where channel c of the first pixel is in a blocked buffer.
template <class T>
EFFNET_FAST_INLINE T* blocked(T* p, int c, long stride) {
    return p ? p + c / kBlock * stride + c % kBlock : nullptr;
}

template <class Lanes>
EFFNET_FAST_INLINE Vec get_or(Lanes lanes, const float* p, int c, float absent) {
    return p ? lanes.get(p + c) : broadcast(absent);
}

template <Activation of>
struct Act {
    static constexpr Activation value = of;
};

template <class F>
EFFNET_FAST_INLINE void with_activation(Activation act, F f) {
    switch (act) {
        case Activation::identity:
            return f(Act<Activation::identity>{});
        case Activation::relu:
            return f(Act<Activation::relu>{});
        case Activation::relu6:
            return f(Act<Activation::relu6>{});
        case Activation::silu:
            return f(Act<Activation::silu>{});
    }
}

// f(an element of the type, the activation).
template <class F>
EFFNET_FAST_INLINE void with_types(training::Type type, Activation act, F f) {
    with_activation(act, [&](auto of) {
        type == training::Type::f32 ? f(float{}, of) : f(Bf16{}, of);
    });
}

template <Activation act>
EFFNET_FAST_INLINE Vec value_of(Vec u) {
    activated<act, 1, false>(&u);
    return u;
}

struct ValueAndSlope {
    Vec value, slope;
};

// At the kinks the slope is 0, as in torch.
template <Activation act>
EFFNET_FAST_INLINE ValueAndSlope value_and_slope(Vec u) {
    const Vec one = broadcast(1.0f);
    switch (act) {
        case Activation::identity:
            return {u, one};
        case Activation::relu:
            return {value_of<act>(u), u <= 0.0f ? Vec{} : one};
        case Activation::relu6: {
            const Vec above = u >= 6.0f ? Vec{} : one;
            return {value_of<act>(u), u <= 0.0f ? Vec{} : above};
        }
        case Activation::silu: {
            const Vec s = times_sigmoid(one, u);
            const Vec a = u * s;
            return {a, s + a * (1.0f - s)};
        }
    }
    return {u, one};
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
