// What follows from the size of an image: maps, padding, rings of rows, workspace.
#pragma once

#include <vector>

#include "cpu/engine.h"
#include "cpu/memory.h"

namespace effnet_fast::cpu {

// One axis of a convolution.
struct Axis {
    int in, out, before;  // `before`: padding ahead of the first input
};

Axis axis(int in, int kernel, int stride, bool same_padding);

// A block whose depthwise convolution reads maps of rows.in x columns.in, of which a ring in the
// cache holds `ring_rows` rows of `ring_width` pixels, padding included. It is filled by `chunk`
// rows at a time, whose products lie apart with a pixel of zeros on either side.
struct BlockPlan {
    Axis rows, columns;
    int ring_rows, ring_width, chunk;
    std::vector<int> offset;  // of pixel y * columns.in + x of a chunk, in floats
    int chunk_width() const { return columns.in + 2; }
};

// One map row of products is cut into pieces of this many pixels where it need not stay whole.
constexpr int kPiece = 56;

struct Plan {
    Axis stem_rows, stem_columns;
    int image_width;  // of a row with its padding, and what fills its last register
    std::vector<BlockPlan> blocks;
    std::vector<int> dense;  // offsets of kPiece pixels side by side
    // Values of the largest of each.
    size_t map = 0, depthwise = 0, ring = 0, zeros = 0, channels = 0, panel = 0, products = 0;
    size_t image_rows = 0, rows = 0;
};

Plan make_plan(const Network& network, int h, int w);

// What one call at a time writes on.
template <typename T>
struct Workspace {
    struct PerThread {
        T *ring, *panel, *image;
        float *products, *sums, *squeezed, *hidden, *gate;
        float *lines[kPair<T>], *no_line;  // of the image; no_line stays zero, as its padding does
        const T** rows;  // of the image, or of the ring
    };
    Workspace(const Plan& plan, int threads);

    Arena arena;
    T *map[2], *depthwise, *narrow, *zeros;
    float* pooled;
    std::vector<PerThread> threads;
};

}  // namespace effnet_fast::cpu
