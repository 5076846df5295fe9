// 1x1 convolutions: a register tile of pixels x channels, of every height up to kMaxRows.
#pragma once

#include "cpu/kernels/simd.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

// Adds `count` steps of k, whose a values lie side by side.
template <int rows, int vecs, int count>
EFFNET_FAST_INLINE void multiply_add(Vec (&acc)[rows][vecs], const float* a, const float* b) {
#pragma GCC unroll 8
    for (int k = 0; k < count; ++k) {
        Vec w[vecs];
#pragma GCC unroll 4
        for (int n = 0; n < vecs; ++n) w[n] = load(b + (k * vecs + n) * kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m) {
            const Vec x = broadcast(a[m * kBlock + k]);
#pragma GCC unroll 4
            for (int n = 0; n < vecs; ++n) acc[m][n] += x * w[n];
        }
        asm volatile("" ::: "memory");  // GCC 12 hoists the broadcasts otherwise, and spills
    }
}

// Of the next panel, fetched with every 8 steps of k: four tiles fetch all of a panel of 32 columns.
constexpr int kLinesAhead = 4;

template <int rows, int blocks>
void product_tile(const Product& p, int first, const char* next) {
    constexpr int vecs = blocks * kPer;
    Vec acc[rows][vecs];
#pragma GCC unroll 4
    for (int n = 0; n < vecs; ++n) {
        const Vec bias = load(p.bias + n * kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m) acc[m][n] = bias;
    }
    const float* b = p.b;
    int k = 0;
    for (; k + 8 <= p.k; k += 8, b += 8 * vecs * kLanes) {
        const float* a = p.a + k / kBlock * p.a_stride + first * kBlock + k % kBlock;
        // Four tiles ahead: the map may come from beyond the second-level cache.
        const float* ahead = a + 4 * rows * kBlock;
#pragma GCC unroll 8
        for (int m = k % kBlock / 8; m < rows; m += 2) __builtin_prefetch(ahead + m * kBlock);
        // A few lines at a time: a burst of them would stop the loads until the memory has answered.
        if (next) {
#pragma GCC unroll 4
            for (int line = 0; line < kLinesAhead; ++line) __builtin_prefetch(next + line * 64, 0, 2);
            next += kLinesAhead * 64;
        }
        multiply_add<rows, vecs, 8>(acc, a, b);
    }
    for (; k < p.k; ++k, b += vecs * kLanes) {
        const float* a = p.a + k / kBlock * p.a_stride + first * kBlock + k % kBlock;
        multiply_add<rows, vecs, 1>(acc, a, b);
    }
#pragma GCC unroll 2
    for (int n = 0; n < blocks; ++n) {
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m) {
            const long at = n * p.c_stride + (p.offset ? p.offset[first + m] : (first + m) * kBlock);
#pragma GCC unroll 4
            for (int i = 0; i < kPer; ++i) {
                Vec v = acc[m][n * kPer + i];
                if (p.residual) v += load(p.residual + at + i * kLanes);
                store(p.c + at + i * kLanes, v);
            }
        }
    }
}

using Tile = void (*)(const Product&, int first, const char* next);

// The tile of `rows`, out of kMaxRows and down.
template <int rows, int blocks>
Tile product_of(int wanted) {
    if constexpr (rows == 1) {
        return product_tile<1, blocks>;
    } else {
        return wanted == rows ? product_tile<rows, blocks> : product_of<rows - 1, blocks>(wanted);
    }
}

// Tiles of as equal a height as can be: a last one of few rows would wait for its own sums.
void product(const Product& p) {
    if (p.pixels == 0) return;
    const int tiles = (p.pixels + kMaxRows - 1) / kMaxRows;
    const int rows = p.pixels / tiles, higher = p.pixels % tiles;
    const auto of = [&](int height) {
        return p.blocks == kPanelBlocks ? product_of<kMaxRows, kPanelBlocks>(height)
                                        : product_of<kMaxRows, 1>(height);
    };
    const Tile tile = of(rows), high = higher ? of(rows + 1) : tile;
    const long step = long(p.k / 8) * kLinesAhead * 64, bytes = long(p.k) * p.blocks * kBlock * 4;
    const char* next = reinterpret_cast<const char*>(p.next);
    for (int i = 0, first = 0; i < tiles; ++i) {
        (i < higher ? high : tile)(p, first, next && i * step < bytes ? next + i * step : nullptr);
        first += rows + (i < higher);
    }
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
