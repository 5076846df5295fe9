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
    // Rows are expanded a few at a time, 28 pixels or more, so that a register tile is seldom cut.
    // Maps of up to 14 rows stay whole: a group of them takes 32 KiB at most.
    const int chunk = std::max(d.stride, (28 + w - 1) / w);
    p.ring_rows = h <= 14 ? h : std::min(h, d.kernel + chunk + d.stride - 2);
    p.ring_width = std::max(p.columns.before + w, (p.columns.out - 1) * d.stride + d.kernel);
    p.offset.resize(size_t(h) * w);
    for (int y = 0; y < h; ++y) {
        for (int x = 0; x < w; ++x) {
            p.offset[size_t(y) * w + x] =
                (y % p.ring_rows * p.ring_width + p.columns.before + x) * kBlock;
        }
    }
    return p;
}

}  // namespace

Plan make_plan(const Network& n, int h, int w, int panel_blocks) {
    Plan plan;
    plan.stem_rows = axis(h, n.stem.kernel, n.stem.stride, n.same_padding);
    plan.stem_columns = axis(w, n.stem.kernel, n.stem.stride, n.same_padding);
    h = plan.stem_rows.out, w = plan.stem_columns.out;
    const int taps = n.stem.kernel * n.stem.kernel;
    plan.patches = size_t(blocks_of(n.stem.in * taps)) * w * kBlock;
    const auto floats = [](int channels) { return size_t(blocks_of(channels)) * kBlock; };
    for (const Block& b : n.blocks) {
        BlockPlan p = plan_block(b.depthwise, h, w, n.same_padding);
        h = p.rows.out, w = p.columns.out;
        const size_t pixels = size_t(h) * w, c = floats(b.depthwise.out);
        plan.ring = std::max(plan.ring, size_t(kGroupBlocks) * p.ring_rows * p.ring_width * kBlock);
        plan.depthwise = std::max(plan.depthwise, pixels * c);
        plan.map = std::max(plan.map, pixels * floats(b.project.out));
        plan.channels = std::max({plan.channels, c, floats(b.reduce.out)});
        plan.panel = std::max(plan.panel, size_t(b.project.in) * panel_blocks * kBlock);
        plan.blocks.push_back(std::move(p));
    }
    plan.channels = std::max(plan.channels, floats(n.head.out));
    return plan;
}

Workspace::Workspace(const Plan& plan, int count)
    : depthwise(plan.depthwise), pooled(plan.channels), sums(plan.channels * count) {
    size_t widest = 0;
    for (const BlockPlan& b : plan.blocks) widest = std::max(widest, size_t(b.ring_width) * kBlock);
    zeros = Floats(widest);
    for (Floats& m : map) m = Floats(plan.map);
    for (int i = 0; i < count; ++i) {
        const size_t c = plan.channels, piece = size_t(kGroupBlocks) * kPiece * kBlock;
        threads.push_back({Floats(plan.ring), Floats(c), Floats(c), Floats(c), Floats(plan.panel),
                           Floats(plan.patches), Floats(piece)});
    }
}

size_t Workspace::bytes() const {
    size_t total = map[0].size() + map[1].size() + depthwise.size() + pooled.size() + sums.size() +
                   zeros.size();
    for (const PerThread& t : threads) {
        for (const Floats* f : {&t.ring, &t.mean, &t.gate, &t.hidden, &t.panel, &t.patches,
                                &t.piece}) {
            total += f->size();
        }
    }
    return total * sizeof(float);
}

}  // namespace effnet_fast::cpu
