// Depthwise convolution of rows: up to eight neighbouring pixels in registers, each input read
// once per kernel row; SiLU and its sum before the pixels leave the registers.
#pragma once

#include "cpu/kernels/activation.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

constexpr int kMaxPixels = 8;
constexpr int kTilesAhead = 4;  // whose lines of the output are asked for: they may be in no cache

template <int kernel, int stride, int pixels, bool with_silu, typename T>
EFFNET_FAST_INLINE void depthwise_tile(const Depthwise<T>& d, int y, int first,
                                       Vec (&total)[kPer]) {
    T* out = d.out + (long(y) * d.width + first) * kBlock;
    EFFNET_FAST_UNROLL for (int i = 0; i < kPer; ++i) {
        const int lane = i * kLanes;
        EFFNET_FAST_UNROLL for (int x = 0; x < pixels && i == 0; ++x) {
            __builtin_prefetch(out + (kTilesAhead * pixels + x) * kBlock, 1);
        }
        Vec acc[pixels];
        EFFNET_FAST_UNROLL for (int x = 0; x < pixels; ++x) acc[x] = load(d.bias + lane);
        EFFNET_FAST_UNROLL for (int ky = 0; ky < kernel; ++ky) {
            const float* row = d.rows[y * stride + ky] + long(first) * stride * kBlock + lane;
            Vec w[kernel];
            EFFNET_FAST_UNROLL for (int kx = 0; kx < kernel; ++kx) {
                w[kx] = load(d.weight + (ky * kernel + kx) * kBlock + lane);
            }
            EFFNET_FAST_UNROLL for (int j = 0; j < (pixels - 1) * stride + kernel; ++j) {
                const Vec v = load(row + j * kBlock);
                EFFNET_FAST_UNROLL for (int x = 0; x < pixels; ++x) {
                    const int kx = j - x * stride;
                    if (kx >= 0 && kx < kernel) acc[x] += v * w[kx];
                }
            }
        }
        if (with_silu) silu<pixels, kRough<T>>(acc);
        EFFNET_FAST_UNROLL for (int x = 0; x < pixels; ++x) {
            total[i] += acc[x];
            store(out + x * kBlock + lane, acc[x]);
        }
    }
}

// `tiles` of a row from pixel `first` on. The sum of a row first, so that errors grow with the
// square root of rows + columns.
template <int kernel, int stride, int pixels, bool with_silu, typename T>
void depthwise_tiles(const Depthwise<T>& d, int first, int tiles) {
    for (int y = 0; y < d.count; ++y) {
        Vec total[kPer] = {};
        for (int i = 0; i < tiles; ++i) {
            depthwise_tile<kernel, stride, pixels, with_silu>(d, y, first + i * pixels, total);
        }
        if (!with_silu) continue;
        EFFNET_FAST_UNROLL for (int i = 0; i < kPer; ++i) {
            store(d.sum + i * kLanes, load(d.sum + i * kLanes) + total[i]);
        }
    }
}

template <typename T>
using Tiles = void (*)(const Depthwise<T>&, int first, int tiles);

template <int kernel, int stride, int pixels, bool with_silu, typename T>
Tiles<T> tiles_of(int wanted) {
    if constexpr (pixels == 1) {
        return depthwise_tiles<kernel, stride, 1, with_silu, T>;
    } else {
        return wanted == pixels ? depthwise_tiles<kernel, stride, pixels, with_silu, T>
                                : tiles_of<kernel, stride, pixels - 1, with_silu, T>(wanted);
    }
}

template <int kernel, int stride, bool with_silu, typename T>
void depthwise_of(const Depthwise<T>& d) {
    const int tiles = (d.width + kMaxPixels - 1) / kMaxPixels;
    const int pixels = d.width / tiles, wider = d.width % tiles;
    if (wider) tiles_of<kernel, stride, kMaxPixels, with_silu, T>(pixels + 1)(d, 0, wider);
    tiles_of<kernel, stride, kMaxPixels, with_silu, T>(pixels)(d, wider * (pixels + 1),
                                                               tiles - wider);
}

template <int kernel, int stride, typename T>
void depthwise_then(const Depthwise<T>& d) {
    if (d.act == Activation::silu) return depthwise_of<kernel, stride, true>(d);
    depthwise_of<kernel, stride, false>(d);
    activate_dense(d.out, d.count * d.width, d.act, d.sum);
}

template <typename T>
void depthwise(const Depthwise<T>& d) {
    if (d.kernel == 3) {
        d.stride == 1 ? depthwise_then<3, 1>(d) : depthwise_then<3, 2>(d);
    } else {
        d.stride == 1 ? depthwise_then<5, 1>(d) : depthwise_then<5, 2>(d);
    }
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
