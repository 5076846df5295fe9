// Channels by blocks.
#pragma once

#include "cpu/kernels/kernels.h"

namespace effnet_fast::cpu {

inline int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

}  // namespace effnet_fast::cpu
