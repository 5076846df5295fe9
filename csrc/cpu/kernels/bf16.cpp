// The table for maps and weights in bfloat16. setup.py compiles this file once per instruction set.
#include "cpu/kernels/table.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

extern const Kernels<Bf16> bf16_kernels;
const Kernels<Bf16> bf16_kernels = table<Bf16>();

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
