// Weights in the order in which the kernels read them.
#pragma once

#include <vector>

#include "cpu/engine.h"
#include "cpu/memory.h"

namespace effnet_fast::cpu {

inline int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

// Columns of a product's weights that one pass over the pixels multiplies.
struct Panel {
    int first_block, blocks;
    size_t offset;  // in Panels::weight
};

// [panel][k][16 * blocks], channels beyond `out` zero. No panel crosses a group of kGroupBlocks.
struct Panels {
    int k = 0, out = 0;
    std::vector<Panel> panels;
    Floats weight, bias;

    int blocks() const { return blocks_of(out); }
    // Panels that start in blocks [first, last).
    std::pair<int, int> range(int first, int last) const;
};

// weight [out][k], bias [out].
Panels pack(const std::vector<float>& weight, const std::vector<float>& bias, int out, int k,
            int panel_blocks);

// [rows][c] in rows of whole blocks.
Floats pack_rows(const float* rows, int count, int c);

struct PackedBlock {
    Panels expand, project;
    Floats taps, depthwise_bias;                       // [block][kernel * kernel][16], [block][16]
    Floats reduce, reduce_bias, widen, widen_bias;     // widen transposed to [squeezed][c]
};

struct Packed {
    Panels stem, head, classifier;  // k of the stem: (channel, row, column)
    std::vector<PackedBlock> blocks;
};

// std::invalid_argument names what does not fit.
void check(const Network& network);
Packed pack(const Network& network, int panel_blocks);

}  // namespace effnet_fast::cpu
