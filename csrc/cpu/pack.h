// Weights in the order in which the kernels read them, which is that of execution.
#pragma once

#include <utility>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/engine.h"
#include "cpu/memory.h"

namespace effnet_fast::cpu {

// Blocks that are multiplied, or expanded and convolved, together.
struct Range {
    int first, count;
};

// Columns of a product's weights that one pass over the pixels multiplies.
struct Panel : Range {
    size_t offset;  // in Panels::weight
};

template <typename T>
struct Panels {
    int k = 0, out = 0;
    std::vector<Panel> panels;
    const T* weight = nullptr;      // by panels, as Product::b
    const float* bias = nullptr;    // whole blocks
    size_t size(const Panel& p) const { return size_t(k + k % pair) * p.count * kBlock; }

    static constexpr int pair = sizeof(T) == 4 ? 1 : 2;
};

template <typename T>
struct PackedBlock {
    std::vector<Range> groups;  // of the depthwise convolution: no panel of `expand` crosses one
    Panels<T> expand, project;
    const float *taps, *depthwise_bias;  // [block][kernel * kernel][16], [block][16]
    // widen transposed to [squeezed][c].
    const float *reduce = nullptr, *reduce_bias = nullptr, *widen = nullptr, *widen_bias = nullptr;
};

template <typename T>
struct Packed {
    Arena arena;
    Panels<float> stem;  // k: (channel, row, column)
    std::vector<PackedBlock<T>> blocks;
    Panels<T> head, classifier;
};

// std::invalid_argument names what does not fit.
void check(const Network& network);

template <typename T>
Packed<T> pack(const Network& network, int panel_blocks);

}  // namespace effnet_fast::cpu
