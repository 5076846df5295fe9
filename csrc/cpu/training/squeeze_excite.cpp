// The MLP of squeeze-and-excitation, and its gradients.
//
// Its first product is summed over what lies side by side in both operands, and so is its second.
// With the images side by side instead, [channels][N], every weight is read once, as it lies, and
// multiplies all images. The other products find their operands so.
#include <algorithm>

#include "cpu/training/reduce.h"
#include "cpu/training/work.h"

namespace effnet_fast::cpu::training {
namespace {

// f(first, count): rows of so many multiply-adds each, by tiles that are worth a thread.
template <class F>
void share_rows(const Run& run, long rows, long cost, F f) {
    constexpr long kTile = 8, kWorth = 32 * 1024;
    const long tile = (kWorth / std::max(cost, 1L) + kTile) / kTile * kTile;
    share(run, (rows + tile - 1) / tile, [&](long i, int) {
        f(i * tile, int(std::min(tile, rows - i * tile)));
    });
}

// in [rows][columns] -> out [columns][rows].
void transpose(const float* in, int rows, int columns, float* out) {
    for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < columns; ++j) out[long(j) * rows + i] = in[long(i) * columns + j];
    }
}

// out[i][N] = bias[i] + sum over k of weight[i][k] x[k][N], for so many rows from the first.
void layer(const Run& run, const float* weight, const float* bias, const float* x, int steps, int n,
           long first, int count, float* out) {
    out += first * n;
    for (int i = 0; i < count; ++i) std::fill_n(out + long(i) * n, n, bias[first + i]);
    run.kernels.combine({weight + first * steps, steps, 1, x, n, out, n, count, steps, n});
}

// Hidden values [R][N] of the squeezed ones [C][N], and the activation's slope there.
struct Hidden {
    Hidden(const Run& run, const Excitation& e, const float* squeezed)
        : value(size_t(e.r) * e.n), slope(size_t(e.r) * e.n) {
        share_rows(run, e.r, long(e.c) * e.n, [&](long first, int count) {
            layer(run, e.w_reduce, e.b_reduce, squeezed, e.c, e.n, first, count, value.data());
        });
        run.kernels.activate({e.act, value.data(), slope.data(), e.r * e.n});
    }
    Floats value, slope;
};

}  // namespace

void se_gate(const Run& run, const Excitation& e, const float* pool, int t, long count,
             float* gate) {
    const long values = long(e.n) * e.c;
    Floats squeezed(values), logits(values);
    for (int n = 0; n < e.n; ++n) {
        for (int i = 0; i < e.c; ++i) {
            const float* strip = pool + long(n) * e.c + i;
            double sum = 0.0;
            for (int k = 0; k < t; ++k) sum += strip[k * values];
            squeezed.data()[long(i) * e.n + n] = float(sum / double(count));
        }
    }
    const Hidden hidden(run, e, squeezed.data());
    share_rows(run, e.c, long(e.r) * e.n, [&](long first, int rows) {
        float* z = logits.data() + first * e.n;
        layer(run, e.w_expand, e.b_expand, hidden.value.data(), e.r, e.n, first, rows,
              logits.data());
        run.kernels.sigmoid(z, rows * e.n);
        for (int i = 0; i < rows; ++i) {
            for (int n = 0; n < e.n; ++n) gate[long(n) * e.c + first + i] = z[long(i) * e.n + n];
        }
    });
}

void se_gate_bwd(const Run& run, const Excitation& e, const float* sums, const float* gate,
                 const float* pooled, long hw, const ExcitationGradients& out) {
    const int c = e.c, r = e.r;
    const long values = long(e.n) * c, squeezed_values = long(e.n) * r;
    Floats squeezed(values), d_logit(values), hidden(squeezed_values), slope(squeezed_values),
        d_hidden(squeezed_values);
    transpose(pooled, e.n, c, squeezed.data());
    const Hidden columns(run, e, squeezed.data());
    transpose(columns.value.data(), r, e.n, hidden.data());
    transpose(columns.slope.data(), r, e.n, slope.data());
    share_rows(run, e.n, 2L * c * r, [&](long first, int count) {
        const float* d_gate = sums + 4 * values;
        for (long i = first * c; i < (first + count) * c; ++i) {
            d_logit.data()[i] = float(double(d_gate[i]) * gate[i] * (1.0 - gate[i]));
        }
        float* d_u = d_hidden.data() + first * r;
        run.kernels.combine(
            {d_logit.data() + first * c, c, 1, e.w_expand, r, d_u, r, count, c, r});
        for (long i = 0; i < long(count) * r; ++i) d_u[i] *= slope.data()[first * r + i];
        float* dpool = out.dpool + first * c;
        std::fill_n(dpool, long(count) * c, 0.0f);
        run.kernels.combine({d_u, r, 1, e.w_reduce, c, dpool, c, count, r, c});
        for (long i = 0; i < long(count) * c; ++i) dpool[i] /= float(hw);
    });
    const float* d_u = d_hidden.data();
    share_rows(run, r, long(c) * e.n, [&](long first, int count) {
        float* dw = out.dw_reduce + first * c;
        std::fill_n(dw, long(count) * c, 0.0f);
        run.kernels.combine({d_u + first, 1, r, pooled, c, dw, c, count, e.n, c});
    });
    share_rows(run, c, long(r) * e.n, [&](long first, int count) {
        float* dw = out.dw_expand + first * r;
        std::fill_n(dw, long(count) * r, 0.0f);
        run.kernels.combine(
            {d_logit.data() + first, 1, c, hidden.data(), r, dw, r, count, e.n, r});
    });
    sum_parts(d_u, e.n, r, 1.0, out.db_reduce);
    sum_parts(d_logit.data(), e.n, c, 1.0, out.db_expand);
    Sums total(2L * c);
    for (long n = 0; n < e.n; ++n) {
        const float *g = gate + n * c, *d = out.dpool + n * c, *s = sums + n * c;
        for (int i = 0; i < c; ++i) {
            const double by_gate = g[i], by_pool = d[i];
            total[i] += by_gate * s[i] + by_pool * s[values + i];
            total[c + i] += by_gate * s[2 * values + i] + by_pool * s[3 * values + i];
        }
    }
    std::copy(total.begin(), total.end(), out.bn_sums);
}

}  // namespace effnet_fast::cpu::training
