// Depthwise convolution, backward: both gradients in one pass down the rows. Row p of the gradient
// is rebuilt, multiplied with the input's rows under its taps for the weight gradient, and then all
// input rows that no later row reaches have their gradient.
#include "cpu/training/depthwise.h"

namespace effnet_fast::cpu::training {
namespace {

// The taps of one residue class: columns w of the input with (w + left) % stride == first % stride
// see the taps first, first + stride, ... of a kernel row, turned round.
struct Class {
    int column;  // the first such column
    int taps;
    int place;  // of its taps in a packed kernel row
    int start;  // of its window in a row of gradients, which begins with kernel - 1 zeros
    int width;  // columns
};

std::vector<Class> classes_of(const Convolution& v, std::vector<int>* order) {
    std::vector<Class> classes;
    const int k = v.kernel, s = v.stride;
    std::vector<int> row;
    for (int r = 0; r < std::min(s, v.shape.w); ++r) {
        const int first = (r + v.left) % s, taps = first < k ? (k - 1 - first) / s + 1 : 0;
        const int start = k - 1 + (r + v.left - first) / s - std::max(taps - 1, 0);
        classes.push_back({r, taps, int(row.size()), start, (v.shape.w - r + s - 1) / s});
        for (int t = taps - 1; t >= 0; --t) row.push_back(first + s * t);
    }
    // A narrow input may not meet every tap; their places are filled all the same.
    row.resize(k, 0);
    for (int ky = 0; ky < k; ++ky) {
        for (const int kx : row) order->push_back(ky * k + kx);
    }
    return classes;
}

class Pass {
public:
    Pass(const Run& run, const DepthwiseBackward& p)
        : run_(run), p_(p), v_(p.conv), in_(v_.shape), out_{in_.type, in_.n, in_.c, v_.p, v_.q},
          k_(v_.kernel), undo_(p.sums != nullptr),
          in_width_(std::max(v_.left + in_.w, (v_.q - 1) * v_.stride + k_)),
          d_rows_((k_ - 1) / v_.stride + 1),
          d_width_(k_ - 1 + std::max(v_.q, (in_.w - 1 + v_.left) / v_.stride + 1)),
          groups_(run, in_,
                  long((1 + undo_) * k_ * in_width_ + d_rows_ * d_width_ + in_.w) * kBlock),
          a_(run, k_, groups_.most(), in_width_),
          slope_(run, undo_ ? k_ : 0, groups_.most(), in_width_),
          d_(run, d_rows_, groups_.most(), d_width_), da_(run, 1, groups_.most(), in_.w),
          classes_(classes_of(v_, &order_)), weight_(pack_taps(p.weight, in_.c, order_)),
          g_(dense(p.behind.g, out_)), y_(dense(p.behind.y, out_)), dx_(dense(p.dx, in_)),
          residual_(dense(p.residual, in_)),
          dw_(p.dw ? size_t(in_.n) * padded(in_.c) * k_ * k_ : 0),
          sums_(undo_ ? size_t(in_.n) * 2 * in_.c : 0), rows_(long(run.threads) * k_),
          weights_(long(run.threads) * k_) {}

    void operator()() {
        expect_writes(p_.dx, in_);
        share(run_, long(in_.n) * groups_.count(), [&](long item, int worker) {
            image(int(item / groups_.count()), groups_.at(int(item % groups_.count())), worker);
        });
        if (undo_) sum_parts(sums_.data(), in_.n, 2 * in_.c, 1.0, p_.sums);
        if (p_.dw) unpack();
    }

private:
    void image(int n, const Group& group, int worker) {
        int loaded = 0, done = 0;
        const auto need = [&](int rows) {
            for (; loaded < std::min(rows, in_.h); ++loaded) load(n, group, worker, loaded);
        };
        for (int i = 0; i < v_.p; ++i) {
            const int top = i * v_.stride - v_.top;
            load_gradient(n, group, worker, i);
            if (p_.dw || undo_) need(top + k_);
            if (p_.dw) weight_gradient(n, group, worker, i);
            const int end = i == v_.p - 1 ? in_.h : std::min(top + v_.stride, in_.h);
            for (; p_.dx && done < end; ++done) {
                if (undo_) need(done + 1);
                input_gradient(n, group, worker, done);
            }
        }
    }

    const char* pixels(const Map& map, const Shape& shape, const Group& group, int n,
                       int row) const {
        const char* first = at(map, shape, n, long(row) * shape.w);
        return first ? first + group.channel() * long(bytes_of(shape.type)) : nullptr;
    }

