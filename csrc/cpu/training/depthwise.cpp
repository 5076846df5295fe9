// Depthwise convolution, forward: row by row, each input row converted and activated once.
#include "cpu/training/depthwise.h"

namespace effnet_fast::cpu::training {

void depthwise(const Run& run, const DepthwiseForward& p) {
    const Convolution& v = p.conv;
    const Shape &in = v.shape, out = {in.type, in.n, in.c, v.p, v.q};
    const int k = v.kernel, width = std::max(v.left + in.w, (v.q - 1) * v.stride + k);
    const Groups groups(run, in, long(k * width + v.q) * kBlock);
    Ring ring(run, k, groups.most(), width);
    Buffers results(run, size_t(groups.most()) * v.q * kBlock);
    std::vector<int> order(k * k);
    for (int t = 0; t < k * k; ++t) order[t] = t;
    const Floats weight = pack_taps(p.weight, in.c, order);
    const Map y = dense(p.y, out);
    expect_writes(p.y, out);
    MomentParts moments(p.stats ? in.n : 0, in.c);
    share(run, long(in.n) * groups.count(), [&](long item, int worker) {
        const int n = int(item / groups.count());
        const Group group = groups.at(int(item % groups.count()));
        const int c0 = group.channel(), channels = group.channels(in.c);
        const long offset = c0 * long(bytes_of(in.type)), stride = long(v.q) * kBlock;
        float* result = results[worker];
        std::vector<const float*> rows(k), weights(k);
        Sums pool(p.pool ? channels : 0);
        for (int i = 0, loaded = 0; i < v.p; ++i) {
            const int top = i * v.stride - v.top;
            for (; loaded < std::min(top + k, in.h); ++loaded) {
                run.kernels.load({{in.type, channels, in.w, in.c, ring.stride()},
                                  at(p.x, in, n, long(loaded) * in.w) + offset, step_of(p.x, in),
                                  row(p.prologue.affine, c0, 1), p.prologue.act, nullptr, 1.0f,
                                  ring.row(worker, loaded) + v.left * kBlock, nullptr, nullptr});
            }
            for (int b = 0; b < group.blocks(); ++b) {
                int count = 0;
                for (int ky = std::max(0, -top); ky < std::min(k, in.h - top); ++ky, ++count) {
                    rows[count] = ring.row(worker, top + ky) + b * ring.stride();
                    weights[count] = weight.data() + (long(group.first + b) * k + ky) * k * kBlock;
                }
                run.kernels.correlate({rows.data(), weights.data(), result + b * stride, count, k,
                                       v.stride, v.q, 1});
            }
            const Tile tile = {out.type, channels, v.q, out.c, stride};
            if (p.stats) moments.add(run.kernels, n, tile, c0, result, i == 0);
            run.kernels.store({tile, result, row(p.affine, c0, 1), p.act, nullptr, 0,
                               const_cast<char*>(at(y, out, n, long(i) * v.q)) + offset,
                               step_of(y, out), p.pool ? pool.data() : nullptr});
            if (p.pool && (i % p.pool_rows == p.pool_rows - 1 || i == v.p - 1)) {
                std::copy(pool.begin(), pool.end(),
                          p.pool + (long(i / p.pool_rows) * in.n + n) * in.c + c0);
                std::fill(pool.begin(), pool.end(), 0.0);
            }
        }
    });
    if (p.stats) moments.merge(p.stats);
}

}  // namespace effnet_fast::cpu::training
