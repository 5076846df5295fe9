// The products of 1x1 convolutions on blocked tiles: output and input gradient, weight gradient.
#pragma once

#include "cpu/kernels/product.h"
#include "cpu/training/kernels/lanes.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {
namespace {

constexpr int kHighest = kMaxRows[kPanelBlocks];
static_assert(kHighest <= kMaxRows[1]);

// A sum of more is one of sums of so many: errors grow with their square root, and that much of a
// panel stays in the first-level cache.
constexpr int kLongest = 256;

// Steps [begin, end) of k.
template <int blocks, int rows>
void multiply_rows(const training::Multiply& p, const float* b, float* c, int first, int begin,
                   int end) {
    constexpr int vecs = blocks * kPer;
    Vec acc[rows][vecs] = {};
    const auto a_of = [&](int k) {
        return p.a + k / kBlock * p.a_stride + first * kBlock + k % kBlock;
    };
    int k = begin;
    b += long(begin) * vecs * kLanes;
    for (; k + 8 <= end; k += 8, b += 8 * vecs * kLanes) {
        multiply_add<rows, vecs, 8>(acc, a_of(k), b);
    }
    for (; k < end; ++k, b += vecs * kLanes) {
        multiply_add<rows, vecs, 1>(acc, a_of(k), b);
    }
#pragma GCC unroll 2
    for (int n = 0; n < blocks; ++n) {
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
            for (int i = 0; i < kPer; ++i) {
                float* to = c + n * p.c_stride + (first + m) * kBlock + i * kLanes;
                const Vec v = acc[m][n * kPer + i];
                store(to, begin ? load(to) + v : v);
            }
        }
    }
}

using Rows = decltype(&multiply_rows<1, 1>);

template <int blocks, int rows>
Rows rows_of(int wanted) {
    if constexpr (rows == 1) {
        return multiply_rows<blocks, 1>;
    } else {
        return wanted == rows ? multiply_rows<blocks, rows> : rows_of<blocks, rows - 1>(wanted);
    }
}

// One panel, in tiles of as equal a height as can be: a last one of few rows would wait for its own
// sums.
template <int blocks>
void multiply_panel(const training::Multiply& p, const float* b, float* c) {
    const int tiles = (p.pixels + kHighest - 1) / kHighest;
    const int rows = p.pixels / tiles, higher = p.pixels % tiles;
    const Rows tile = rows_of<blocks, kHighest>(rows);
    const Rows high = higher ? rows_of<blocks, kHighest>(rows + 1) : tile;
    for (int begin = 0; begin < p.k; begin += kLongest) {
        const int end = p.k - begin < kLongest ? p.k : begin + kLongest;
        for (int i = 0, first = 0; i < tiles; ++i) {
            (i < higher ? high : tile)(p, b, c, first, begin, end);
            first += rows + (i < higher);
        }
    }
}

void multiply(const training::Multiply& p) {
    if (p.pixels == 0) return;
    const int blocks = (p.n + kBlock - 1) / kBlock;
    int i = 0;
    for (; i + kPanelBlocks <= blocks; i += kPanelBlocks) {
        multiply_panel<kPanelBlocks>(p, p.b + long(i) * kBlock * p.k, p.c + i * p.c_stride);
    }
    static_assert(kPanelBlocks <= 2);  // so that one block is left, if any
    if (i < blocks) multiply_panel<1>(p, p.b + long(i) * kBlock * p.k, p.c + i * p.c_stride);
}

#if defined(__AVX512F__)
constexpr int kOuterRows = 8, kOuterBlocks = 3;  // 24 registers of sums
#elif defined(__aarch64__)
constexpr int kOuterRows = 4, kOuterBlocks = 1;  // 16 of 32
#elif defined(__AVX2__)
constexpr int kOuterRows = 4, kOuterBlocks = 1;  // 8 of 16
#else
constexpr int kOuterRows = 2, kOuterBlocks = 1;  // 8 of 16
#endif

// So many pixels are summed by themselves.
constexpr int kMostPixels = 64;

template <int blocks>
void outer_tile(const training::Outer& p, const float* a, const float* b, float* c, int begin,
                int end) {
    constexpr int vecs = blocks * kPer;
    Vec acc[kOuterRows][vecs] = {};
    for (int m = begin; m < end; ++m) {
        Vec v[vecs];
#pragma GCC unroll 4
        for (int n = 0; n < vecs; ++n) {
            v[n] = load(b + n / kPer * p.b_stride + m * kBlock + n % kPer * kLanes);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kOuterRows; ++i) {
            const Vec x = broadcast(a[m * kBlock + i]);
#pragma GCC unroll 4
            for (int n = 0; n < vecs; ++n) acc[i][n] += x * v[n];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kOuterRows; ++i) {
#pragma GCC unroll 4
        for (int n = 0; n < vecs; ++n) {
            float* to = c + i * p.c_row + n * kLanes;
            store(to, load(to) + acc[i][n]);
        }
    }
}

template <int blocks>
void outer_columns(const training::Outer& p, int column) {
    const float* b = p.b + column / kBlock * p.b_stride;
    for (int begin = 0; begin < p.pixels; begin += kMostPixels) {
        const int end = p.pixels - begin < kMostPixels ? p.pixels : begin + kMostPixels;
        for (int row = 0; row < p.rows; row += kOuterRows) {
            const float* a = p.a + row / kBlock * p.a_stride + row % kBlock;
            outer_tile<blocks>(p, a, b, p.c + row * p.c_row + column, begin, end);
        }
    }
}

void outer(const training::Outer& p) {
    int column = 0;
    for (; column + (kOuterBlocks - 1) * kBlock < p.columns; column += kOuterBlocks * kBlock) {
        outer_columns<kOuterBlocks>(p, column);
    }
    for (; column < p.columns; column += kBlock) outer_columns<1>(p, column);
}

}  // namespace
}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
