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
    std::vector<int> offset(x.size() / kBlock);
    for (size_t i = 0; i < offset.size(); ++i) offset[i] = int(i) * kBlock;
    const int pixels = int(offset.size());
    std::vector<float> fine = x, rough = x;
    isa::activate<false>(fine.data(), offset.data(), pixels, Activation::silu, nullptr);
    isa::activate<true>(rough.data(), offset.data(), pixels, Activation::silu, nullptr);
    std::fwrite(fine.data(), sizeof(float), count, stdout);
    std::fwrite(rough.data(), sizeof(float), count, stdout);
}
