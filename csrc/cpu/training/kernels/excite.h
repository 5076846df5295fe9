// The arithmetic of squeeze-and-excitation: matrices of an image's channels, as they lie in memory.
#pragma once

#include "cpu/training/kernels/lanes.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {
namespace {

constexpr int kCombined = kLanes == 16 ? 8 : 4;  // rows whose sums are in registers
constexpr int kSteps = 64;                       // that are summed by themselves

template <int rows, int vecs, class Lanes>
EFFNET_FAST_INLINE void combine_tile(const training::Combine& p, int i, int j, Lanes lanes) {
    for (int begin = 0; begin < p.steps; begin += kSteps) {
        const int end = p.steps - begin < kSteps ? p.steps : begin + kSteps;
        const float* w = p.w + i * p.w_row + begin * p.w_step;
        const float* v = p.v + begin * p.v_row + j;
        const long w_row = p.w_row, w_step = p.w_step, v_row = p.v_row;
        Vec acc[rows][vecs] = {};
        for (int k = begin; k < end; ++k, w += w_step, v += v_row) {
            Vec x[vecs];
            EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) x[n] = lanes.get(v + n * kLanes);
            EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
                const Vec factor = broadcast(w[m * w_row]);
                EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) acc[m][n] += factor * x[n];
            }
        }
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
            EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
                float* c = p.c + (i + m) * p.c_row + j + n * kLanes;
                lanes.put(c, lanes.get(c) + acc[m][n]);
            }
        }
    }
}

// Rows from i on: as many at a time as there may be, then by halves.
template <int rows, int vecs, class Lanes>
void combine_rows(const training::Combine& p, int i, int j, Lanes lanes) {
    for (; i + rows <= p.rows; i += rows) combine_tile<rows, vecs>(p, i, j, lanes);
    if constexpr (rows > 1) combine_rows<rows / 2, vecs>(p, i, j, lanes);
}

EFFNET_FAST_INLINE double sum_of(Vec v) {
#if defined(__AVX512F__)
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
#else
    double sum = 0.0;
    for (int i = 0; i < kLanes; ++i) sum += v[i];
    return sum;
#endif
}

// Of one column, with the steps side by side: rows [i, i + rows).
template <int rows>
EFFNET_FAST_INLINE void combine_column(const training::Combine& p, int i) {
    const float* w = p.w + i * p.w_row;
    Vec acc[rows] = {};
    for_channels(p.steps, [&](int k, auto lanes) {
        const Vec x = lanes.get(p.v + k);
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
            acc[m] += lanes.get(w + m * p.w_row + k) * x;
        }
    });
    EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
        float* c = p.c + (i + m) * p.c_row;
        *c = float(*c + sum_of(acc[m]));
    }
}

void combine(const training::Combine& p) {
    int j = 0;
    if (p.columns == 1 && p.v_row == 1 && p.w_step == 1) {
        for (; j + 4 <= p.rows; j += 4) combine_column<4>(p, j);
        for (; j < p.rows; ++j) combine_column<1>(p, j);
        return;
    }
    for (; j + 2 * kLanes <= p.columns; j += 2 * kLanes) {
        combine_rows<kCombined, 2>(p, 0, j, Whole{});
    }
    for (; j + kLanes <= p.columns; j += kLanes) combine_rows<kCombined, 1>(p, 0, j, Whole{});
    if (j < p.columns) combine_rows<kCombined, 1>(p, 0, j, Part{p.columns - j});
}

void activate_all(const training::Activate& p) {
    with_activation(p.act, [&](auto of) {
        constexpr Activation act = decltype(of)::value;
        for_channels(p.count, [&](int i, auto lanes) {
            const auto [value, slope] = value_and_slope<act>(lanes.get(p.x + i));
            lanes.put(p.x + i, value);
            lanes.put(p.slope + i, slope);
        });
    });
}

void sigmoid_all(float* x, int count) {
    for_channels(count, [&](int i, auto lanes) {
        lanes.put(x + i, times_sigmoid(broadcast(1.0f), lanes.get(x + i)));
    });
}

}  // namespace
}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
