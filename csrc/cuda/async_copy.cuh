// Asynchronous copies from global to shared memory (cp.async, sm_80 and newer).
//
//     copy_async<16>(to_shared, from_global, inside);  // zeros where not inside: nothing is read
//     commit_async();                                  // closes a group, which may be empty
//     wait_async<1>();                                 // all groups of this thread but the last 1
//     __syncthreads();                                 // a thread's wait is for its own copies
//
// The emulator of the tests completes a copy only in the matching wait_async and poisons its target
// until then, so that a missing wait shows.
#pragma once

#ifndef EFFNET_FAST_EMULATED
#include <cuda_runtime.h>
#endif

namespace effnet_fast {

// Both addresses are multiples of kBytes, which is 4, 8 or 16.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool inside) {
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "the sizes cp.async has");
#ifdef EFFNET_FAST_EMULATED
    emulator::copy_async(shared, global, kBytes, inside);
#else
    const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const int bytes = inside ? kBytes : 0;
    if constexpr (kBytes == 16) {
        // .cg: past L1, which could not hold a line until its next use. .L2::128B: the rest of the
        // line is another block's, which asks for it at about the same time.
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target),
                     "l"(global), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(global),
                     "n"(kBytes), "r"(bytes) : "memory");
    }
#endif
}

__device__ __forceinline__ void commit_async() {
#ifdef EFFNET_FAST_EMULATED
    emulator::commit_async();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPending>
__device__ __forceinline__ void wait_async() {
#ifdef EFFNET_FAST_EMULATED
    emulator::wait_async(kPending);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace effnet_fast
