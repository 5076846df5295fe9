// Box copies from an NHWC tensor to shared memory by the tensor memory accelerator (sm_90 and
// newer): one thread asks for all of a row's pixels, and a barrier in shared memory tells when they
// are there. What a box has outside the tensor arrives as zeros.
//
//     expect_boxes(barrier, bytes);                    // one thread: of all boxes that follow
//     copy_box(to_shared, map, c, w, h, n, barrier);   // the same: where the box begins
//     wait_boxes(barrier, parity);                     // every thread that reads: 0, 1, 0, ...
//
// A box is [images, 1, columns, 64 bytes of channels]. Its pixels lie densely, 64 bytes each, in
// which 8 neighbours would share 8 of the 32 banks; so the accelerator turns the places of a
// pixel's four 16-byte vectors as it writes them (swizzled() says how): any 8 neighbouring pixels
// then have a vector in distinct banks, as ldmatrix wants to read them.
//
// Who may use them: boxes_fit() says of a tensor, has_box_copies() of a kernel and the device. For
// all others there is async_copy.cuh; a kernel that takes either is instantiated for both, and
// neither choice changes a result. Until a GPU has shown which is faster they must be asked for:
// EFFNET_FAST_CUDA_BOXES=1 in the environment, which each launch looks up.
//
// The emulator of the tests writes a box only in the wait that ends its phase, and poisons its
// target until then; it refuses what the accelerator does not take or what would hang.
#pragma once

#include "cuda/launch.h"
#include "cuda/numeric.cuh"

#ifndef EFFNET_FAST_EMULATED
#include <cuda.h>

#include <cstdlib>
#include <cstring>
#endif

namespace effnet_fast {

constexpr int kBoxBytes = 64;       // of a pixel's channels
constexpr int kBoxAlignment = 512;  // of the place in shared memory that swizzled() counts from
constexpr int kMostBoxLength = 256;

// Where byte `offset` of boxes that lie one behind another, each at a multiple of 128 bytes, is.
__host__ __device__ constexpr int swizzled(int offset) { return offset ^ (offset >> 3 & 0x30); }

// A tensor [n, h, w, c] of 16-bit elements, and the images and columns of a box of it.
struct BoxSource {
    Map map;
    int n, h, w, c;
    int images, columns;
};

// A tensor as the accelerator knows it: made by make_boxes(), passed to a kernel as a
// `const __grid_constant__` parameter or a part of one.
struct alignas(64) BoxMap {
    uint64_t opaque[16];
};

// Counts the bytes of boxes, in shared memory.
struct alignas(8) BoxBarrier {
    uint64_t opaque;
};

// Bytes from element to element of W, H and N. Those of an axis of length 1 mean nothing: dense.
struct BoxStrides {
    int64_t bytes[3];

    explicit BoxStrides(const BoxSource& s) {
        const int64_t given[3] = {s.map.w_stride, s.map.h_stride, s.map.n_stride};
        const int lengths[3] = {s.w, s.h, s.n};
        int64_t dense = ceil_div(int64_t(s.c) * 2, int64_t(kVectorBytes)) * kVectorBytes;
        for (int i = 0; i < 3; i++) {
            bytes[i] = lengths[i] > 1 ? 2 * given[i] : dense;
            dense = bytes[i] * lengths[i];
        }
    }
};

// Whether the accelerator takes a tensor: aligned to 16 bytes throughout, less than 2^40 bytes from
// image to image, and each image, row and pixel apart from the others, unlike an expanded tensor's.
inline bool boxes_fit(const BoxSource& s) {
    const BoxStrides strides(s);
    const int lengths[3] = {s.w, s.h, s.n};
    int64_t span = int64_t(s.c) * 2;  // from the first byte of what an axis counts to the last
    for (int i = 0; i < 3; i++) {
        const int64_t stride = strides.bytes[i];
        if (lengths[i] < 1 || stride < span || stride % kVectorBytes != 0) return false;
        if (stride >= int64_t(1) << 40) return false;
        span += stride * (lengths[i] - 1);
    }
    return reinterpret_cast<uintptr_t>(s.map.data) % kVectorBytes == 0 && s.c >= 1 &&
           s.images >= 1 && s.images <= kMostBoxLength && s.columns >= 1 &&
           s.columns <= kMostBoxLength;
}

#ifdef EFFNET_FAST_EMULATED

constexpr bool kBoxCopies = true;

template <class... Params>
cudaError_t has_box_copies(void (*)(Params...), bool* has) {
    *has = emulator::has_box_copies();
    return cudaSuccess;
}

inline cudaError_t make_boxes(const BoxSource& s, BoxMap* map) {
    const BoxStrides strides(s);
    const emulator::BoxTensor tensor = {s.map.data,
                                        {s.c, s.w, s.h, s.n},
                                        {2, strides.bytes[0], strides.bytes[1], strides.bytes[2]},
                                        {kBoxBytes / 2, s.columns, 1, s.images}};
    return emulator::make_boxes(tensor, map);
}

__device__ inline void make_box_barriers(unsigned char* first, int count, int step) {
    for (int i = 0; i < count; i++) emulator::make_box_barrier(first + i * step);
}
__device__ inline void expect_boxes(BoxBarrier* barrier, int bytes) {
    emulator::expect_boxes(barrier, bytes);
}
__device__ inline void copy_box(void* shared, const BoxMap& map, int channel, int column, int row,
                                int image, BoxBarrier* barrier) {
    emulator::copy_box(shared, &map, {channel, column, row, image}, barrier);
}
__device__ inline void wait_boxes(BoxBarrier* barrier, int parity) {
    emulator::wait_boxes(barrier, parity);
}

#else

// Whether the architecture that is compiled for has them, and the compiler knows of them (CUDA 12).
// A kernel of which that is not true is never launched.
#if CUDART_VERSION >= 12000 && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
#define EFFNET_FAST_BOX_COPIES 1
#else
#define EFFNET_FAST_BOX_COPIES 0
#endif
constexpr bool kBoxCopies = EFFNET_FAST_BOX_COPIES != 0;

#if CUDART_VERSION >= 12000

// cuTensorMapEncodeTiled is of the driver, which is asked for it: the module links no libcuda, and
// imports where there is none. Null: the driver does not know it.
using EncodeBoxes = decltype(&cuTensorMapEncodeTiled);
inline EncodeBoxes find_encode_boxes() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult answer = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                                12000, cudaEnableDefault, &answer);
#else
    const cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found,
                                                       cudaEnableDefault, &answer);
