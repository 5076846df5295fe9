// 1x1 convolutions, chunk by chunk in cache: an operand is rebuilt as it is loaded, multiplied, and
// what follows is applied as the result is stored.
#include "cpu/training/reduce.h"
#include "cpu/training/work.h"

namespace effnet_fast::cpu::training {
namespace {

// weight(k, n) in the panels of Multiply.
template <class Weight>
Floats pack(const Run& run, int k, int n, Weight weight) {
    const int widest = run.kernels.panel_blocks * kBlock, panels = (n + widest - 1) / widest;
    Floats packed(size_t(padded(n)) * k);
    share(run, panels, [&](long panel, int) {
        const int first = int(panel) * widest, count = std::min(widest, n - first);
        const int width = padded(count);
        float* to = packed.data() + long(first) * k;
        for (int i = 0; i < k; ++i, to += width) {
            for (int j = 0; j < count; ++j) to[j] = weight(i, first + j);
        }
    });
    return packed;
}

Load load_operand(const Tile& tile, const Shape& shape, const Map& x, const Prologue& prologue,
                  int n, long pixel, float* a) {
    return {tile, at(x, shape, n, pixel), step_of(x, shape), prologue.affine, prologue.act,
            row(prologue.gate, n, shape.c), 1.0f, a, nullptr, nullptr};
}

// The weight gradient of one worker: chunks in fp32, and what they come to, by some thousand
// pixels, in fp64.
class WeightSums {
public:
    explicit WeightSums(size_t size) : sums_(size) {}
    // Where to add so many pixels' outer products.
    float* add(int pixels) {
        if (pixels_ + pixels > kPixels && pixels_ > 0) {
            total_.resize(sums_.size());
            for (size_t i = 0; i < sums_.size(); ++i) total_[i] += sums_.data()[i];
            std::fill_n(sums_.data(), sums_.size(), 0.0f);
            pixels_ = 0;
        }
        pixels_ += pixels;
        return sums_.data();
    }
    double operator[](size_t i) const {
        return (total_.empty() ? 0.0 : total_[i]) + sums_.data()[i];
    }

private:
    static constexpr int kPixels = 2048;
    int pixels_ = 0;
    Floats sums_;
    Sums total_;
};

}  // namespace

void pointwise(const Run& run, const PointwiseForward& p) {
    const Shape &in = p.shape, out = {in.type, in.n, p.k, in.h, in.w};
    const Chunks chunks(in, pixels_in_cache(padded(in.c) + padded(p.k)));
    const long stride = long(chunks.most()) * kBlock;
    const bool flat_in = is_flat(p.x, in), flat_out = is_flat(p.residual, out);
    const Map y = dense(p.y, out);
    expect_writes(p.y, out);
    const Floats weight =
        pack(run, in.c, p.k, [&](int c, int k) { return p.weight[long(k) * in.c + c]; });
    Buffers operands(run, size_t(padded(in.c)) * chunks.most());
    Buffers results(run, size_t(padded(p.k)) * chunks.most());
    MomentParts moments(p.stats ? chunks.count() : 0, p.k);
    Sums pooled(p.pooled ? in.n * chunks.parts() * p.k : 0);
    share(run, chunks.count(), [&](long i, int worker) {
        const Chunk chunk = chunks.at(i);
        float *a = operands[worker], *result = results[worker];
        for_segments(chunk, in, flat_in, [&](int n, long pixel, int count, int place) {
            const Tile tile = {in.type, in.c, count, in.c, stride};
            run.kernels.load(load_operand(tile, in, p.x, p.prologue, n, pixel, a + place * kBlock));
        });
        run.kernels.multiply({a, weight.data(), result, stride, stride, chunk.pixels(), in.c, p.k});
        Tile tile = {out.type, p.k, chunk.pixels(), p.k, stride};
        if (p.stats) moments.add(run.kernels, i, tile, 0, result, true);
        for_segments(chunk, out, flat_out, [&](int n, long pixel, int count, int place) {
            tile.pixels = count;
            run.kernels.store({tile, result + place * kBlock, p.affine, p.act,
                               at(p.residual, out, n, pixel), step_of(p.residual, out),
                               const_cast<char*>(at(y, out, n, pixel)), step_of(y, out),
                               p.pooled ? pooled.data() + chunks.slot(i, n) * p.k : nullptr});
        });
    });
    if (p.stats) moments.merge(p.stats);
    if (p.pooled) {
        sum_parts_of_images(pooled.data(), in.n, chunks.parts(), p.k, p.k,
                            1.0 / double(in.pixels()), p.pooled);
    }
}

void pointwise_bwd(const Run& run, const PointwiseBackward& p) {
    const Shape &in = p.shape, out = {in.type, in.n, p.k, in.h, in.w};
    // Alike whatever is wanted, so that a gradient is the same with and without the other.
    const Chunks chunks(in, pixels_in_cache(padded(p.k) + 2 * padded(in.c)));
    const long stride = long(chunks.most()) * kBlock;
    const bool flat = is_flat(p.x, in);
    const Map g = dense(p.behind.g, out), y = dense(p.behind.y, out), dx = dense(p.dx, in),
              residual = dense(p.residual, in);
    expect_writes(p.dx, in);
    const Floats weight = p.dx ? pack(run, p.k, in.c,
                                      [&](int k, int c) { return p.weight[long(k) * in.c + c]; })
                               : Floats();
    Buffers gradients(run, size_t(padded(p.k)) * chunks.most());
    Buffers inputs(run, p.dx ? size_t(padded(in.c)) * chunks.most() : 0);
    Buffers operands(run, p.dw ? size_t(padded(in.c)) * chunks.most() : 0);
    std::vector<WeightSums> weights;
    for (int i = 0; p.dw && i < run.threads; ++i) {
        weights.emplace_back(size_t(padded(p.k)) * padded(in.c));
    }
    Sums sums(p.sums ? in.n * chunks.parts() * 5 * in.c : 0);
    share(run, chunks.count(), [&](long i, int worker) {
        const Chunk chunk = chunks.at(i);
        const Behind& b = p.behind;
        float* d = gradients[worker];
        for_segments(chunk, out, true, [&](int n, long pixel, int count, int place) {
            run.kernels.load_gradient(
                {{out.type, p.k, count, p.k, stride}, at(g, out, n, pixel), at(y, out, n, pixel),
                 step_of(g, out), step_of(y, out), b.affine, b.act, row(b.gate, n, p.k),
                 b.drop ? b.drop[n] : 1.0f, row(b.dpool, n, p.k), b.coef, d + place * kBlock,
                 nullptr, nullptr});
        });
        if (p.dx) {
            float* da = inputs[worker];
            run.kernels.multiply({d, weight.data(), da, stride, stride, chunk.pixels(), p.k, in.c});
            for_segments(chunk, in, flat, [&](int n, long pixel, int count, int place) {
                const Tile tile = {in.type, in.c, count, in.c, stride};
                if (p.sums) {
                    run.kernels.five_sums({tile, da + place * kBlock, at(p.x, in, n, pixel),
                                           step_of(p.x, in), p.prologue.affine, p.prologue.act,
                                           p.norm, sums.data() + chunks.slot(i, n) * 5 * in.c, in.c,
                                           row(p.prologue.gate, n, in.c),
                                           p.dw ? operands[worker] + place * kBlock : nullptr});
                }
                run.kernels.store({tile, da + place * kBlock, nullptr, Activation::identity,
                                   at(residual, in, n, pixel), step_of(residual, in),
                                   const_cast<char*>(at(dx, in, n, pixel)), step_of(dx, in),
                                   nullptr});
            });
        }
        if (p.dw) {
            float* a = operands[worker];
            if (!p.sums) {  // else their pass has left it there
                for_segments(chunk, in, flat, [&](int n, long pixel, int count, int place) {
                    const Tile tile = {in.type, in.c, count, in.c, stride};
                    run.kernels.load(
                        load_operand(tile, in, p.x, p.prologue, n, pixel, a + place * kBlock));
                });
            }
            run.kernels.outer({d, a, weights[worker].add(chunk.pixels()), stride, stride,
                               padded(in.c), chunk.pixels(), p.k, padded(in.c)});
        }
    });
    if (p.sums) {
        sum_parts_of_images(sums.data(), in.n, chunks.parts(), in.c, 5 * in.c, 1.0, p.sums);
    }
    if (p.dw) {
        for (int k = 0; k < p.k; ++k) {
            for (int c = 0; c < in.c; ++c) {
                double total = 0.0;
                for (const WeightSums& sums : weights) total += sums[size_t(k) * padded(in.c) + c];
                p.dw[long(k) * in.c + c] = float(total);
            }
        }
    }
}

}  // namespace effnet_fast::cpu::training
