// Activations, chosen at run time by a branch that a whole grid takes alike.
//
// All but SiLU are a clamp. SiLU takes *half* its argument, which its affine delivers for nothing
// (scale and shift are halved, exactly): with h = u / 2, sigmoid(u) = (1 + tanh h) / 2 and
// silu(u) = h + h tanh h, one MUFU and one FFMA for bf16. Other types keep exp and division.
#pragma once

#include <type_traits>

#include "cuda/intrinsics.cuh"
#include "cuda/numeric.cuh"

namespace effnet_fast {

struct Act {
    bool silu;
    float low, high;  // of the clamp
    float factor;     // of the argument: 1/2 for SiLU, else 1
};

// False: not an activation.
inline bool make_act(Activation activation, Act* act) {
    switch (activation) {
        case Activation::kIdentity:
            *act = {false, -INFINITY, INFINITY, 1.0f};
            return true;
        case Activation::kRelu:
            *act = {false, 0.0f, INFINITY, 1.0f};
            return true;
        case Activation::kRelu6:
            *act = {false, 0.0f, 6.0f, 1.0f};
            return true;
        case Activation::kSilu:
            *act = {true, 0.0f, 0.0f, 0.5f};
            return true;
    }
    return false;
}

// sigmoid(2 h), as exact as a result stored as T shows: tanh.approx is good to 2^-11, which bf16
// (2^-9) hides and fp16 (2^-12) does not, and ex2.approx and rcp.approx to 2^-21.
template <class T>
__device__ __forceinline__ float sigmoid_of_half(float h) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) return fmaf(0.5f, tanh_approx(h), 0.5f);
    if constexpr (std::is_same_v<T, __half>) {
        constexpr float kLog2E = 1.44269504f;
        return reciprocal_approx(1.0f + exp2_approx(-2.0f * kLog2E * h));
    }
    return 1.0f / (1.0f + expf(-2.0f * h));
}

// The T to ask for where results go into an fp32 sum: no rounding to bf16 will hide tanh.approx.
template <class T>
using Summand = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, __half, T>;

template <class T>
__device__ __forceinline__ float silu_of_half(float h) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) return fmaf(h, tanh_approx(h), h);
    return 2.0f * h * sigmoid_of_half<T>(h);
}

// Two comparisons rather than fmaxf and fminf, so that NaN stays NaN.
__device__ __forceinline__ float clamp(float u, float low, float high) {
    u = u < low ? low : u;
    return u > high ? high : u;
}

// u is already times act.factor.
template <class T>
__device__ __forceinline__ float apply(const Act& act, float u) {
    return act.silu ? silu_of_half<T>(u) : clamp(u, act.low, act.high);
}

// The same for an array, with one branch for all of it.
template <class T, int kCount>
__device__ __forceinline__ void apply(const Act& act, float (&u)[kCount]) {
    if (act.silu) {
#pragma unroll
        for (int i = 0; i < kCount; i++) u[i] = silu_of_half<T>(u[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kCount; i++) u[i] = clamp(u[i], act.low, act.high);
    }
}

// silu(u) and silu'(u) at h = u / 2. With t = tanh h, silu' = (1 + t + h (1 - t t)) / 2.
template <class T>
__device__ __forceinline__ float silu_and_slope(float h, float* derivative) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        const float t = tanh_approx(h);
        *derivative = fmaf(0.5f, fmaf(h, fmaf(-t, t, 1.0f), t), 0.5f);
        return fmaf(h, t, h);
    } else {
        const float s = sigmoid_of_half<T>(h), value = 2.0f * h * s;
        *derivative = fmaf(value, 1.0f - s, s);
        return value;
    }
}

// act(u), and act'(u): at the ends of a clamp 0, as in torch. u is already times act.factor.
template <class T>
__device__ __forceinline__ float apply_and_slope(const Act& act, float u, float* derivative) {
    if (act.silu) return silu_and_slope<T>(u, derivative);
    *derivative = u > act.low && u < act.high ? 1.0f : 0.0f;
    return clamp(u, act.low, act.high);
}

// The same for arrays, with one branch for all of it: u -> act(u), slopes = act'(u).
template <class T, int kCount>
__device__ __forceinline__ void apply_and_slopes(const Act& act, float (&u)[kCount],
                                                 float (&slopes)[kCount]) {
    if (act.silu) {
#pragma unroll
        for (int i = 0; i < kCount; i++) u[i] = silu_and_slope<T>(u[i], &slopes[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kCount; i++) {
            slopes[i] = u[i] > act.low && u[i] < act.high ? 1.0f : 0.0f;
            u[i] = clamp(u[i], act.low, act.high);
        }
    }
}

// u -> act'(u).
template <class T, int kCount>
__device__ __forceinline__ void to_slopes(const Act& act, float (&u)[kCount]) {
    if (act.silu) {
#pragma unroll
        for (int i = 0; i < kCount; i++) silu_and_slope<T>(u[i], &u[i]);
    } else {
#pragma unroll
        for (int i = 0; i < kCount; i++) u[i] = u[i] > act.low && u[i] < act.high ? 1.0f : 0.0f;
    }
}

}  // namespace effnet_fast
