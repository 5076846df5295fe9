#include "cpu/isa.h"

#include <stdexcept>

namespace effnet_fast::cpu {

#define EFFNET_FAST_DECLARE(isa, fp32) \
    namespace isa { extern const Kernels<Bf16> bf16_kernels; } \
    namespace fp32 { extern const Kernels<float> fp32_kernels; }
EFFNET_FAST_ISAS(EFFNET_FAST_DECLARE)

namespace {

struct Tables {
    Isa isa;
    const char* name;
    const Kernels<float>* fp32;
    const Kernels<Bf16>* bf16;
};

#define EFFNET_FAST_ROW(isa, fp32) {Isa::isa, #isa, &fp32::fp32_kernels, &isa::bf16_kernels},
const Tables kTables[] = {EFFNET_FAST_ISAS(EFFNET_FAST_ROW)};

const Tables& tables(Isa isa) {
    for (const Tables& t : kTables) {
        if (t.isa == isa) return t;
    }
    throw std::invalid_argument("no such instruction set");
}

}  // namespace

const char* name(Isa isa) { return tables(isa).name; }
const Kernels<float>& fp32_kernels(Isa isa) { return *tables(isa).fp32; }
const Kernels<Bf16>& bf16_kernels(Isa isa) { return *tables(isa).bf16; }

std::vector<Isa> available_isas() {
#if defined(__x86_64__)
    // The compiler's run-time library also asks whether the system saves the wide registers.
    __builtin_cpu_init();
    std::vector<Isa> found;
    if (!__builtin_cpu_supports("sse4.2")) {
        throw std::runtime_error("effnet_fast's CPU kernels need a processor with SSE4.2");
    }
    found.push_back(Isa::sse42);
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
    found.push_back(Isa::avx2);
    for (const bool supported : {bool(__builtin_cpu_supports("avx512f")),
                                 bool(__builtin_cpu_supports("avx512bw")),
                                 bool(__builtin_cpu_supports("avx512dq")),
                                 bool(__builtin_cpu_supports("avx512vl"))}) {
        if (!supported) return found;
    }
    found.push_back(Isa::avx512);
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(Isa::avx512bf16);
    return found;
#elif defined(__aarch64__)
    return {Isa::neon};
#else
    return {Isa::scalar};
#endif
}

Isa choose_isa(const std::string& wish) {
    const std::vector<Isa> found = available_isas();
    if (wish.empty()) return found.back();
    std::string names;
    for (const Isa isa : found) {
        if (wish == name(isa)) return isa;
        names += names.empty() ? name(isa) : std::string(", ") + name(isa);
    }
    throw std::invalid_argument("unknown instruction set '" + wish + "'; this machine has " +
                                names);
}

}  // namespace effnet_fast::cpu
