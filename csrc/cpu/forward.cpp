// A block is three steps with a barrier after the first and the last:
//   expand and depthwise, by groups of two or three blocks and, where those are few, stripes of
//     rows;
//   the gate: squeezed with each group, while its weights come with those of the next; widened by
//     every thread for itself (0.4 % of B4's time on two);
//   project, by panels of output channels or by pixels.
#include "cpu/forward.h"

#include <algorithm>
#include <chrono>

#include "cpu/image.h"
#include "cpu/team.h"

namespace effnet_fast::cpu {

namespace {

// Part `tid` of `count` things in `team` parts.
std::pair<int, int> share(int count, int tid, int team) {
    return {int(long(count) * tid / team), int(long(count) * (tid + 1) / team)};
}

template <typename T>
class Forward {
public:
    Forward(const Job<T>& job, Workspace<T>& all, int image, float* out, int tid, int team)
        : job_(job), k_(job.kernels), all_(all), own_(all.threads[tid]), out_(out), tid_(tid),
          team_(team), seconds_(tid == 0 ? job.seconds : nullptr), image_rows_(job, own_, image) {}

    void run() {
        if (seconds_) since_ = Clock::now();
        const T* in = nullptr;
        const int count = int(job_.plan.blocks.size());
        for (int i = 0; i < count; ++i) {
            T* next = all_.map[i % 2];
            expand_and_depthwise(i, in);
            barrier();
            lap();
            gate(i);
            project(i, in, next);
            barrier();
            lap();
            in = next;
        }
        head(in);
        lap();
        if (job_.result == Result::features) return;
        barrier();
        classify();
        lap();
    }

private:
    using Clock = std::chrono::steady_clock;

    // The end of a step.
    void lap() {
        if (!seconds_) return;
        const Clock::time_point now = Clock::now();
        *seconds_++ += std::chrono::duration<double>(now - since_).count();
        since_ = now;
    }

    void barrier() {
        if (team_ > 1) cpu::barrier(&all_);
    }

    // Rows of a map of few groups are shared too.
    int stripes(int groups, int rows) const {
        return team_ > 1 && groups < 4 * team_ && groups % team_ ? std::min(team_, rows) : 1;
    }

    void expand_and_depthwise(int i, const T* in) {
        const BlockPlan& plan = job_.plan.blocks[i];
        const std::vector<Group<T>>& groups = job_.packed.blocks[i].groups;
        const int parts = stripes(int(groups.size()), plan.rows.out);
        clear_padding(plan);
        std::fill_n(own_.squeezed, squeezed(i), 0.0f);
        const auto [first, last] = share(int(groups.size()) * parts, tid_, team_);
        for (int item = first; item < last; ++item) {
            const auto [top, bottom] = share(plan.rows.out, item % parts, parts);
            run_group(i, in, groups[item / parts], top, bottom);
        }
    }

    // Channels of block i's squeeze, in whole blocks.
    int squeezed(int i) const {
        return blocks_of(job_.network.blocks[i].reduce.out) * kBlock;
    }

    void clear_padding(const BlockPlan& p) {
        // Whole pairs of the ring: what is not padding is written afterwards.
        constexpr int pair = kPair<T>;
        const int before = p.columns.before, width = p.ring_width * kBlock;
        const int left = (before + pair - 1) / pair * pair * kBlock;
        const int right = (before + p.columns.in) / pair * pair * kBlock;
        for (int r = 0; r < kWidest * p.ring_rows; ++r) {
            T* row = own_.ring + long(r) * width;
            std::fill(row, row + left, T{});
            std::fill(row + right, row + width, T{});
        }
        const int between = p.chunk_width() * kBlock;
        for (int r = 0; r < kWidest * p.chunk; ++r) {
            float* row = own_.products + long(r) * between;
            std::fill_n(row, kBlock, 0.0f);
            std::fill_n(row + between - kBlock, kBlock, 0.0f);
        }
    }

