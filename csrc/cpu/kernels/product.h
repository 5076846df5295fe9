// 1x1 convolutions: a register tile of pixels x channels, of every height up to kMaxRows.
#pragma once

#include "cpu/kernels/simd.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

// Of a tile of `blocks`, so that its sums leave registers for the operands.
#if defined(__AVX512F__)
constexpr int kPanelBlocks = 2, kMaxRows[] = {0, 14, 14, 9};  // 27 or 28 of 32
#elif defined(__AVX2__)
constexpr int kPanelBlocks = 1, kMaxRows[] = {0, 6};  // 12 of 16
#elif defined(__aarch64__)
constexpr int kPanelBlocks = 1, kMaxRows[] = {0, 6};  // 24 of 32
#else
constexpr int kPanelBlocks = 1, kMaxRows[] = {0, 3};  // 12 of 16
#endif

// Adds `count` steps of k, whose a values lie side by side. Of Bf16 the second of the last pair may
// be padding: zero in b.
template <int rows, int vecs, int count, typename T>
EFFNET_FAST_INLINE void multiply_add(Vec (&acc)[rows][vecs], const T* a, const T* b) {
    EFFNET_FAST_UNROLL for (int k = 0; k < count; k += kPair<T>) {
        Vec w[vecs];
        EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
            w[n] = load_lanes(b + (k * vecs + n * kPair<T>) * kLanes);
        }
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
            const Vec x = broadcast_lane(a + m * kBlock + k);
            EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
                acc[m][n] = add_dot<T>(acc[m][n], x, w[n]);
            }
        }
        asm volatile("" ::: "memory");  // GCC 12 hoists the broadcasts otherwise, and spills
    }
}

// Of the next panel, fetched with every 8 steps of k: a few lines at a time, since a burst of them
// would stop the loads until the memory has answered. Four tiles fetch 32 columns of floats, twelve
// the widest panel and what is behind it; further ones would fetch what is not read next.
constexpr int kLinesAhead = 4, kTilesOfNext = 12;

// Tiles ahead at which maps are asked for, which may come from beyond the second-level cache; but
// four of 3840 floats a pixel are 0.5 MB there, where the panel of 0.7 MB is to stay.
constexpr int kMapAhead = 4, kLongSum = 1024;

template <int rows, int blocks, bool scattered, typename T, typename C>
void product_tile(const Product<T, C>& p, int first, const char* next) {
    constexpr int vecs = blocks * kPer, step = kPair<T>;
    Vec acc[rows][vecs];
    EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
        const Vec start = started<T>(p.bias + n * kLanes);
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) acc[m][n] = start;
    }
    if constexpr (!scattered) {
        if (p.residual) {
            const C* ahead = p.residual + (first + kMapAhead * rows) * kBlock;
            EFFNET_FAST_UNROLL for (int n = 0; n < blocks; ++n) {
                EFFNET_FAST_UNROLL for (int m = 0; m < rows; m += kPair<C>) {
                    __builtin_prefetch(ahead + n * p.c_stride + m * kBlock);
                }
            }
        }
    }
    const T* b = p.b;
    int k = 0;
    for (; k + 8 <= p.k; k += 8, b += 8 * vecs * kLanes) {
        const T* a = p.a + k / kBlock * p.a_stride + first * kBlock + k % kBlock;
        const T* ahead = a + (p.k > kLongSum ? 1 : kMapAhead) * rows * kBlock;
        constexpr int lines = kPair<T>;  // pixels of a cache line
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; m += 2 * lines) {
            __builtin_prefetch(ahead + (m + k % kBlock / 8 * lines) * kBlock);
        }
        EFFNET_FAST_UNROLL for (int line = 0; line < kLinesAhead; ++line) {
            __builtin_prefetch(next + line * 64, 0, 2);
        }
        next += kLinesAhead * 64;
        multiply_add<rows, vecs, 8>(acc, a, b);
    }
    for (; k < p.k; k += step, b += step * vecs * kLanes) {
        const T* a = p.a + k / kBlock * p.a_stride + first * kBlock + k % kBlock;
        multiply_add<rows, vecs, step>(acc, a, b);
    }
    EFFNET_FAST_UNROLL for (int n = 0; n < vecs; ++n) {
        Vec sum[rows];
        EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
            sum[m] = ended<T>(acc[m][n], p.scale + n * kLanes, p.bias + n * kLanes);
        }
        const long at = n / kPer * p.c_stride + n % kPer * kLanes;
        if constexpr (scattered) {
            EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
                store(p.c + at + p.offset[first + m], sum[m]);
            }
        } else {
            if (p.residual) {
                const C* residual = p.residual + at + first * kBlock;
                EFFNET_FAST_UNROLL for (int m = 0; m < rows; ++m) {
                    sum[m] += load(residual + m * kBlock);
                }
            }
            store_pixels<rows>(p.c + at + first * kBlock, sum);
        }
    }
}

template <typename T, typename C>
using Tile = void (*)(const Product<T, C>&, int first, const char* next);

// The tile of `wanted` rows, out of `rows` and down.
template <int rows, int blocks, bool scattered, typename T, typename C>
Tile<T, C> tile_of(int wanted) {
    if constexpr (rows == 1) {
        return product_tile<1, blocks, scattered, T, C>;
    } else {
        return wanted == rows ? product_tile<rows, blocks, scattered, T, C>
                              : tile_of<rows - 1, blocks, scattered, T, C>(wanted);
    }
}

// Tiles of as equal a height as can be: a last one of few rows would wait for its own sums.
template <int blocks, bool scattered, typename T, typename C>
void product_of(const Product<T, C>& p) {
    const int tiles = (p.pixels + kMaxRows[blocks] - 1) / kMaxRows[blocks];
    const int rows = p.pixels / tiles, higher = p.pixels % tiles;
    const Tile<T, C> tile = tile_of<kMaxRows[blocks], blocks, scattered, T, C>(rows);
    const Tile<T, C> high =
        higher ? tile_of<kMaxRows[blocks], blocks, scattered, T, C>(rows + 1) : tile;
    const long step = long(p.k / 8) * kLinesAhead * 64;
    const char* next = reinterpret_cast<const char*>(p.next);
    for (int i = 0, first = 0; i < tiles; ++i) {
        // What is in the cache costs nothing to ask for.
        const char* ahead = i < kTilesOfNext ? next + i * step : reinterpret_cast<const char*>(p.b);
        (i < higher ? high : tile)(p, first, ahead);
        first += rows + (i < higher);
    }
}

template <bool scattered, typename T, typename C>
void product(const Product<T, C>& p) {
    if (p.pixels == 0) return;
    if (p.blocks == 1) return product_of<1, scattered>(p);
    if constexpr (kPanelBlocks > 1) {
        p.blocks == 2 ? product_of<2, scattered>(p) : product_of<3, scattered>(p);
    }
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