#endif
    const bool there = status == cudaSuccess && answer == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<EncodeBoxes>(found) : nullptr;
}
inline EncodeBoxes encode_boxes() {
    static const EncodeBoxes found = find_encode_boxes();
    return found;
}

// Whether `kernel` may use box copies on the current device, and is to.
template <class... Params>
cudaError_t has_box_copies(void (*kernel)(Params...), bool* has) {
    const char* const wanted = std::getenv("EFFNET_FAST_CUDA_BOXES");
    *has = wanted != nullptr && std::strcmp(wanted, "1") == 0;
    if (!*has) return cudaSuccess;
    const auto major = cudaDevAttrComputeCapabilityMajor;
    const cudaError_t status = has_since_sm_90(kernel, major, 9, has);
    *has = *has && encode_boxes() != nullptr;
    return status;
}

// Of a tensor that fits.
inline cudaError_t make_boxes(const BoxSource& s, BoxMap* map) {
    static_assert(sizeof(BoxMap) == sizeof(CUtensorMap) && alignof(BoxMap) == 64, "one for other");
    const BoxStrides given(s);
    const cuuint64_t lengths[4] = {cuuint64_t(s.c), cuuint64_t(s.w), cuuint64_t(s.h),
                                   cuuint64_t(s.n)};
    const cuuint64_t strides[3] = {cuuint64_t(given.bytes[0]), cuuint64_t(given.bytes[1]),
                                   cuuint64_t(given.bytes[2])};
    const cuuint32_t box[4] = {kBoxBytes / 2, cuuint32_t(s.columns), 1, cuuint32_t(s.images)};
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    // As integers: bits are copied, whatever they stand for.
    const CUresult result = encode_boxes()(
        reinterpret_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_UINT16, 4,
        const_cast<void*>(s.map.data), lengths, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return static_cast<cudaError_t>(result);  // the driver's errors have the runtime's numbers
}

#else

template <class... Params>
cudaError_t has_box_copies(void (*)(Params...), bool* has) {
    *has = false;
    return cudaSuccess;
}
inline cudaError_t make_boxes(const BoxSource&, BoxMap*) { return cudaErrorNotSupported; }

#endif

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// One thread, before a __syncthreads() that comes before any use: `count` barriers, `step` bytes
// apart, each of which waits for one expect_boxes() and its bytes.
__device__ __forceinline__ void make_box_barriers(unsigned char* first, int count, int step) {
#if defined(__CUDA_ARCH__) && EFFNET_FAST_BOX_COPIES
    for (int i = 0; i < count; i++) {
        const unsigned barrier = shared_address(first + i * step);
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    }
    // The barriers are written as any memory is, and counted down by the accelerator, which sees
    // shared memory another way (the asynchronous proxy): only what a fence between the two orders.
    asm volatile(
        "fence.mbarrier_init.release.cluster;\n\t"
        "fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The one thread that copies arms `barrier` for `bytes` bytes of boxes, zeros outside included. All
// that read the boxes' targets last have said so at a __syncthreads() that this thread has passed.
__device__ __forceinline__ void expect_boxes(BoxBarrier* barrier, int bytes) {
#if defined(__CUDA_ARCH__) && EFFNET_FAST_BOX_COPIES
    // Those reads were of the generic proxy and what follows writes through the asynchronous one:
    // this fence, behind the block's barrier, is what puts them in that order. What a box has
    // brought needs none to be read: wait_boxes() makes it visible.
    asm volatile(
        "fence.proxy.async.shared::cta;\n\t"
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
#endif
}

// Starts the copy of the box at these coordinates, which may be negative; to a multiple of 128
// bytes. The same thread as expect_boxes(), behind it.
__device__ __forceinline__ void copy_box(void* shared, const BoxMap& map, int channel, int column,
                                         int row, int image, BoxBarrier* barrier) {
#if defined(__CUDA_ARCH__) && EFFNET_FAST_BOX_COPIES
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
        "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(barrier)), "r"(channel),
        "r"(column), "r"(row), "r"(image)
        : "memory");
#endif
}

// Waits until the boxes of the barrier's phase are there: parity 0 of its first, 1 of its second, 0
// of its third ... All threads that wait have done so before the barrier is armed again: a parity
// tells a phase from the one before, and no more. They then see what the boxes brought.
__device__ __forceinline__ void wait_boxes(BoxBarrier* barrier, int parity) {
#if defined(__CUDA_ARCH__) && EFFNET_FAST_BOX_COPIES
    int done = 0;
    while (done == 0) {  // try_wait itself suspends the thread, for a time that the system sets
        asm volatile(
            "{\n\t"
            ".reg .pred complete;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n\t"
            "selp.b32 %0, 1, 0, complete;\n\t"
            "}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    }
#endif
}

#endif

}  // namespace effnet_fast
