// Depthwise convolution by rows: the output and, with the taps turned round, the input gradient;
// and the weight gradient.
#pragma once

#include "cpu/training/kernels/lanes.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {
namespace {

constexpr int kPixels = kLanes == 16 ? 8 : 4;  // whose sums are in registers

// Taps and stride are compiled in for those that EfficientNet has; 0: any.
template <int fixed_taps, int fixed_stride, int pixels>
EFFNET_FAST_INLINE void correlate_tile(const training::Correlate& p, int first) {
    const int taps = fixed_taps ? fixed_taps : p.taps,
              stride = fixed_stride ? fixed_stride : p.stride;
#pragma GCC unroll 4
    for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec acc[pixels] = {};
        for (int r = 0; r < p.row_count; ++r) {
            const float* row = p.rows[r] + long(first) * stride * kBlock + lane;
            const float* weight = p.weights[r] + lane;
            if constexpr (fixed_taps != 0 && fixed_stride != 0) {
                Vec w[fixed_taps];
#pragma GCC unroll 5
                for (int t = 0; t < fixed_taps; ++t) w[t] = load(weight + t * kBlock);
#pragma GCC unroll 32
                for (int i = 0; i < (pixels - 1) * fixed_stride + fixed_taps; ++i) {
                    const Vec v = load(row + i * kBlock);
#pragma GCC unroll 8
                    for (int x = 0; x < pixels; ++x) {
                        const int t = i - x * fixed_stride;
                        if (t >= 0 && t < fixed_taps) acc[x] += v * w[t];
                    }
                }
            } else {
                for (int t = 0; t < taps; ++t) {
                    const Vec w = load(weight + t * kBlock);
#pragma GCC unroll 8
                    for (int x = 0; x < pixels; ++x)
                        acc[x] += w * load(row + (x * stride + t) * kBlock);
                }
            }
        }
#pragma GCC unroll 8
        for (int x = 0; x < pixels; ++x)
            store(p.out + long(first + x) * p.out_step * kBlock + lane, acc[x]);
    }
}

template <int taps, int stride>
void correlate_row(const training::Correlate& p) {
    int x = 0;
    for (; x + kPixels <= p.width; x += kPixels) correlate_tile<taps, stride, kPixels>(p, x);
    for (; x + 2 <= p.width; x += 2) correlate_tile<taps, stride, 2>(p, x);
    if (x < p.width) correlate_tile<taps, stride, 1>(p, x);
}

void correlate(const training::Correlate& p) {
    if (p.stride == 1) {
        switch (p.taps) {
            case 1:
                return correlate_row<1, 1>(p);
            case 2:
                return correlate_row<2, 1>(p);
            case 3:
                return correlate_row<3, 1>(p);
            case 5:
                return correlate_row<5, 1>(p);
        }
    }
    if (p.stride == 2 && p.taps == 3) return correlate_row<3, 2>(p);
    if (p.stride == 2 && p.taps == 5) return correlate_row<5, 2>(p);
    correlate_row<0, 0>(p);
}

// So many pixels at a time, each with sums of its own.
constexpr int kTapPixels = kLanes == 16 ? 4 : 2;

template <int fixed_taps, int stride>
void taps_row(const training::Taps& p) {
#pragma GCC unroll 4
    for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec acc[kTapPixels][fixed_taps] = {};
        const float* a = p.a + lane;
        const float* d = p.d + lane;
        int j = 0;
        for (; j + kTapPixels <= p.width; j += kTapPixels) {
            Vec g[kTapPixels];
#pragma GCC unroll 4
            for (int x = 0; x < kTapPixels; ++x) g[x] = load(d + (j + x) * kBlock);
            const float* row = a + long(j) * stride * kBlock;
#pragma GCC unroll 32
            for (int i = 0; i < (kTapPixels - 1) * stride + fixed_taps; ++i) {
                const Vec v = load(row + i * kBlock);
#pragma GCC unroll 4
                for (int x = 0; x < kTapPixels; ++x) {
                    const int t = i - x * stride;
                    if (t >= 0 && t < fixed_taps) acc[x][t] += v * g[x];
                }
            }
        }
        for (; j < p.width; ++j) {
            const Vec g = load(d + j * kBlock);
#pragma GCC unroll 5
            for (int t = 0; t < fixed_taps; ++t)
                acc[0][t] += g * load(a + (long(j) * stride + t) * kBlock);
        }
#pragma GCC unroll 5
        for (int t = 0; t < fixed_taps; ++t) {
            Vec total = acc[0][t];
#pragma GCC unroll 4
            for (int x = 1; x < kTapPixels; ++x) total += acc[x][t];
            float* dw = p.dw + t * kBlock + lane;
            store(dw, load(dw) + total);
        }
    }
}

void taps_of_any(const training::Taps& p) {
    for (int lane = 0; lane < kBlock; lane += kLanes) {
        for (int t = 0; t < p.taps; ++t) {
            Vec total = {};
            for (int j = 0; j < p.width; ++j) {
                total += load(p.d + j * kBlock + lane) *
                         load(p.a + (long(j) * p.stride + t) * kBlock + lane);
            }
            float* dw = p.dw + t * kBlock + lane;
            store(dw, load(dw) + total);
        }
    }
}

void taps(const training::Taps& p) {
    if (p.taps == 3 && p.stride == 1) return taps_row<3, 1>(p);
    if (p.taps == 3 && p.stride == 2) return taps_row<3, 2>(p);
    if (p.taps == 5 && p.stride == 1) return taps_row<5, 1>(p);
    if (p.taps == 5 && p.stride == 2) return taps_row<5, 2>(p);
    taps_of_any(p);
}

}  // namespace
}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
