#include "cpu/plan.h"

#include <algorithm>

#include "cpu/pack.h"

namespace effnet_fast::cpu {

Axis axis(int in, int kernel, int stride, bool same_padding) {
    if (!same_padding) {
        const int pad = (kernel - 1) / 2;
        return {in, (in + 2 * pad - kernel) / stride + 1, pad};
    }
    const int out = (in + stride - 1) / stride;
    return {in, out, std::max((out - 1) * stride + kernel - in, 0) / 2};
}

namespace {

BlockPlan plan_block(const Conv& d, int h, int w, bool same) {
    BlockPlan p;
    p.rows = axis(h, d.kernel, d.stride, same);
    p.columns = axis(w, d.kernel, d.stride, same);
    // Rows are expanded a few at a time, 112 pixels or more: a register tile is seldom cut, and the
    // products of three blocks are 21 KiB.
    // Maps of up to 14 rows stay whole: a group of them takes 32 KiB at most.
    p.chunk = std::min(h, std::max(d.stride, (112 + w - 1) / w));
    p.ring_rows = h <= 14 ? h : std::min(h, d.kernel + p.chunk + d.stride - 2);
    p.ring_width = std::max(p.columns.before + w, (p.columns.out - 1) * d.stride + d.kernel);
    p.ring_width += p.ring_width % 2;  // whole pairs
    for (int y = 0; y < p.chunk; ++y) {
        for (int x = 0; x < w; ++x) p.offset.push_back((y * p.chunk_width() + 1 + x) * kBlock);
    }
    return p;
}

}  // namespace

Plan make_plan(const Network& n, int h, int w) {
    Plan plan;
    for (int m = 0; m < kPiece; ++m) plan.dense.push_back(m * kBlock);
    plan.stem_rows = axis(h, n.stem.kernel, n.stem.stride, n.same_padding);
    plan.stem_columns = axis(w, n.stem.kernel, n.stem.stride, n.same_padding);
    h = plan.stem_rows.out, w = plan.stem_columns.out;
    const Axis& across = plan.stem_columns;
    plan.image_width = std::max(across.before + (across.in + kBlock - 1) / kBlock * kBlock,
                                (w - 1) * n.stem.stride + n.stem.kernel);
    plan.image_rows = size_t(n.stem.in + n.stem.in % 2) * n.stem.kernel;  // whole pairs
    const auto floats = [](int channels) { return size_t(blocks_of(channels)) * kBlock; };
    for (const Block& b : n.blocks) {
        BlockPlan p = plan_block(b.depthwise, h, w, n.same_padding);
        h = p.rows.out, w = p.columns.out;
        const size_t pixels = size_t(h) * w, c = floats(b.depthwise.out);
        plan.products =
            std::max(plan.products, size_t(kWidest) * p.chunk * p.chunk_width() * kBlock);
        plan.ring = std::max(plan.ring, size_t(kWidest) * p.ring_rows * p.ring_width * kBlock);
        plan.depthwise = std::max(plan.depthwise, pixels * c);
        plan.map = std::max(plan.map, pixels * floats(b.project.out));
        plan.channels = std::max({plan.channels, c, floats(b.reduce.out)});
        plan.rows =
            std::max(plan.rows, size_t(p.rows.out) * b.depthwise.stride + b.depthwise.kernel);
        plan.zeros = std::max(plan.zeros, size_t(p.ring_width) * kBlock);
        plan.panel = std::max(plan.panel, size_t(b.project.in + 1) * kWidest * kBlock);
        plan.blocks.push_back(std::move(p));
    }
    plan.channels = std::max(plan.channels, floats(n.head.out));
    plan.products = std::max(plan.products, size_t(kWidest) * kPiece * kBlock);
    return plan;
}

template <typename T>
Workspace<T>::Workspace(const Plan& plan, int count) {
    for (T*& m : map) m = arena.get<T>(plan.map);
    depthwise = arena.get<T>(plan.depthwise);
    narrow = arena.get<T>(plan.channels);
    pooled = arena.get<float>(plan.channels);
    zeros = arena.get<T>(plan.zeros);
    for (int i = 0; i < count; ++i) {
        PerThread t;
        t.ring = arena.get<T>(plan.ring);
        t.products = arena.get<float>(plan.products);
        t.sums = arena.get<float>(kWidest * kBlock);
        for (float** f : {&t.squeezed, &t.hidden, &t.gate}) *f = arena.get<float>(plan.channels);
        for (float*& line : t.lines) line = arena.get<float>(plan.stem_columns.in);
        t.no_line = arena.get<float>(plan.stem_columns.in);
        t.image = arena.get<T>(plan.image_rows * plan.image_width);
        t.rows = arena.get<const T*>(std::max(plan.image_rows, plan.rows));
        t.panel = arena.get<T>(plan.panel);
        threads.push_back(t);
    }
}

template struct Workspace<float>;
template struct Workspace<Bf16>;

}  // namespace effnet_fast::cpu
