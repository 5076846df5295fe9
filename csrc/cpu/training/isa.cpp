#include <stdexcept>

#include "cpu/training/ops.h"

namespace effnet_fast::cpu {

#define EFFNET_FAST_DECLARE(isa, fp32) \
    namespace fp32 { extern const training::Kernels training_kernels; }
EFFNET_FAST_ISAS(EFFNET_FAST_DECLARE)

namespace training {

const Kernels& training_kernels_of(Isa isa) {
    switch (isa) {
#define EFFNET_FAST_CASE(isa, fp32) \
    case Isa::isa:                  \
        return fp32::training_kernels;
        EFFNET_FAST_ISAS(EFFNET_FAST_CASE)
    }
    throw std::invalid_argument("no such instruction set");
}

}  // namespace training
}  // namespace effnet_fast::cpu