    void load(int n, const Group& group, int worker, int h) {
        float* slope = undo_ ? slope_.row(worker, h) + v_.left * kBlock : nullptr;
        run_.kernels.load({{in_.type, group.channels(in_.c), in_.w, in_.c, a_.stride()},
                           pixels(p_.x, in_, group, n, h), step_of(p_.x, in_),
                           row(p_.prologue.affine, group.channel(), 1), p_.prologue.act, nullptr,
                           1.0f, a_.row(worker, h) + v_.left * kBlock, slope, nullptr});
    }

    void load_gradient(int n, const Group& group, int worker, int i) {
        const Behind& b = p_.behind;
        const int c0 = group.channel();
        const float* gate = row(b.gate, n, in_.c);
        const float* dpool = row(b.dpool, n, in_.c);
        run_.kernels.load_gradient(
            {{in_.type, group.channels(in_.c), v_.q, in_.c, d_.stride()},
             pixels(g_, out_, group, n, i), pixels(y_, out_, group, n, i), step_of(g_, out_),
             step_of(y_, out_), row(b.affine, c0, 1), b.act, row(gate, c0, 1), 1.0f,
             row(dpool, c0, 1), row(b.coef, c0, 1),
             d_.row(worker, i) + (k_ - 1) * kBlock, nullptr, nullptr});
    }

    void weight_gradient(int n, const Group& group, int worker, int i) {
        const int top = i * v_.stride - v_.top;
        for (int b = 0; b < group.blocks(); ++b) {
            const long block = long(n) * blocks_of(in_.c) + group.first + b;
            float* dw = dw_.data() + block * k_ * k_ * kBlock;
            const float* d = d_.row(worker, i) + b * d_.stride() + (k_ - 1) * kBlock;
            for (int ky = std::max(0, -top); ky < std::min(k_, in_.h - top); ++ky) {
                run_.kernels.taps({a_.row(worker, top + ky) + b * a_.stride(), d,
                                   dw + ky * k_ * kBlock, k_, v_.stride, v_.q});
            }
        }
    }

    void input_gradient(int n, const Group& group, int worker, int h) {
        float* da = da_.row(worker, 0);
        const float** rows = rows_.data() + long(worker) * k_;
        const float** weights = weights_.data() + long(worker) * k_;
        for (int b = 0; b < group.blocks(); ++b) {
            for (const Class& c : classes_) {
                int count = 0;
                for (int ky = (h + v_.top) % v_.stride; ky < k_; ky += v_.stride) {
                    const int i = (h + v_.top - ky) / v_.stride;
                    if (h + v_.top < ky || i >= v_.p) continue;
                    rows[count] = d_.row(worker, i) + b * d_.stride() + c.start * kBlock;
                    const long tap = (long(group.first + b) * k_ + ky) * k_ + c.place;
                    weights[count++] = weight_.data() + tap * kBlock;
                }
                run_.kernels.correlate({rows, weights,
                                        da + b * da_.stride() + c.column * kBlock, count, c.taps, 1,
                                        c.width, v_.stride});
            }
        }
        const int c0 = group.channel();
        const Tile tile = {in_.type, group.channels(in_.c), in_.w, in_.c, da_.stride()};
        if (undo_) {
            run_.kernels.undo({tile, da, slope_.row(worker, h) + v_.left * kBlock, slope_.stride(),
                               pixels(p_.x, in_, group, n, h), step_of(p_.x, in_), p_.norm + c0,
                               sums_.data() + long(n) * 2 * in_.c + c0});
        }
        run_.kernels.store({tile, da, nullptr, Activation::identity,
                            pixels(residual_, in_, group, n, h), step_of(residual_, in_),
                            const_cast<char*>(pixels(dx_, in_, group, n, h)), step_of(dx_, in_),
                            nullptr});
    }

    // Parts [N][C / 16][k * k][16] -> dw [C][k * k].
    void unpack() {
        const long taps = long(k_) * k_, length = blocks_of(in_.c) * taps * kBlock;
        std::vector<float> total(length);
        sum_parts(dw_.data(), in_.n, length, 1.0, total.data());
        for (int c = 0; c < in_.c; ++c) {
            for (long t = 0; t < taps; ++t) {
                p_.dw[c * taps + t] = total[(c / kBlock * taps + t) * kBlock + c % kBlock];
            }
        }
    }

    const Run& run_;
    const DepthwiseBackward& p_;
    const Convolution& v_;
    const Shape in_, out_;
    const int k_;
    const bool undo_;
    const int in_width_, d_rows_, d_width_;
    const Groups groups_;
    Ring a_, slope_, d_, da_;
    std::vector<int> order_;
    const std::vector<Class> classes_;
    const Floats weight_;
    const Map g_, y_, dx_, residual_;
    Floats dw_;
    Sums sums_;
    std::vector<const float*> rows_, weights_;  // of each worker: arguments of a correlation
};

}  // namespace

void depthwise_bwd(const Run& run, const DepthwiseBackward& p) { Pass(run, p)(); }

}  // namespace effnet_fast::cpu::training
