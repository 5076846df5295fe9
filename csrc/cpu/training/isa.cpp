#include <stdexcept>

#include "cpu/training/ops.h"

namespace effnet_fast::cpu {

#if defined(__x86_64__)
namespace sse42 { extern const training::Kernels training_kernels; }
namespace avx2 { extern const training::Kernels training_kernels; }
namespace avx512 { extern const training::Kernels training_kernels; }
#elif defined(__aarch64__)
namespace neon { extern const training::Kernels training_kernels; }
#else
namespace scalar { extern const training::Kernels training_kernels; }
#endif

namespace training {

const Kernels& training_kernels_of(Isa isa) {
    switch (isa) {
#if defined(__x86_64__)
        case Isa::sse42:
            return sse42::training_kernels;
        case Isa::avx2:
            return avx2::training_kernels;
        case Isa::avx512:
        case Isa::avx512bf16:
            return avx512::training_kernels;
#elif defined(__aarch64__)
        case Isa::neon:
            return neon::training_kernels;
#else
        case Isa::scalar:
            return scalar::training_kernels;
#endif
    }
    throw std::invalid_argument("no such instruction set");
}

}  // namespace training
}  // namespace effnet_fast::cpu
