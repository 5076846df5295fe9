// A block is three steps with a barrier after the first and the last:
//   expand and depthwise, by groups of 32 channels and, for maps of few groups, stripes of rows;
//   the gate, which every thread computes for itself (0.5 % of the time, less than a barrier);
//   project, by panels of output channels or by pixels.
#include "cpu/forward.h"

#include <algorithm>

namespace effnet_fast::cpu {

namespace {

// Part `tid` of `count` things in `team` parts.
std::pair<int, int> share(int count, int tid, int team) {
    return {int(long(count) * tid / team), int(long(count) * (tid + 1) / team)};
}

class Forward {
public:
    Forward(const Job& job, Workspace& all, int image, float* out, int tid, int team)
        : job_(job), k_(job.kernels), all_(all), own_(all.threads[tid]), image_(image), out_(out),
          tid_(tid), team_(team) {}

    void run() {
        const float* in = nullptr;
        const int count = int(job_.plan.blocks.size());
        for (int i = 0; i < count; ++i) {
            float* next = all_.map[i % 2].data();
            expand_and_depthwise(i, in);
            barrier();
            gate(i);
            project(i, in, next);
            barrier();
            in = next;
        }
        head(in);
        if (job_.result == Result::features) return;
        barrier();
        classify();
    }

private:
    void barrier() {
        if (team_ == 1) return;
#pragma omp barrier
    }

    // Rows of a map of few groups are shared too; each stripe has sums of its own.
    int stripes(int groups, int rows) const {
        return team_ > 1 && groups < 4 * team_ && groups % team_ ? std::min(team_, rows) : 1;
    }

    void expand_and_depthwise(int i, const float* in) {
        const Conv& d = job_.network.blocks[i].depthwise;
        const BlockPlan& plan = job_.plan.blocks[i];
        const int blocks = blocks_of(d.out), groups = (blocks + kGroupBlocks - 1) / kGroupBlocks;
        const int parts = stripes(groups, plan.rows.out);
        clear_padding(plan);
        const auto [first, last] = share(groups * parts, tid_, team_);
        for (int item = first; item < last; ++item) {
            const int from = item / parts * kGroupBlocks;
            const int to = std::min(from + kGroupBlocks, blocks);
            const auto [top, bottom] = share(plan.rows.out, item % parts, parts);
            run_group(i, in, from, to, top, bottom, sums(item % parts));
        }
    }

    float* sums(int stripe) { return all_.sums.data() + stripe * job_.plan.channels; }

    void clear_padding(const BlockPlan& p) {
        const int before = p.columns.before * kBlock, width = p.ring_width * kBlock;
        const int after = before + p.columns.in * kBlock;
        for (int r = 0; r < kGroupBlocks * p.ring_rows; ++r) {
            float* row = own_.ring.data() + long(r) * width;
            std::fill(row, row + before, 0.0f);
            std::fill(row + after, row + width, 0.0f);
        }
    }

    // Output rows [top, bottom) of blocks [from, to), and their sums.
    void run_group(int i, const float* in, int from, int to, int top, int bottom, float* sums) {
        const Conv& d = job_.network.blocks[i].depthwise;
        const PackedBlock& packed = job_.packed.blocks[i];
        const BlockPlan& p = job_.plan.blocks[i];
        const long block_stride = long(p.ring_rows) * p.ring_width * kBlock;
        const long pixels = long(p.rows.out) * p.columns.out;
        const int taps = d.kernel * d.kernel, pad = p.rows.before;
        std::fill(sums + from * kBlock, sums + to * kBlock, 0.0f);
        const int end = std::min(p.rows.in, (bottom - 1) * d.stride - pad + d.kernel);
        int have = std::max(0, top * d.stride - pad);
        for (int y = top; y < bottom; ++y) {
            const int above = y * d.stride - pad;
            if (std::min(p.rows.in, above + d.kernel) > have) {
                const int until = std::min(end, std::max(0, above) + p.ring_rows);
                fill_ring(i, in, from, to, have, until);
                have = until;
            }
            for (int b = from; b < to; ++b) {
                const float* rows[5];
                for (int r = 0; r < d.kernel; ++r) {
                    const int at = above + r;
                    const bool outside = at < 0 || at >= p.rows.in;
                    rows[r] = outside ? all_.zeros.data()
                                      : own_.ring.data() + (b - from) * block_stride +
                                            long(at % p.ring_rows) * p.ring_width * kBlock;
                }
                float* out = all_.depthwise.data() +
                             (b * pixels + long(y) * p.columns.out) * kBlock;
                k_.depthwise_row({rows, packed.taps.data() + long(b) * taps * kBlock,
                                  packed.depthwise_bias.data() + b * kBlock, out, d.kernel,
                                  d.stride, p.columns.out});
                k_.activate(out, p.columns.out, d.act, sums + b * kBlock);
            }
        }
    }

