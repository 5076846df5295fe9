// Weights in the order in which the kernels read them, which is that of execution.
#pragma once

#include <utility>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/engine.h"
#include "cpu/memory.h"

namespace effnet_fast::cpu {

// Blocks of 16 channels.
struct Range {
    int first, count;
};

// Columns of a product's weights that one pass over the pixels multiplies.
template <typename T>
struct Panel : Range {
    const T* weight;  // as Product::b
};

template <typename T>
struct Panels {
    int k = 0, out = 0;
    std::vector<Panel<T>> panels;
    const float* bias = nullptr;  // whole blocks
    size_t size(const Range& p) const { return size_t(k + k % pair) * p.count * kBlock; }

    static constexpr int pair = sizeof(T) == 4 ? 1 : 2;
};

// Channels of a block that are expanded and convolved together: no panel of `expand` crosses them.
struct Group : Range {
    const float* reduce;  // [c][squeezed], its rows of the squeeze: behind its panels
};

template <typename T>
struct PackedBlock {
    std::vector<Group> groups;
    Panels<T> expand, project;
    const float *taps, *depthwise_bias;  // [block][kernel * kernel][16], [block][16]
    const float *reduce_bias = nullptr, *widen = nullptr, *widen_bias = nullptr;  // [squeezed][c]
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
