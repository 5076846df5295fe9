// Depthwise convolution of rows: neighbouring pixels in registers, each input read once per kernel
// row; SiLU and its sum before the pixels leave the registers.
//
// Pairs of columns are multiplied by odd kernels with a zero at one end, which makes NaN of an
// infinity in the pixel beyond: none comes out of relu6, and the mean over a map spreads any other.
#pragma once

#include "cpu/kernels/activation.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

// Sums of a tile, in one row or, of a narrow map, in two: as many as hide the latency of what is
// added to them, 4 clocks or of AVX512_BF16's dot products 6, and stay in registers.
#if defined(__AVX512BF16__)
template <typename T>
constexpr int kMaxPixels = sizeof(T) == 4 ? 8 : 14;
#elif defined(__AVX2__) || defined(__aarch64__)
template <typename T>
constexpr int kMaxPixels = 8;
#else  // four registers a block: twice the code was 3 % faster
template <typename T>
constexpr int kMaxPixels = sizeof(T) == 4 ? 8 : 4;
#endif
constexpr int kTilesAhead = 4;  // whose lines of the output are asked for: they may be in no cache

// Output rows [y, y + high), pixels [first, first + pixels).
template <int kernel, int stride, int high, int pixels, bool with_silu, typename T>
EFFNET_FAST_INLINE void depthwise_tile(const Depthwise<T>& d, int y, int first,
                                       Vec (&total)[kPer]) {
    constexpr int per = kPair<T>, parities = stride == 1 ? per : 1;
    constexpr int taps = (kernel + per - 1) / per, reads = (pixels - 1) * stride / per + taps;
    EFFNET_FAST_UNROLL for (int i = 0; i < kPer; ++i) {
        const int lane = i * kLanes;
        Vec acc[high][pixels];
        EFFNET_FAST_UNROLL for (int h = 0; h < high; ++h) {
            T* ahead = d.out + (long(y + h) * d.width + first + kTilesAhead * pixels) * kBlock;
            EFFNET_FAST_UNROLL for (int x = 0; x < pixels; ++x) {
                if (i == 0 && x % per == 0) __builtin_prefetch(ahead + x * kBlock, 1);
                acc[h][x] = started<T>(d.bias + lane);
            }
        }
        EFFNET_FAST_UNROLL for (int r = 0; r < (high - 1) * stride + kernel; ++r) {
            const T* row = d.rows[y * stride + r] + long(first) * stride * kBlock + lane * per;
            Vec w[high][parities][taps];
            EFFNET_FAST_UNROLL for (int h = 0; h < high; ++h) {
                const int ky = r - h * stride;
                if (ky < 0 || ky >= kernel) continue;
                const T* weight = d.weight + (ky * parities * taps * kBlock + lane) * per;
                EFFNET_FAST_UNROLL for (int k = 0; k < parities * taps; ++k) {
                    w[h][k / taps][k % taps] = load_lanes(weight + k * kBlock * per);
                }
            }
            EFFNET_FAST_UNROLL for (int j = 0; j < reads; ++j) {
                const Vec v = load_lanes(row + j * kBlock * per);
                EFFNET_FAST_UNROLL for (int h = 0; h < high; ++h) {
                    const int ky = r - h * stride;
                    if (ky < 0 || ky >= kernel) continue;
                    EFFNET_FAST_UNROLL for (int x = 0; x < pixels; ++x) {
                        const int k = j - x * stride / per;
                        if (k < 0 || k >= taps) continue;
                        const int parity = x * stride % per, column = k * per - parity;
                        acc[h][x] = add_dot<T>(acc[h][x], v, w[h][parity][k], column >= 0,
                                               column + 1 < kernel);
                    }
                }
            }
        }
        EFFNET_FAST_UNROLL for (int h = 0; h < high; ++h) {
            EFFNET_FAST_UNROLL for (int x = 0; x < pixels; ++x) {
                acc[h][x] = ended<T>(acc[h][x], d.scale + lane, d.bias + lane);
            }
            if (with_silu) silu<pixels, kRough<T>>(acc[h]);
            EFFNET_FAST_UNROLL for (int x = 0; x < pixels; ++x) total[i] += acc[h][x];
            T* out = d.out + (long(y + h) * d.width + first) * kBlock + lane;
            store_pixels<pixels>(out, acc[h]);
        }
    }
}

// `tiles` of `high` rows from row `y` and pixel `first` on. Their sum first, so that errors grow
// with the square root of rows + columns.
template <int kernel, int stride, int high, int pixels, bool with_silu, typename T>
EFFNET_FAST_INLINE void depthwise_tiles(const Depthwise<T>& d, int y, int first, int tiles) {
    Vec total[kPer] = {};
    for (int i = 0; i < tiles; ++i) {
        depthwise_tile<kernel, stride, high, pixels, with_silu>(d, y, first + i * pixels, total);
    }
    if (!with_silu) return;
    EFFNET_FAST_UNROLL for (int i = 0; i < kPer; ++i) {
        store(d.sum + i * kLanes, load(d.sum + i * kLanes) + total[i]);
    }
}

template <int kernel, int stride, int pixels, bool with_silu, typename T>
void depthwise_rows(const Depthwise<T>& d, int first, int tiles) {
    constexpr int high = kMaxPixels<T> > 8 && 2 * pixels <= kMaxPixels<T> ? 2 : 1;
    int y = 0;
    for (; y + high <= d.count; y += high) {
        depthwise_tiles<kernel, stride, high, pixels, with_silu>(d, y, first, tiles);
    }
    for (; y < d.count; ++y) {
        depthwise_tiles<kernel, stride, 1, pixels, with_silu>(d, y, first, tiles);
    }
}

template <typename T>
using Rows = void (*)(const Depthwise<T>&, int first, int tiles);

// By tiles of the `wanted` width, out of `pixels` and down.
template <int kernel, int stride, int pixels, bool with_silu, typename T>
Rows<T> rows_of(int wanted) {
    if constexpr (pixels == 1) {
        return depthwise_rows<kernel, stride, 1, with_silu, T>;
    } else {
        return wanted == pixels ? depthwise_rows<kernel, stride, pixels, with_silu, T>
                                : rows_of<kernel, stride, pixels - 1, with_silu, T>(wanted);
    }
}

// Tiles of as equal a width as can be, which start at a whole pair: the last one may lack a pixel.
template <int kernel, int stride, bool with_silu, typename T>
void depthwise_of(const Depthwise<T>& d) {
    constexpr int unit = stride == 1 ? kPair<T> : 1, most = kMaxPixels<T>;
    const int units = (d.width + unit - 1) / unit, lacking = units * unit - d.width;
    const int tiles = (units * unit + most - 1) / most;
    const int narrow = units / tiles * unit, wider = units % tiles;
    int first = 0;
    const auto run = [&](int pixels, int count) {
        if (count == 0) return;
        rows_of<kernel, stride, most, with_silu, T>(pixels)(d, first, count);
        first += pixels * count;
    };
    run(narrow + unit, wider);
    run(narrow, tiles - wider - lacking);
    run(narrow - 1, lacking);
}

template <int kernel, int stride, typename T>
void depthwise_then(const Depthwise<T>& d) {
    if (d.act == Activation::silu) return depthwise_of<kernel, stride, true>(d);
    depthwise_of<kernel, stride, false>(d);
    activate<kRough<T>>(d.out, d.count * d.width, d.act, d.sum);
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
