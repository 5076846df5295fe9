#include "cpu/isa.h"

#include <stdexcept>

namespace effnet_fast::cpu {

const char* name(Isa isa) {
    switch (isa) {
#if defined(__x86_64__)
        case Isa::sse42:
            return "sse42";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
#elif defined(__aarch64__)
        case Isa::neon:
            return "neon";
#else
        case Isa::scalar:
            return "scalar";
#endif
    }
    throw std::invalid_argument("no such instruction set");
}

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
    return found;
#elif defined(__aarch64__)
    return {Isa::neon};
#else
    return {Isa::scalar};
#endif
}

#if defined(__x86_64__)
namespace sse42 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#elif defined(__aarch64__)
namespace neon { extern const Kernels kernels; }
#else
namespace scalar { extern const Kernels kernels; }
#endif

const Kernels& kernels_of(Isa isa) {
    switch (isa) {
#if defined(__x86_64__)
        case Isa::sse42:
            return sse42::kernels;
        case Isa::avx2:
            return avx2::kernels;
        case Isa::avx512:
            return avx512::kernels;
#elif defined(__aarch64__)
        case Isa::neon:
            return neon::kernels;
#else
        case Isa::scalar:
            return scalar::kernels;
#endif
    }
    throw std::invalid_argument("no such instruction set");
}

Isa choose_isa(const std::string& wish) {
    const std::vector<Isa> found = available_isas();
    if (wish.empty()) return found.back();
    std::string names;
    for (const Isa isa : found) {
        if (wish == name(isa)) return isa;
        names += names.empty() ? name(isa) : std::string(", ") + name(isa);
    }
    throw std::invalid_argument("unknown instruction set '" + wish + "'; this machine has " + names);
}

}  // namespace effnet_fast::cpu
