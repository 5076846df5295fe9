// The table for maps and weights in fp32. setup.py compiles this file once per instruction set.
#include "cpu/kernels/table.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

extern const Kernels<float> fp32_kernels;
const Kernels<float> fp32_kernels = table<float>();

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
