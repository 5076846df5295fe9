// Depthwise convolution of one row: up to eight neighbouring pixels in registers, each input read
// once per kernel row.
#pragma once

#include "cpu/kernels/simd.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

constexpr int kMaxPixels = 8;

template <int kernel, int stride, int pixels>
EFFNET_FAST_INLINE void depthwise_tile(const DepthwiseRow& d, int first) {
#pragma GCC unroll 4
    for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec acc[pixels];
#pragma GCC unroll 8
        for (int x = 0; x < pixels; ++x) acc[x] = load(d.bias + lane);
#pragma GCC unroll 5
        for (int ky = 0; ky < kernel; ++ky) {
            const float* row = d.rows[ky] + long(first) * stride * kBlock + lane;
            Vec w[kernel];
#pragma GCC unroll 5
            for (int kx = 0; kx < kernel; ++kx) {
                w[kx] = load(d.weight + (ky * kernel + kx) * kBlock + lane);
            }
#pragma GCC unroll 32
            for (int i = 0; i < (pixels - 1) * stride + kernel; ++i) {
                const Vec v = load(row + i * kBlock);
#pragma GCC unroll 8
                for (int x = 0; x < pixels; ++x) {
                    const int kx = i - x * stride;
                    if (kx >= 0 && kx < kernel) acc[x] += v * w[kx];
                }
            }
        }
#pragma GCC unroll 8
        for (int x = 0; x < pixels; ++x) store(d.out + (first + x) * kBlock + lane, acc[x]);
    }
}

template <int kernel, int stride, int pixels>
void depthwise_tiles(const DepthwiseRow& d, int first, int count) {
    for (int i = 0; i < count; ++i) {
        depthwise_tile<kernel, stride, pixels>(d, first + i * pixels);
    }
}

using Tiles = void (*)(const DepthwiseRow&, int first, int count);

template <int kernel, int stride, int pixels>
Tiles depthwise_of(int wanted) {
    if constexpr (pixels == 1) {
        return depthwise_tiles<kernel, stride, 1>;
    } else {
        return wanted == pixels ? depthwise_tiles<kernel, stride, pixels>
                                : depthwise_of<kernel, stride, pixels - 1>(wanted);
    }
}

template <int kernel, int stride>
void depthwise_row_of(const DepthwiseRow& d) {
    const int tiles = (d.width + kMaxPixels - 1) / kMaxPixels;
    const int pixels = d.width / tiles, wider = d.width % tiles;
    if (wider) depthwise_of<kernel, stride, kMaxPixels>(pixels + 1)(d, 0, wider);
    depthwise_of<kernel, stride, kMaxPixels>(pixels)(d, wider * (pixels + 1), tiles - wider);
}

void depthwise_row(const DepthwiseRow& d) {
    if (d.kernel == 3) {
        d.stride == 1 ? depthwise_row_of<3, 1>(d) : depthwise_row_of<3, 2>(d);
    } else {
        d.stride == 1 ? depthwise_row_of<5, 1>(d) : depthwise_row_of<5, 2>(d);
    }
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
