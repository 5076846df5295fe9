// One Bf16 at a time; registers of them are in kernels/simd.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/kernels.h"

namespace effnet_fast::cpu {

inline float to_float(Bf16 from) {
    const uint32_t bits = uint32_t(from.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To nearest, ties to even; NaN stays NaN.
inline Bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = value == value ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
    return {static_cast<unsigned short>(rounded >> 16)};
}

}  // namespace effnet_fast::cpu
