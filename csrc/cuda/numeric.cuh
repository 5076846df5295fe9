// Storage types and 16-byte vectors. Whatever is stored, arithmetic is fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/ops.h"

namespace effnet_fast {

constexpr int kVectorBytes = 16;

// Elements of T in one 16-byte vector: 8 of 16 bits, 4 of fp32.
template <class T>
constexpr int kVector = kVectorBytes / int(sizeof(T));

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }

template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
    return v;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
    return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
    return __float2half_rn(v);
}

// kCount neighbouring elements as fp32, in one load or store of kCount * sizeof(T) bytes (at most
// 16, and a multiple of 4), to which p is aligned; in global or shared memory.
template <int kBytes>
struct Raw;
template <>
struct Raw<4> {
    using type = uint32_t;
};
template <>
struct Raw<8> {
    using type = uint2;
};
template <>
struct Raw<16> {
    using type = uint4;
};

__device__ __forceinline__ void widen_pair(uint32_t bits, float (&v)[2], __nv_bfloat16) {
    // bf16 is the upper half of fp32: a shift and a mask, one instruction each.
    v[0] = __uint_as_float(bits << 16), v[1] = __uint_as_float(bits & 0xffff0000u);
}
__device__ __forceinline__ void widen_pair(uint32_t bits, float (&v)[2], __half) {
    __half2 pair;
    __builtin_memcpy(&pair, &bits, sizeof(pair));
    const float2 wide = __half22float2(pair);
    v[0] = wide.x, v[1] = wide.y;
}
__device__ __forceinline__ uint32_t narrow_pair(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    __builtin_memcpy(&bits, &pair, sizeof(bits));
    return bits;
}
__device__ __forceinline__ uint32_t narrow_pair(float low, float high, __half) {
    const __half2 pair = __floats2half2_rn(low, high);
    uint32_t bits;
    __builtin_memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

template <class T, int kCount>
__device__ __forceinline__ void load_some(const T* p, float (&v)[kCount]) {
    using R = typename Raw<kCount* int(sizeof(T))>::type;
    const R raw = *reinterpret_cast<const R*>(p);
    if constexpr (sizeof(T) == 4) {
        __builtin_memcpy(v, &raw, sizeof(raw));
    } else {
        uint32_t words[kCount / 2];
        __builtin_memcpy(words, &raw, sizeof(raw));
#pragma unroll
        for (int i = 0; i < kCount / 2; i++) {
            float pair[2];
            widen_pair(words[i], pair, T());
            v[2 * i] = pair[0], v[2 * i + 1] = pair[1];
        }
    }
}

template <class T, int kCount>
__device__ __forceinline__ void store_some(T* p, const float (&v)[kCount]) {
    using R = typename Raw<kCount* int(sizeof(T))>::type;
    R raw;
    if constexpr (sizeof(T) == 4) {
        __builtin_memcpy(&raw, v, sizeof(raw));
    } else {
        uint32_t words[kCount / 2];
#pragma unroll
        for (int i = 0; i < kCount / 2; i++) words[i] = narrow_pair(v[2 * i], v[2 * i + 1], T());
        __builtin_memcpy(&raw, words, sizeof(raw));
    }
    *reinterpret_cast<R*>(p) = raw;
}

// Element i of a vector whose type is known at run time; a few loads per channel and launch.
__device__ __forceinline__ float load_any(const void* p, DType dtype, int64_t i) {
    switch (dtype) {
        case DType::kFloat32:
            return static_cast<const float*>(p)[i];
        case DType::kBFloat16:
            return to_float(static_cast<const __nv_bfloat16*>(p)[i]);
        case DType::kHalf:
            return to_float(static_cast<const __half*>(p)[i]);
    }
    return 0.0f;
}

__device__ __forceinline__ void store_any(void* p, DType dtype, int64_t i, float v) {
    switch (dtype) {
        case DType::kFloat32:
            static_cast<float*>(p)[i] = v;
            return;
        case DType::kBFloat16:
            static_cast<__nv_bfloat16*>(p)[i] = from_float<__nv_bfloat16>(v);
            return;
        case DType::kHalf:
            static_cast<__half*>(p)[i] = from_float<__half>(v);
            return;
    }
}

__device__ __forceinline__ float load_or(const Param& p, int64_t i, float absent) {
    return p.data == nullptr ? absent : load_any(p.data, p.dtype, i);
}

template <class I>
__host__ __device__ constexpr I ceil_div(I a, I b) {
    return (a + b - 1) / b;
}

// Calls f with a null T* for the C++ type of `dtype`; other values: cudaErrorInvalidValue.
template <class F>
cudaError_t with_type(DType dtype, F f) {
    switch (dtype) {
        case DType::kFloat32:
            return f(static_cast<float*>(nullptr));
        case DType::kBFloat16:
            return f(static_cast<__nv_bfloat16*>(nullptr));
        case DType::kHalf:
            return f(static_cast<__half*>(nullptr));
    }
    return cudaErrorInvalidValue;
}

inline size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

inline bool dense_rows(const Map& map, int w) { return map.h_stride == w * map.w_stride; }

inline Map dense_map(const void* data, int h, int w, int c) {
    return {data, int64_t(h) * w * c, int64_t(w) * c, c};
}

// Whether every pixel of a map starts on a 16-byte boundary and holds whole vectors. True of none.
inline bool whole_vectors(const Map& map, DType dtype, int c) {
    if (map.data == nullptr) return true;
    const int vector = kVectorBytes / int(size_of(dtype));
    return (reinterpret_cast<uintptr_t>(map.data) % kVectorBytes | c % vector |
            map.n_stride % vector | map.h_stride % vector | map.w_stride % vector) == 0;
}

}  // namespace effnet_fast
