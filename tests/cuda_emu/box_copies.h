// Box copies for the emulator: what csrc/cuda/box_copy.cuh asks for. A box arrives in the wait that
// completes its barrier's phase, and its target holds NaN until then.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "scheduler.h"

namespace emulator {

// Whether the device has them.
bool has_box_copies();

// A tensor and the boxes cut from it, innermost axis first.
struct BoxTensor {
    const void* data;
    int64_t lengths[4];
    int64_t strides[4];  // in bytes; that of the innermost axis is an element's
    int64_t box[4];
};

// cudaErrorInvalidValue for what cuTensorMapEncodeTiled does not take with 64-byte swizzling. `map`
// has room for 128 bytes, aligned to 64.
cudaError_t make_boxes(const BoxTensor& tensor, void* map);

struct BoxPlace {
    int at[4];
};

void make_box_barrier(void* barrier, Site site = {__builtin_FILE(), __builtin_LINE()});
void expect_boxes(void* barrier, int bytes, Site site = {__builtin_FILE(), __builtin_LINE()});
void copy_box(void* shared, const void* map, BoxPlace place, void* barrier,
              Site site = {__builtin_FILE(), __builtin_LINE()});
void wait_boxes(void* barrier, int parity, Site site = {__builtin_FILE(), __builtin_LINE()});

}  // namespace emulator
