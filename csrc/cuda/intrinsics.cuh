// Single instructions that CUDA has no portable spelling for.
#pragma once

#ifndef EFFNET_FAST_EMULATED
#include <cuda_runtime.h>
#endif

namespace effnet_fast {

// tanh to a relative error of 2^-11 in one MUFU slot (sm_75 and newer): enough for a result that is
// rounded to bf16 (2^-9) or fp16 (2^-12, absolute near 1).
__device__ __forceinline__ float tanh_approx(float x) {
#ifdef EFFNET_FAST_EMULATED
    return emulator::tanh_approx(x);
#else
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// 2^x and 1/x to a relative error of 2^-22 in one MUFU slot each; denormals count as zeros, which
// spares what __expf and __fdividef do for them.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef EFFNET_FAST_EMULATED
    return std::exp2(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

__device__ __forceinline__ float reciprocal_approx(float x) {
#ifdef EFFNET_FAST_EMULATED
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Larger and smaller of two; NaN where either is (fmaxf and fminf would hide it). One slot each.
__device__ __forceinline__ float max_nan(float a, float b) {
#ifdef EFFNET_FAST_EMULATED
    return emulator::max_nan(a, b);
#else
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
#endif
}

__device__ __forceinline__ float min_nan(float a, float b) {
#ifdef EFFNET_FAST_EMULATED
    return emulator::min_nan(a, b);
#else
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
#endif
}

// Asks for the cache line of p, an address in global memory, to be brought to L2.
__device__ __forceinline__ void prefetch_line(const void* p) {
#ifdef EFFNET_FAST_EMULATED
    (void)*static_cast<const volatile char*>(p);
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// The same pointer to global memory, without the terms it was summed from: those the compiler would
// sum again at every use, to save the register pair of their sum.
template <class P>
__device__ __forceinline__ P* opaque_global(P* p) {
#ifndef EFFNET_FAST_EMULATED
    asm volatile("" : "+l"(p));
    __builtin_assume(__isGlobal(p));
#endif
    return p;
}
__device__ __forceinline__ int opaque(int v) {
#ifndef EFFNET_FAST_EMULATED
    asm volatile("" : "+r"(v));
#endif
    return v;
}

}  // namespace effnet_fast
