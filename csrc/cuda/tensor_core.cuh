// Matrix fragments from shared memory for tensor cores (sm_80 and newer), and products of them that
// begin with other sums than they end with.
//
// A fragment spreads a matrix of 16-bit elements over a warp, two neighbours of a row in a
// register. With g = lane / 4 and t = lane % 4, an 8 x 8 matrix has row g, columns 2 t and 2 t + 1
// in its register; of the products' 16 x 8 fp32 results a lane has rows g and g + 8 of those
// columns.
#pragma once

#include <type_traits>

#include "cuda/mma.cuh"
#include "cuda/numeric.cuh"

namespace effnet_fast {

// Four 8 x 8 matrices from shared memory. Lane 8 m + r passes the address of row r of matrix m: 16
// bytes, aligned. All lanes of the warp call it.
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&matrices)[4]) {
#ifdef EFFNET_FAST_EMULATED
    emulator::load_matrices(row, matrices);
#else
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
#endif
}

// d = c + [a0 a2; a1 a3] [b0; b1]: 16 x 16 times 16 x 8, of which the operand b is held transposed.
template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1, const float (&c)[4]) {
#ifdef EFFNET_FAST_EMULATED
    float sum[4] = {c[0], c[1], c[2], c[3]};
    multiply_add<T>(sum, a[0], a[1], a[2], a[3], b0, b1);
    for (int i = 0; i < 4; i++) d[i] = sum[i];
#else
    if constexpr (std::is_same_v<T, __half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
              "f"(c[2]), "f"(c[3]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
              "f"(c[2]), "f"(c[3]));
    }
#endif
}

// d = c + [a0; a1] b: 16 x 8 times 8 x 8.
template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b,
                                             const float (&c)[4]) {
#ifdef EFFNET_FAST_EMULATED
    const uint32_t a[4] = {a0, a1, 0, 0};
    multiply_add<T>(d, a, b, 0, c);
#else
    if constexpr (std::is_same_v<T, __half>) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    } else {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
            : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    }
#endif
}

// Whether any lane's value is NaN. In the emulator, where unwritten memory is NaN, an error unless
// the test says that its operands may be.
__device__ __forceinline__ bool any_nan(float value) {
#ifdef EFFNET_FAST_EMULATED
    return emulator::any_nan(value);
#else
    return __any_sync(0xffffffffu, value != value);
#endif
}

}  // namespace effnet_fast
