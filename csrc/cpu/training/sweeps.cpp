// The ops that are one pass over a map: batch norm, squeeze, and their gradients.
#include "cpu/training/reduce.h"
#include "cpu/training/work.h"

namespace effnet_fast::cpu::training {
namespace {

Tile tile_of(const Shape& shape, const Chunks& chunks, int count) {
    return {shape.type, shape.c, count, shape.c, long(chunks.most()) * kBlock};
}

size_t buffer_floats(const Shape& shape, const Chunks& chunks) {
    return size_t(padded(shape.c)) * chunks.most();
}

LoadGradient load_gradient(const Tile& tile, const Shape& shape, const Behind& b, const Map& y,
                           int n, long pixel) {
    const Map g = dense(b.g, shape);
    return {tile, at(g, shape, n, pixel), at(y, shape, n, pixel), step_of(g, shape),
            step_of(y, shape), b.affine, b.act, row(b.gate, n, shape.c), b.drop ? b.drop[n] : 1.0f,
            row(b.dpool, n, shape.c), b.coef, nullptr, nullptr, nullptr};
}

}  // namespace

void bn_residual(const Run& run, const Shape& shape, const Map& x, const Prologue& prologue,
                 const float* drop, const Map& residual, void* y) {
    const Chunks chunks(shape, pixels_in_cache(8 * padded(shape.c)));
    const bool flat = is_flat(x, shape) && is_flat(residual, shape);
    const Map out = dense(y, shape);
    expect_writes(y, shape);
    Buffers buffers(run, buffer_floats(shape, chunks));
    share(run, chunks.count(), [&](long i, int worker) {
        for_segments(chunks.at(i), shape, flat, [&](int n, long pixel, int count, int) {
            const Tile tile = tile_of(shape, chunks, count);
            float* a = buffers[worker];
            run.kernels.load({tile, at(x, shape, n, pixel), step_of(x, shape), prologue.affine,
                              prologue.act, row(prologue.gate, n, shape.c), drop ? drop[n] : 1.0f,
                              a, nullptr, nullptr});
            run.kernels.store({tile, a, nullptr, Activation::identity,
                               at(residual, shape, n, pixel), step_of(residual, shape),
                               const_cast<char*>(at(out, shape, n, pixel)), step_of(out, shape),
                               nullptr});
        });
    });
}

void bn_bwd_reduce(const Run& run, const Shape& shape, const Behind& behind, const Map& y,
                   const float* norm, float* sums) {
    const Chunks chunks(shape, pixels_in_cache(8 * padded(shape.c)));
    const bool flat = is_flat(y, shape);
    Sums parts(chunks.count() * 2 * shape.c);
    share(run, chunks.count(), [&](long i, int) {
        for_segments(chunks.at(i), shape, flat, [&](int n, long pixel, int count, int) {
            LoadGradient load =
                load_gradient(tile_of(shape, chunks, count), shape, behind, y, n, pixel);
            load.norm = norm;
            load.sums = parts.data() + i * 2 * shape.c;
            run.kernels.load_gradient(load);
        });
    });
    sum_parts(parts.data(), chunks.count(), 2 * shape.c, 1.0, sums);
}

void bn_residual_bwd(const Run& run, const Shape& shape, const Behind& behind, const Map& y,
                     void* dy) {
    const Chunks chunks(shape, pixels_in_cache(8 * padded(shape.c)));
    const bool flat = is_flat(y, shape);
    const Map out = dense(dy, shape);
    expect_writes(dy, shape);
    Buffers buffers(run, buffer_floats(shape, chunks));
    share(run, chunks.count(), [&](long i, int worker) {
        for_segments(chunks.at(i), shape, flat, [&](int n, long pixel, int count, int) {
            const Tile tile = tile_of(shape, chunks, count);
            LoadGradient load = load_gradient(tile, shape, behind, y, n, pixel);
            load.d = buffers[worker];
            run.kernels.load_gradient(load);
            run.kernels.store({tile, load.d, nullptr, Activation::identity, nullptr, 0,
                               const_cast<char*>(at(out, shape, n, pixel)), step_of(out, shape),
                               nullptr});
        });
    });
}

void moments(const Run& run, const Shape& shape, const Map& x, float* stats) {
    const Chunks chunks(shape, pixels_in_cache(8 * padded(shape.c)));
    const bool flat = is_flat(x, shape);
    Buffers buffers(run, buffer_floats(shape, chunks));
    MomentParts parts(chunks.count(), shape.c);
    share(run, chunks.count(), [&](long i, int worker) {
        const Chunk chunk = chunks.at(i);
        float* a = buffers[worker];
        for_segments(chunk, shape, flat, [&](int n, long pixel, int count, int place) {
            run.kernels.load({tile_of(shape, chunks, count), at(x, shape, n, pixel),
                              step_of(x, shape), nullptr, Activation::identity, nullptr, 1.0f,
                              a + place * kBlock, nullptr, nullptr});
        });
        parts.add(run.kernels, i, tile_of(shape, chunks, chunk.pixels()), 0, a, true);
    });
    parts.merge(stats);
}

void se_pool(const Run& run, const Shape& shape, const Map& x, const Prologue& prologue,
             float* pooled) {
    const Chunks chunks(shape, pixels_in_cache(8 * padded(shape.c)));
    const bool flat = is_flat(x, shape);
    Sums parts(shape.n * chunks.parts() * shape.c);
    share(run, chunks.count(), [&](long i, int) {
        for_segments(chunks.at(i), shape, flat, [&](int n, long pixel, int count, int) {
            run.kernels.load({tile_of(shape, chunks, count), at(x, shape, n, pixel),
                              step_of(x, shape), prologue.affine, prologue.act, nullptr, 1.0f,
                              nullptr, nullptr, parts.data() + chunks.slot(i, n) * shape.c});
        });
    });
    sum_parts_of_images(parts.data(), shape.n, chunks.parts(), shape.c, shape.c,
                        1.0 / double(shape.pixels()), pooled);
}

void se_bwd_reduce(const Run& run, const Shape& shape, const void* g, const Map& x,
                   const Prologue& prologue, const float* norm, float* sums) {
    const Chunks chunks(shape, pixels_in_cache(8 * padded(shape.c)));
    const bool flat = is_flat(x, shape);
    const Map from = dense(g, shape);
    Buffers buffers(run, buffer_floats(shape, chunks));
    Sums parts(shape.n * chunks.parts() * 5 * shape.c);
    share(run, chunks.count(), [&](long i, int worker) {
        for_segments(chunks.at(i), shape, flat, [&](int n, long pixel, int count, int) {
            const Tile tile = tile_of(shape, chunks, count);
            float* d = buffers[worker];
            run.kernels.load({tile, at(from, shape, n, pixel), step_of(from, shape), nullptr,
                              Activation::identity, nullptr, 1.0f, d, nullptr, nullptr});
            run.kernels.five_sums({tile, d, at(x, shape, n, pixel), step_of(x, shape),
                                   prologue.affine, prologue.act, norm,
                                   parts.data() + chunks.slot(i, n) * 5 * shape.c, shape.c, nullptr,
                                   nullptr});
        });
    });
    sum_parts_of_images(parts.data(), shape.n, chunks.parts(), shape.c, 5 * shape.c, 1.0, sums);
}

}  // namespace effnet_fast::cpu::training
