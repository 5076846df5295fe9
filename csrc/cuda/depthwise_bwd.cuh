// The depthwise backward kernel's parameters.
//
// Positions are rows u and columns v of padded x, divided by the stride: tap (i, j) joins position
// (u, v) and dy[u - i / S, v - j / S].
#pragma once

#include "cuda/activation.cuh"
#include "cuda/depthwise.cuh"

namespace effnet_fast {

constexpr int kSums = 2;  // sum h, sum h * (x - mean)

struct BwdParams {
    DepthwiseBwdArgs op;
    Tile tile;
    Act y_act, in_act;
    bool vectors;  // of every map: copied asynchronously
    bool lanes;    // of dx: stored together
    int u0, v0;    // first position that owns a pixel of x
    int u1;        // last row of positions that does
    int x_row_bytes, y_row_bytes, dx_row_bytes, dx_column_bytes;
    int64_t to_g, to_residual;  // bytes from y, and from dx
    float* partials;            // [parts][taps + kSums][C]
};

inline void place_positions(const DepthwiseBwdArgs& args, BwdParams* p) {
    const DepthwiseShape& s = args.shape;
    p->u0 = s.pad_top / s.stride, p->v0 = s.pad_left / s.stride;
    p->u1 = (s.h - 1 + s.pad_top) / s.stride;
}

// Whether every map that is read consists of aligned vectors.
inline bool whole_maps(const DepthwiseBwdArgs& args) {
    const DepthwiseShape& s = args.shape;
    return whole_vectors(args.x, s.dtype, s.c) &&
           whole_vectors(dense_map(args.y, s.p, s.q, s.c), s.dtype, s.c) &&
           whole_vectors(dense_map(args.g, s.p, s.q, s.c), s.dtype, s.c);
}

}  // namespace effnet_fast
