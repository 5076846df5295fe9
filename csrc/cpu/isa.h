// The instruction sets that csrc/cpu/kernels is compiled for, and the one that this machine runs.
//
// setup.py compiles every file of csrc/cpu/kernels once per instruction set, with the compiler's
// flags for it and EFFNET_FAST_ISA defined as its name. All they define lies in the namespace
// effnet_fast::cpu::EFFNET_FAST_ISA, and they include no header with code of its own (no <vector>,
// no <cmath>): a linker that merged such code could take it from the AVX-512 copy.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace effnet_fast::cpu {

// Each instruction set, and the one whose table for fp32 it takes. In ascending order: a machine
// that runs one of x86-64's runs all before it. avx2 is with FMA; avx512 is F, BW, DQ and VL;
// avx512bf16 is that and AVX512_BF16, which adds nothing to fp32.
#if defined(__x86_64__)
#define EFFNET_FAST_ISAS(X) \
    X(sse42, sse42) X(avx2, avx2) X(avx512, avx512) X(avx512bf16, avx512)
#elif defined(__aarch64__)
#define EFFNET_FAST_ISAS(X) X(neon, neon)
#else
#define EFFNET_FAST_ISAS(X) X(scalar, scalar)
#endif

#define EFFNET_FAST_NAME(isa, fp32) isa,
enum class Isa { EFFNET_FAST_ISAS(EFFNET_FAST_NAME) };
#undef EFFNET_FAST_NAME

const char* name(Isa isa);

// Those that this machine runs, ascending. At least one.
std::vector<Isa> available_isas();

// The one called `wish`; the best available if it is empty. std::invalid_argument, with the names
// of those there are, for any other.
Isa choose_isa(const std::string& wish);

const Kernels<float>& fp32_kernels(Isa isa);
const Kernels<Bf16>& bf16_kernels(Isa isa);

}  // namespace effnet_fast::cpu
