// The first convolution: dense, of an image of few channels, row by row.
#pragma once

#include "cpu/kernels/product.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

template <int rows, int blocks, int stride>
void stem_tile(const StemRow& s, int first) {
    constexpr int vecs = blocks * kPer;
    Vec acc[rows][vecs];
    EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
        const Vec bias = load(s.bias + n * kLanes);
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) acc[m][n] = bias;
    }
    const float* b = s.weight;
    for (int row = 0; row < s.count; ++row) {
        const float* a = s.rows[row] + first * stride;
        for (int column = 0; column < s.kernel; ++column, ++a, b += vecs * kLanes) {
            Vec w[vecs];
            EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) w[n] = load(b + n * kLanes);
            EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
                const Vec x = broadcast(a[m * stride]);
                EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) acc[m][n] += x * w[n];
            }
            asm volatile("" : "+r"(a) : : "memory");  // as in multiply_add
        }
    }
    EFFNET_FAST_UNROLL for (int n = 0; n < blocks; ++n) {
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
            float* out = s.out + n * s.out_stride + (first + m) * kBlock;
            EFFNET_FAST_UNROLL for (int i = 0; i < kPer; ++i) {
                store(out + i * kLanes, acc[m][n * kPer + i]);
            }
        }
    }
}

// Full tiles, and the pixels that are left one by one: rows of an image are long.
template <int blocks, int stride>
void stem_of(const StemRow& s) {
    constexpr int rows = kMaxRows[blocks];
    int first = 0;
    for (; first + rows <= s.pixels; first += rows) stem_tile<rows, blocks, stride>(s, first);
    for (; first < s.pixels; ++first) stem_tile<1, blocks, stride>(s, first);
}

template <int blocks>
void stem_of_blocks(const StemRow& s) {
    s.stride == 1 ? stem_of<blocks, 1>(s) : stem_of<blocks, 2>(s);
}

static void stem(const StemRow& s) {
    if (s.blocks == 1) return stem_of_blocks<1>(s);
    if constexpr (kPanelBlocks > 1) s.blocks == 2 ? stem_of_blocks<2>(s) : stem_of_blocks<3>(s);
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
