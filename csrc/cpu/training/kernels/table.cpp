// The table of one instruction set. setup.py compiles this file once for each.
#include "cpu/training/kernels/correlate.h"
#include "cpu/training/kernels/excite.h"
#include "cpu/training/kernels/matrix.h"
#include "cpu/training/kernels/passes.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

extern const training::Kernels training_kernels;
const training::Kernels training_kernels = {
    kPanelBlocks, load_tile,    load_gradient_tile, store_tile, five_sums_tile, undo_tile,
    moments_tile, multiply,     outer,              correlate,  taps,           combine,
    activate_all, sigmoid_all,
};

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