    // Rows [top, bottom) of what the depthwise convolution reads.
    void fill_ring(int i, const float* in, int from, int to, int top, int bottom) {
        const BlockPlan& p = job_.plan.blocks[i];
        const Conv& expand = job_.network.blocks[i].expand;
        const int width = p.columns.in;
        const long block_stride = long(p.ring_rows) * p.ring_width * kBlock;
        float* ring = own_.ring.data();
        if (i > 0 && !expand.out) {
            for (int b = from; b < to; ++b) {
                for (int y = top; y < bottom; ++y) {
                    const float* row = in + (long(b) * p.rows.in + y) * width * kBlock;
                    std::copy_n(row, width * kBlock,
                                ring + (b - from) * block_stride + p.offset[long(y) * width]);
                }
            }
            return;
        }
        const bool stem = i == 0;
        const Panels& w = stem ? job_.packed.stem : job_.packed.blocks[i].expand;
        const auto [first, last] = w.range(from, to);
        const int step = stem ? 1 : bottom - top;
        for (int y = top; y < bottom; y += step) {
            Product product = {};
            if (stem) {
                gather_patches(y);
                product.a = own_.patches.data();
                product.a_stride = long(width) * kBlock;
            } else {
                product.a = in + long(y) * width * kBlock;
                product.a_stride = long(p.rows.in) * width * kBlock;
            }
            product.c_stride = block_stride;
            product.offset = p.offset.data() + long(y) * width;
            product.pixels = step * width;
            for (int j = first; j < last; ++j) {
                product.c = ring + (w.panels[j].first_block - from) * block_stride;
                multiply(product, w, j, w.weight.data() + w.panels[j].offset);
            }
        }
        const Activation act = stem ? job_.network.stem.act : expand.act;
        for (int b = from; b < to; ++b) {
            for (int y = top; y < bottom; ++y) {
                float* row = ring + (b - from) * block_stride + p.offset[long(y) * width];
                k_.activate(row, width, act, nullptr);
            }
        }
    }

    // By panel `j` of `w`, whose weights (or a scaled copy of them) are at `weight`.
    void multiply(Product& product, const Panels& w, int j, const float* weight) {
        const Panel& panel = w.panels[j];
        product.b = weight;
        product.k = w.k;
        product.bias = w.bias.data() + panel.first_block * kBlock;
        product.blocks = panel.blocks;
        const bool more = j + 1 < int(w.panels.size()) && w.panels[j + 1].blocks == panel.blocks;
        product.next = more ? w.weight.data() + w.panels[j + 1].offset : nullptr;
        k_.product(product);
    }

    // The patches of one row of the stem's output: [c * kernel * kernel / 16][x][16].
    void gather_patches(int y) {
        const Conv& s = job_.network.stem;
        int k = 0;
        for (int c = 0; c < s.in; ++c) {
            for (int r = 0; r < s.kernel; ++r) {
                const int row = y * s.stride - job_.plan.stem_rows.before + r;
                for (int column = 0; column < s.kernel; ++column, ++k) {
                    const int width = job_.plan.stem_columns.out;
                    float* to = own_.patches.data() + long(k / kBlock) * width * kBlock + k % kBlock;
                    if (job_.input.is_uint8) {
                        const float scale = job_.network.scale[c], shift = job_.network.shift[c];
                        gather(to, c, row, column, static_cast<const uint8_t*>(job_.input.data),
                               [=](uint8_t v) { return scale * float(v) + shift; });
                    } else {
                        gather(to, c, row, column, static_cast<const float*>(job_.input.data),
                               [](float v) { return v; });
                    }
                }
            }
        }
    }

    template <typename T, typename Convert>
    void gather(float* to, int c, int row, int column, const T* data, Convert convert) {
        const Input& x = job_.input;
        const int width = job_.plan.stem_columns.out, stride = job_.network.stem.stride;
        const int before = job_.plan.stem_columns.before - column;
        // Output x reads column x * stride - before: those in [from, until) lie in the image.
        const bool outside = row < 0 || row >= x.h;
        const int from = outside ? width : std::min(width, (std::max(before, 0) + stride - 1) / stride);
        const int beyond = std::max(x.w + before + stride - 1, 0) / stride;
        const int until = outside ? width : std::max(from, std::min(width, beyond));
        for (int i = 0; i < from; ++i) to[i * kBlock] = 0.0f;
        const T* at = data + image_ * x.stride_n + c * x.stride_c + row * x.stride_h;
        for (int i = from; i < until; ++i) {
            to[i * kBlock] = convert(at[(long(i) * stride - before) * x.stride_w]);
        }
        for (int i = until; i < width; ++i) to[i * kBlock] = 0.0f;
    }