    // Output rows [top, bottom) of the blocks of one group, and what their sums are squeezed to.
    void run_group(int i, const T* in, const Group<T>& group, int top, int bottom) {
        const Conv& d = job_.network.blocks[i].depthwise;
        const PackedBlock<T>& packed = job_.packed.blocks[i];
        const BlockPlan& p = job_.plan.blocks[i];
        const long block_stride = long(p.ring_rows) * p.ring_width * kBlock;
        const long pixels = long(p.rows.out) * p.columns.out;
        const int pad = p.rows.before;
        std::fill_n(own_.sums, group.count * kBlock, 0.0f);
        const int end = std::min(p.rows.in, (bottom - 1) * d.stride - pad + d.kernel);
        int have = std::max(0, top * d.stride - pad);
        image_rows_.restart(have * job_.network.stem.stride - job_.plan.stem_rows.before);
        for (int y = top; y < bottom;) {
            const int above = y * d.stride - pad;
            if (std::min(p.rows.in, above + d.kernel) > have) {
                const int until = std::min(end, std::max(0, above) + p.ring_rows);
                fill_ring(i, in, group, have, until);
                have = until;
            }
            // All the rows that need no more than there is.
            const int ready = have == end ? bottom : (have + pad - d.kernel) / d.stride + 1;
            const int count = ready - y, read = (count - 1) * d.stride + d.kernel;
            for (int b = 0; b < group.count; ++b) {
                for (int r = 0; r < read; ++r) {
                    const int at = above + r;
                    const bool outside = at < 0 || at >= p.rows.in;
                    own_.rows[r] = outside ? all_.zeros
                                           : own_.ring + b * block_stride +
                                                 long(at % p.ring_rows) * p.ring_width * kBlock;
                }
                const long block = group.first + b;
                k_.depthwise({own_.rows, group.taps + b * packed.taps,
                              packed.depthwise_scale + block * kBlock,
                              packed.depthwise_bias + block * kBlock,
                              all_.depthwise + (block * pixels + long(y) * p.columns.out) * kBlock,
                              own_.sums + b * kBlock, d.kernel, d.stride, count, p.columns.out,
                              d.act});
            }
            y = ready;
        }
        if (const int width = squeezed(i)) {
            const int channels = std::min(group.count * kBlock, d.out - group.first * kBlock);
            k_.squeeze(own_.squeezed, own_.sums, group.reduce, channels, width);
        }
    }

    // Rows [top, bottom) of what the depthwise convolution reads.
    void fill_ring(int i, const T* in, Range group, int top, int bottom) {
        const BlockPlan& p = job_.plan.blocks[i];
        const Conv& expand = job_.network.blocks[i].expand;
        const Activation act = i == 0 ? job_.network.stem.act : expand.act;
        const long row = long(p.chunk_width()) * kBlock, ring_row = long(p.ring_width) * kBlock;
        for (int y = top; y < bottom;) {
            const int count = std::min(p.chunk, bottom - y);
            if (i == 0) {
                stem(p, group, y, count);
            } else if (expand.out) {
                multiply(i, in, group, y, count);
            } else {
                widen(p, in, group, y, count);
            }
            for (int done = 0; done < count;) {  // in parts that are whole in the ring
                const int slot = (y + done) % p.ring_rows;
                const int rows = std::min(count - done, p.ring_rows - slot);
                for (int b = 0; b < group.count; ++b) {
                    k_.fill({own_.products + (b * p.chunk + done) * row + kBlock, row,
                             own_.ring + (long(b) * p.ring_rows + slot) * ring_row, ring_row,
                             p.columns.before, rows, p.columns.in, act});
                }
                done += rows;
            }
            y += count;
        }
    }

    // These three make rows [y, y + count) of products.

    void multiply(int i, const T* in, Range group, int y, int count) {
        const BlockPlan& p = job_.plan.blocks[i];
        const Panels<T>& w = job_.packed.blocks[i].expand;
        Product<T, float> product = {};
        product.a = in + long(y) * p.columns.in * kBlock;
        product.a_stride = long(p.rows.in) * p.columns.in * kBlock;
        product.c_stride = long(p.chunk) * p.chunk_width() * kBlock;
        product.offset = p.offset.data();
        product.pixels = count * p.columns.in;
        for (const Panel<T>* panel = first_of(w, group); in_group(w, group, panel); ++panel) {
            product.c = own_.products + (panel->first - group.first) * product.c_stride;
            set(product, w, *panel);
            k_.product(product);
        }
    }

