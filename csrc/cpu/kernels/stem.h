// The first convolution: dense, of an image of few channels, row by row.
#pragma once

#include "cpu/kernels/product.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

template <typename T>
void image_row(T* out, const float* const* in, int width) {
    constexpr int per = kPair<T>;
    Vec v[per];
    int x = 0;
    for (; x + kLanes <= width; x += kLanes) {
        EFFNET_FAST_UNROLL for (int i = 0; i < per; ++i) v[i] = load(in[i] + x);
        store_lanes(out + x * per, v);
    }
    if (x == width) return;
    for (int i = 0; i < per; ++i) {
        float last[kLanes] = {};
        for (int j = 0; x + j < width; ++j) last[j] = in[i][x + j];
        v[i] = load(last);
    }
    store_lanes(out + x * per, v);
}

template <int rows, int blocks, int stride, typename T>
void stem_tile(const StemRow<T>& s, int first) {
    constexpr int vecs = blocks * kPer, per = kPair<T>;
    Vec acc[rows][vecs];
    EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
        const Vec start = started<T>(s.bias + n * kLanes);
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) acc[m][n] = start;
    }
    const T* b = s.weight;
    for (int row = 0; row < s.count; ++row) {
        const T* a = s.rows[row] + first * stride * per;
        for (int column = 0; column < s.kernel; ++column, a += per, b += vecs * kLanes * per) {
            Vec w[vecs];
            EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
                w[n] = load_lanes(b + n * kLanes * per);
            }
            EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
                const Vec x = broadcast_lane(a + m * stride * per);
                EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
                    acc[m][n] = add_dot<T>(acc[m][n], x, w[n]);
                }
            }
            asm volatile("" : "+r"(a) : : "memory");  // as in multiply_add
        }
    }
    EFFNET_FAST_UNROLL for (int n = 0; n < blocks; ++n) {
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
            float* out = s.out + n * s.out_stride + (first + m) * kBlock;
            EFFNET_FAST_UNROLL for (int i = 0; i < kPer; ++i) {
                const int at = (n * kPer + i) * kLanes;
                store(out + i * kLanes,
                      ended<T>(acc[m][n * kPer + i], s.scale + at, s.bias + at));
            }
        }
    }
}

// Full tiles, and the pixels that are left one by one: rows of an image are long.
template <int blocks, int stride, typename T>
void stem_of(const StemRow<T>& s) {
    constexpr int rows = kMaxRows[blocks];
    int first = 0;
    for (; first + rows <= s.pixels; first += rows) stem_tile<rows, blocks, stride>(s, first);
    for (; first < s.pixels; ++first) stem_tile<1, blocks, stride>(s, first);
}

template <int blocks, typename T>
void stem_of_blocks(const StemRow<T>& s) {
    s.stride == 1 ? stem_of<blocks, 1>(s) : stem_of<blocks, 2>(s);
}

template <typename T>
void stem(const StemRow<T>& s) {
    if (s.blocks == 1) return stem_of_blocks<1>(s);
    if constexpr (kPanelBlocks > 1) s.blocks == 2 ? stem_of_blocks<2>(s) : stem_of_blocks<3>(s);
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
