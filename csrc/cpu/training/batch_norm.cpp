// Batch norm's vectors of channels: in fp64, and rounded once.
#include <algorithm>
#include <cmath>

#include "cpu/bf16.h"
#include "cpu/training/ops.h"

namespace effnet_fast::cpu::training {
namespace {

double get(const Vector& v, int i, double absent) {
    if (!v.data) return absent;
    if (v.type == Type::f32) return static_cast<const float*>(v.data)[i * v.stride];
    return to_float(static_cast<const Bf16*>(v.data)[i * v.stride]);
}

void put(const Vector& v, int i, float value) {
    if (v.type == Type::f32) {
        static_cast<float*>(v.data)[i * v.stride] = value;
    } else {
        static_cast<Bf16*>(v.data)[i * v.stride] = to_bf16(value);
    }
}

// torch's: exact at both ends.
double lerp(double from, double to, double weight) {
    return weight < 0.5 ? from + weight * (to - from) : to - (to - from) * (1.0 - weight);
}

void fold(int i, int c, double mean, double var, const Vector& weight, const Vector& bias,
          double eps, float* affine, float* norm) {
    const double invstd = 1.0 / std::sqrt(var + eps), scale = invstd * get(weight, i, 1.0);
    if (affine) {
        affine[i] = float(scale);
        affine[c + i] = float(get(bias, i, 0.0) - mean * scale);
    }
    if (norm) {
        norm[i] = float(mean);
        norm[c + i] = float(invstd);
    }
}

}  // namespace

void bn_fold(int c, const Vector& weight, const Vector& bias, const Vector& mean, const Vector& var,
             double eps, float* affine, float* norm) {
    for (int i = 0; i < c; ++i) {
        fold(i, c, get(mean, i, 0.0), get(var, i, 0.0), weight, bias, eps, affine, norm);
    }
}

void bn_finalize(const Finalize& p) {
    const bool running = p.count > 0 && p.running_mean.data && p.running_var.data;
    const double unbiased = double(p.count) / double(std::max(p.count - 1, 1L));
    for (int i = 0; i < p.c; ++i) {
        const double mean = p.stats[i], var = p.stats[p.c + i];
        if (running) {
            put(p.running_mean, i, float(lerp(get(p.running_mean, i, 0.0), mean, p.momentum)));
            put(p.running_var, i,
                float(lerp(get(p.running_var, i, 0.0), var * unbiased, p.momentum)));
        }
        fold(i, p.c, mean, var, p.weight, p.bias, p.eps, p.affine, p.norm);
    }
}

void bn_bwd_coef(int c, const float* sums, const float* norm, const Vector& weight, long count,
                 bool batch_stats, float* coef) {
    const double part = batch_stats ? 1.0 / double(std::max(count, 1L)) : 0.0;
    for (int i = 0; i < c; ++i) {
        const double invstd = norm[c + i], a = invstd * get(weight, i, 1.0);
        coef[i] = float(a);
        coef[c + i] = batch_stats ? float(-a * invstd * sums[c + i] * part) : 0.0f;
        coef[2 * c + i] = norm[i];
        coef[3 * c + i] = batch_stats ? float(-a * sums[i] * part) : 0.0f;
    }
}

}  // namespace effnet_fast::cpu::training