    void widen(const BlockPlan& p, const T* in, Range group, int y, int count) {
        for (int b = 0; b < group.count; ++b) {
            for (int r = 0; r < count; ++r) {
                const long row = (group.first + b) * long(p.rows.in) + y + r;
                k_.widen(product_row(p, b, r), in + row * p.columns.in * kBlock,
                         long(p.columns.in) * kBlock);
            }
        }
    }

    void stem(const BlockPlan& p, Range group, int y, int count) {
        const Conv& s = job_.network.stem;
        const Panels<T>& w = job_.packed.stem;
        for (int r = 0; r < count; ++r) {
            const T* const* rows =
                image_rows_.rows((y + r) * s.stride - job_.plan.stem_rows.before);
            for (const Panel<T>* panel = first_of(w, group); in_group(w, group, panel); ++panel) {
                k_.stem({rows, image_rows_.count(), s.kernel, s.stride, panel->weight,
                         w.scale + panel->first * kBlock, w.bias + panel->first * kBlock,
                         product_row(p, panel->first - group.first, r),
                         long(p.chunk) * p.chunk_width() * kBlock, p.columns.in, panel->count});
            }
        }
    }

    // Pixel 0 of row `r` of the products of the group's block `b`.
    float* product_row(const BlockPlan& p, int b, int r) {
        return own_.products + ((long(b) * p.chunk + r) * p.chunk_width() + 1) * kBlock;
    }

    static const Panel<T>* first_of(const Panels<T>& w, Range group) {
        const auto before = [](const Range& p, int block) { return p.first < block; };
        return &*std::lower_bound(w.panels.begin(), w.panels.end(), group.first, before);
    }

    static bool in_group(const Panels<T>& w, Range group, const Panel<T>* panel) {
        return panel != w.panels.data() + w.panels.size() &&
               panel->first < group.first + group.count;
    }

    // What is packed behind a panel is what is read after it.
    template <typename C>
    static void set(Product<T, C>& product, const Panels<T>& w, const Panel<T>& panel) {
        product.b = panel.weight;
        product.k = w.k;
        product.scale = w.scale + panel.first * kBlock;
        product.bias = w.bias + panel.first * kBlock;
        product.blocks = panel.count;
        product.next = product.b + w.size(panel);
    }

    void gate(int i) {
        const Block& b = job_.network.blocks[i];
        if (!b.reduce.out) return;
        const BlockPlan& p = job_.plan.blocks[i];
        const PackedBlock<T>& packed = job_.packed.blocks[i];
        const float inverse = 1.0f / (float(p.rows.out) * float(p.columns.out));
        for (int j = 0; j < squeezed(i); ++j) {
            float sum = 0.0f;
            for (int t = 0; t < team_; ++t) sum += all_.threads[t].squeezed[j];
            own_.hidden[j] = sum * inverse + packed.reduce_bias[j];
        }
        k_.activate(own_.hidden, blocks_of(b.reduce.out), b.squeeze_act, nullptr);
        for (const Group<T>& group : packed.groups) {
            const int first = group.first * kBlock;
            k_.excite(own_.gate + first, own_.hidden, group.widen, packed.widen_bias + first,
                      b.reduce.out, group.count * kBlock);
        }
    }

