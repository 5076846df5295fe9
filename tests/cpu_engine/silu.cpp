// SiLU of the floats of the standard input, as the engine computes it for maps of fp32, then as for
// bfloat16 before it is rounded.
#include <cstdio>
#include <vector>

#include "cpu/kernels/activation.h"

using namespace effnet_fast::cpu;
namespace isa = effnet_fast::cpu::EFFNET_FAST_ISA;

int main() {
    std::vector<float> x(1 << 22);
    const size_t count = std::fread(x.data(), sizeof(float), x.size(), stdin);
    x.resize((count + kBlock - 1) / kBlock * kBlock);
    const int pixels = int(x.size() / kBlock);
    std::vector<float> fine = x, rough = x;
    isa::activate<false>(fine.data(), pixels, Activation::silu, nullptr);
    isa::activate<true>(rough.data(), pixels, Activation::silu, nullptr);
    std::fwrite(fine.data(), sizeof(float), count, stdout);
    std::fwrite(rough.data(), sizeof(float), count, stdout);
}
