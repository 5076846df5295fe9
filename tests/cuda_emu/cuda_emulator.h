// Runs the CUDA C++ kernels of csrc/cuda on a CPU, for tests. Include before anything else:
//
//     g++ -std=c++17 -x c++ -include cuda_emulator.h -I<CUDA's headers> -c kernel.cu
//
// and link with the .cpp files beside it. x86-64 only (the fibers switch stacks by hand).
//
// What it finds beyond wrong results, with the thread and the source line:
// * barriers that not all threads of a block reach, or that they reach at different lines; threads
//   that leave before a barrier of the others; deadlocks;
// * warp collectives that name lanes which do not take part;
// * shared memory read before it was written: it holds NaN (all bits set) when a block starts;
// * a missing barrier, as a wrong result or as one that differs between thread orders. Blocks and
//   threads run in the order that emulator_set_order names: "forward", "reverse", "random:<seed>";
// * an asynchronous copy that is not waited for: its target holds NaN until the wait, where the copy
//   takes place, so that also an overwritten slot that others still read shows;
// * a box copy (box_copies.h) whose barrier counts other bytes, is armed twice or never, or is waited
//   for too early: boxes arrive in the wait as well; boxes that are on their way as a block leaves;
// * blocks of more shared memory or threads than every supported device has;
// * of a cluster, whose blocks run as far ahead of each other as barriers let them: shared memory of a
//   block that may have left, or that has not written it yet.
// Compiled with -fsanitize=address,undefined also accesses out of bounds and misaligned vectors.
//
// What it cannot see: races within one instruction of a warp (threads run one at a time), memory
// ordering between blocks, __launch_bounds__ and register limits, timing, the rounding of the
// approximate instructions beyond their documented error, anything behind inline PTX (which is why
// csrc/cuda keeps that in seams).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "scheduler.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __grid_constant__
#undef __noinline__

#define EFFNET_FAST_EMULATED 1
#define __global__ static
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One section holds all static shared memory, so that it can be poisoned before every block. Only
// within a kernel: in a template that is not static, g++ cannot place it.
#define __shared__ static __attribute__((section("emulated_shared")))

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())
#define warpSize 32
#define __syncthreads() emulator::sync_threads({__FILE__, __LINE__})

#include "box_copies.h"
#include "device_functions.h"
#include "matrix_functions.h"
