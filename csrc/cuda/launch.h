// One spelling of a launch, and of dynamic shared memory, for nvcc and for the CPU emulator of the
// tests (which defines EFFNET_FAST_EMULATED and includes its own header before anything else).
//
//     return launch(some_kernel<3, float>, dim3(blocks), dim3(256), shared_bytes, stream, a, b);
//
// Only this header, cluster.cuh, async_copy.cuh, box_copy.cuh and intrinsics.cuh know of the
// emulator.
#pragma once

#ifndef EFFNET_FAST_EMULATED
#include <cuda_runtime.h>

#include <cstddef>
#include <utility>
#endif

namespace effnet_fast {

// More than this needs the kernel's consent, which launch() gives.
constexpr size_t kDefaultSharedBytes = 48 * 1024;
// What one block may have on every architecture from sm_80 on (sm_86, sm_89 and sm_120: 99 KB).
constexpr int kMaxSharedBytes = 99 * 1024;

// Streaming multiprocessors of the current device, at least 1: what persistent grids and their
// workspaces are sized by. Asks the runtime's own table, so it is allowed while capturing a graph.
inline int multiprocessors() {
    int device = 0, count = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 1;
    const auto wanted = cudaDevAttrMultiProcessorCount;
    if (cudaDeviceGetAttribute(&count, wanted, device) != cudaSuccess) return 1;
    return count > 0 ? count : 1;
}

// Programs for each of `shares` equal shares of the work, of `resident` blocks per multiprocessor.
// Not a block more than are resident: it would run after all others, and take as long again.
inline int programs_per_share(int resident, int shares) {
    const int programs = resident * multiprocessors() / shares;
    return programs > 0 ? programs : 1;
}

#ifndef EFFNET_FAST_EMULATED

template <class... Params>
cudaError_t allow_shared(void (*kernel)(Params...), size_t shared_bytes) {
    if (shared_bytes <= kDefaultSharedBytes) return cudaSuccess;
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
}

// Whether the current device has at least `least` of `attribute`, which came with sm_90, and
// `kernel` was not built from code that is too old to know of it.
template <class... Params>
cudaError_t has_since_sm_90(void (*kernel)(Params...), cudaDeviceAttr attribute, int least,
                            bool* has) {
    int device = 0, value = 0;
    cudaFuncAttributes built = {};
    cudaError_t status = cudaGetDevice(&device);
    if (status != cudaSuccess) return status;
    status = cudaDeviceGetAttribute(&value, attribute, device);
    if (status != cudaSuccess) return status;
    status = cudaFuncGetAttributes(&built, reinterpret_cast<const void*>(kernel));
    *has = value >= least && built.ptxVersion >= 90;
    return status;
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Args&&... args) {
    const cudaError_t status = allow_shared(kernel, shared_bytes);
    if (status != cudaSuccess) return status;
    kernel<<<grid, block, shared_bytes, stream>>>(Params(std::forward<Args>(args))...);
    return cudaGetLastError();
}

// Declares `name`, a T* to the block's dynamic shared memory, aligned to 512 bytes (for boxes).
#define EFFNET_FAST_DYNAMIC_SHARED(T, name)                              \
    extern __shared__ __align__(512) unsigned char dynamic_shared_raw[]; \
    T* const name = reinterpret_cast<T*>(dynamic_shared_raw)

#else

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Args&&... args) {
    return emulator::launch(kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}

#define EFFNET_FAST_DYNAMIC_SHARED(T, name) T* const name = emulator::dynamic_shared<T>()

#endif

}  // namespace effnet_fast
