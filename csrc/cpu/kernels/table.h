// One instruction set's functions for maps and weights of type T.
#pragma once

#include "cpu/kernels/depthwise.h"
#include "cpu/kernels/stem.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

template <typename T>
constexpr Kernels<T> table() {
    return {kPanelBlocks,
            image_row<T>,
            stem<T>,
            product<true, T, float>,
            product<false, T, T>,
            fill<T>,
            depthwise<T>,
            activate<kRough<T>, float>,
            convert<float, T>,
            convert<T, float>,
            add_product<T>,
            excite<T>,
            scale_rows<T>,
            scale_map<T>};
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