    void gate(int i) {
        const Block& b = job_.network.blocks[i];
        if (!b.reduce.out) return;
        const BlockPlan& p = job_.plan.blocks[i];
        const PackedBlock& packed = job_.packed.blocks[i];
        const int blocks = blocks_of(b.depthwise.out);
        const int groups = (blocks + kGroupBlocks - 1) / kGroupBlocks;
        const int parts = stripes(groups, p.rows.out);
        const float inverse = 1.0f / (float(p.rows.out) * float(p.columns.out));
        for (int c = 0; c < blocks * kBlock; ++c) {
            float sum = sums(0)[c];
            for (int s = 1; s < parts; ++s) sum += sums(s)[c];
            own_.mean.data()[c] = sum * inverse;
        }
        k_.squeeze_excite(own_.mean.data(), packed.reduce.data(), packed.reduce_bias.data(),
                          packed.widen.data(), packed.widen_bias.data(), b.squeeze_act,
                          own_.hidden.data(), own_.gate.data(), b.reduce.out, blocks);
    }

    void project(int i, const float* in, float* out) {
        const Block& b = job_.network.blocks[i];
        const BlockPlan& p = job_.plan.blocks[i];
        const Panels& w = job_.packed.blocks[i].project;
        const int pixels = p.rows.out * p.columns.out, panels = int(w.panels.size());
        const bool by_panel = panels % team_ == 0;
        const auto [first, last] = by_panel ? share(panels, tid_, team_) : std::pair(0, panels);
        const auto [left, right] = by_panel ? std::pair(0, pixels) : share(pixels, tid_, team_);
        if (left == right) return;
        for (int j = first; j < last; ++j) {
            const Panel& panel = w.panels[j];
            const float* weight = w.weight.data() + panel.offset;
            if (b.reduce.out) {
                k_.scale_rows(own_.panel.data(), weight, own_.gate.data(), w.k,
                              panel.blocks * kBlock);
                weight = own_.panel.data();
            }
            const long at = (long(panel.first_block) * pixels + left) * kBlock;
            Product product = {};
            product.a = all_.depthwise.data() + long(left) * kBlock;
            product.a_stride = product.c_stride = long(pixels) * kBlock;
            product.c = out + at;
            product.residual = b.residual ? in + at : nullptr;
            product.pixels = right - left;
            multiply(product, w, j, weight);
        }
    }

    void head(const float* in) {
        const BlockPlan& last_block = job_.plan.blocks.back();
        const Panels& w = job_.packed.head;
        const int pixels = last_block.rows.out * last_block.columns.out;
        float* piece = own_.piece.data();
        const auto [first, last] = share(int(w.panels.size()), tid_, team_);
        for (int j = first; j < last; ++j) {
            const int base = w.panels[j].first_block, blocks = w.panels[j].blocks;
            float* pooled = all_.pooled.data() + base * kBlock;
            std::fill(pooled, pooled + blocks * kBlock, 0.0f);
            for (int left = 0; left < pixels; left += kPiece) {
                Product product = {};
                product.a = in + long(left) * kBlock;
                product.a_stride = long(pixels) * kBlock;
                product.c = piece;
                product.c_stride = kPiece * kBlock;
                product.pixels = std::min(kPiece, pixels - left);
                multiply(product, w, j, w.weight.data() + w.panels[j].offset);
                for (int b = 0; b < blocks; ++b) {
                    float* map = piece + b * kPiece * kBlock;
                    k_.activate(map, product.pixels, job_.network.head.act, pooled + b * kBlock);
                    if (job_.result == Result::features) {
                        write_features(map, product.pixels, left, (base + b) * kBlock);
                    }
                }
            }
            for (int c = 0; c < blocks * kBlock; ++c) pooled[c] /= float(pixels);
        }
    }

    void write_features(const float* map, int pixels, int left, int channel) {
        const int features = job_.network.head.out;
        const int count = std::min(kBlock, features - channel);
        for (int m = 0; m < pixels; ++m) {
            std::copy_n(map + m * kBlock, count, out_ + long(left + m) * features + channel);
        }
    }

    void classify() {
        const Panels& w = job_.packed.classifier;
        if (!w.out) {
            if (tid_ == 0) std::copy_n(all_.pooled.data(), job_.network.head.out, out_);
            return;
        }
        const auto [first, last] = share(int(w.panels.size()), tid_, team_);
        for (int j = first; j < last; ++j) {
            const int at = w.panels[j].first_block * kBlock;
            Product product = {};
            product.a = all_.pooled.data();
            product.a_stride = product.c_stride = kBlock;
            product.c = own_.piece.data();
            product.pixels = 1;
            multiply(product, w, j, w.weight.data() + w.panels[j].offset);
            const int count = std::min(w.panels[j].blocks * kBlock, w.out - at);
            std::copy_n(own_.piece.data(), count, out_ + at);
        }
    }

    const Job& job_;
    const Kernels& k_;
    Workspace& all_;
    Workspace::PerThread& own_;
    const int image_;
    float* const out_;
    const int tid_, team_;
};

}  // namespace

void forward(const Job& job, Workspace& workspace, int image, float* out, int tid, int team) {
    Forward(job, workspace, image, out, tid, team).run();
}

}  // namespace effnet_fast::cpu