    void project(int i, const T* in, T* out) {
        const Block& b = job_.network.blocks[i];
        const BlockPlan& p = job_.plan.blocks[i];
        const Panels<T>& w = job_.packed.blocks[i].project;
        const int pixels = p.rows.out * p.columns.out, panels = int(w.panels.size());
        // Of threes and twos one thread would have more.
        const bool by_panel =
            team_ > 1 && panels % team_ == 0 && w.panels.front().count == w.panels.back().count;
        const auto [first, last] = by_panel ? share(panels, tid_, team_) : std::pair(0, panels);
        const auto [left, right] = by_panel ? std::pair(0, pixels) : share(pixels, tid_, team_);
        if (left == right) return;
        T* const a = all_.depthwise + long(left) * kBlock;
        const long stride = long(pixels) * kBlock;
        // The gate goes where there is less to multiply.
        const bool in_map = !by_panel && right - left < w.out;
        if (b.reduce.out && in_map) {
            k_.scale_map(a, stride, own_.gate, blocks_of(w.k), right - left);
        }
        for (int j = first; j < last; ++j) {
            const Panel<T>& panel = w.panels[j];
            const long at = (long(panel.first) * pixels + left) * kBlock;
            Product<T, T> product = {};
            product.a = a;
            product.a_stride = product.c_stride = stride;
            product.c = out + at;
            product.residual = b.residual ? in + at : nullptr;
            product.pixels = right - left;
            set(product, w, panel);
            if (b.reduce.out && !in_map) {
                k_.scale_rows(own_.panel, product.b, own_.gate, w.k, panel.count * kBlock);
                product.b = own_.panel;
            }
            k_.product_to_map(product);
        }
    }

    void head(const T* in) {
        const BlockPlan& last_block = job_.plan.blocks.back();
        const Panels<T>& w = job_.packed.head;
        const int pixels = last_block.rows.out * last_block.columns.out;
        const auto [first, last] = share(int(w.panels.size()), tid_, team_);
        for (int j = first; j < last; ++j) {
            const Panel<T>& panel = w.panels[j];
            float* pooled = all_.pooled + panel.first * kBlock;
            std::fill_n(pooled, panel.count * kBlock, 0.0f);
            for (int left = 0; left < pixels; left += kPiece) {
                Product<T, float> product = {};
                product.a = in + long(left) * kBlock;
                product.a_stride = long(pixels) * kBlock;
                product.c = own_.products;
                product.c_stride = kPiece * kBlock;
                product.offset = job_.plan.dense.data();
                product.pixels = std::min(kPiece, pixels - left);
                set(product, w, panel);
                k_.product(product);
                for (int b = 0; b < panel.count; ++b) {
                    float* map = own_.products + b * kPiece * kBlock;
                    k_.activate(map, product.pixels, job_.network.head.act, pooled + b * kBlock);
                    if (job_.result == Result::features) {
                        write_features(map, product.pixels, left, (panel.first + b) * kBlock);
                    }
                }
            }
            for (int c = 0; c < panel.count * kBlock; ++c) pooled[c] /= float(pixels);
            k_.narrow(all_.narrow + panel.first * kBlock, pooled, panel.count * kBlock);
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
        const Panels<T>& w = job_.packed.classifier;
        if (!w.out) {
            if (tid_ == 0) std::copy_n(all_.pooled, job_.network.head.out, out_);
            return;
        }
        const auto [first, last] = share(int(w.panels.size()), tid_, team_);
        for (int j = first; j < last; ++j) {
            const int at = w.panels[j].first * kBlock;
            Product<T, float> product = {};
            product.a = all_.narrow;
            product.a_stride = product.c_stride = kBlock;
            product.c = own_.products;
            product.offset = job_.plan.dense.data();
            product.pixels = 1;
            set(product, w, w.panels[j]);
            k_.product(product);
            std::copy_n(own_.products, std::min(w.panels[j].count * kBlock, w.out - at), out_ + at);
        }
    }

    const Job<T>& job_;
    const Kernels<T>& k_;
    Workspace<T>& all_;
    typename Workspace<T>::PerThread& own_;
    float* const out_;
    const int tid_, team_;
    double* seconds_;
    Clock::time_point since_;
    ImageRows<T> image_rows_;
};

}  // namespace

template <typename T>
void forward(const Job<T>& job, Workspace<T>& workspace, int image, float* out, int tid, int team) {
    Forward<T>(job, workspace, image, out, tid, team).run();
}

template void forward(const Job<float>&, Workspace<float>&, int, float*, int, int);
template void forward(const Job<Bf16>&, Workspace<Bf16>&, int, float*, int, int);

}  // namespace effnet_fast::cpu
