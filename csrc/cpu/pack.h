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
    const float *scale = nullptr, *bias = nullptr;  // whole blocks
    size_t size(const Range& p) const { return size_t(k + k % kPair<T>) * p.count * kBlock; }
};

// Channels of a block that are expanded and convolved together: no panel of `expand` crosses them,
// and behind its panels lie its other weights, so that all are fetched during the group before it.
template <typename T>
struct Group : Range {
    const T* taps;                             // of each block as Depthwise::weight
    const T *reduce = nullptr, *widen = nullptr;  // [c][squeezed], [squeezed][c]
};

template <typename T>
struct PackedBlock {
    std::vector<Group<T>> groups;
    Panels<T> expand, project;
    long taps;  // of the depthwise weights of a block
    const float *depthwise_scale, *depthwise_bias;  // [block][16]
    const float *reduce_bias = nullptr, *widen_bias = nullptr;
};

template <typename T>
struct Packed {
    Arena arena;
    Panels<T> stem;  // k: (channel, row, column), of Bf16 with pairs of channels innermost
    std::vector<PackedBlock<T>> blocks;
    Panels<T> head, classifier;
};

// std::invalid_argument names what does not fit.
void check(const Network& network);

template <typename T>
Packed<T> pack(const Network& network, int panel_blocks);

}  // namespace effnet_fast::cpu
