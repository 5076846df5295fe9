// The ops of training on random shapes: ops FIRST LAST runs those of seeds FIRST up to LAST, with
// every instruction set of the machine but AVX2, by one thread and by three. Each array has a memory
// of its own that ends where it does. A line for results that two runs do not share; the status is 1
// if there was any.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>

#include "cpu/training/ops.h"

#if defined(__x86_64__)
namespace effnet_fast::cpu::avx2 {
extern const training::Kernels training_kernels;
const training::Kernels training_kernels = {};  // what the table of tables wants to see
}  // namespace effnet_fast::cpu::avx2
#endif

using namespace effnet_fast::cpu;
using namespace effnet_fast::cpu::training;

namespace {

std::vector<Isa> isas() {
#if defined(__x86_64__)
    std::vector<Isa> found = {Isa::sse42};
    if (__builtin_cpu_supports("avx512vl")) found.push_back(Isa::avx512);
    return found;
#else
    return {Isa(0)};
#endif
}

// Operands and results of one call after the other.
class Memory {
public:
    explicit Memory(unsigned seed) : source_(seed) {}
    int from(int low, int high) { return std::uniform_int_distribution<int>(low, high)(source_); }
    bool perhaps() { return from(0, 1) == 1; }
    // bf16 takes the first half of it: any bits are values.
    float* in(long count) {
        held_.emplace_back(new float[count]);
        for (long i = 0; i < count; ++i) held_.back()[i] = float(from(-200, 200)) / 100;
        return held_.back().get();
    }
    float* out(long count) {
        float* data = in(count);
        std::memset(data, 0, count * sizeof(float));
        results_.push_back({data, count});
        return data;
    }
    // What was written since the last time.
    std::vector<float> taken() {
        std::vector<float> all;
        for (const auto& [data, count] : results_) {
            all.insert(all.end(), data, data + count);
            std::memset(data, 0, count * sizeof(float));
        }
        return all;
    }

private:
    std::mt19937 source_;
    std::deque<std::unique_ptr<float[]>> held_;
    std::vector<std::pair<float*, long>> results_;
};

struct Ops {
    explicit Ops(unsigned seed) : m(seed) {
        const int n = m.from(0, 3), c = m.from(1, 40), h = m.from(1, 9), w = m.from(1, 9);
        x_shape = {m.perhaps() ? Type::f32 : Type::bf16, n, c, h, w};
        k = m.from(1, 40);
        kernel = m.from(1, 5), stride = m.from(1, 3);
        p = (h + 2 * (kernel / 2) - kernel) / stride + 1;
        q = (w + 2 * (kernel / 2) - kernel) / stride + 1;
        act = Activation(m.from(0, 3));
    }

    void* map(int channels, int h, int w, bool result = false) {
        const long count = long(x_shape.n) * channels * h * w;
        const long floats = x_shape.type == Type::f32 ? count : (count + 1) / 2;
        return result ? m.out(floats) : m.in(floats);
    }
    Map strided(const void* data, int c, int h, int w) {
        return {static_cast<const char*>(data), long(h) * w * c, long(w) * c, c};
    }
    Behind behind(int c, int p, int q, bool drop) {
        const int n = x_shape.n;
        return {map(c, p, q), map(c, p, q), m.in(4 * c), m.in(2 * c), act, m.in(n * c),
                drop ? m.in(n) : nullptr, m.in(n * c)};
    }

    std::vector<std::function<void(const Run&)>> calls() {
        const Shape s = x_shape;
        const int n = s.n, c = s.c, h = s.h, w = s.w, r = m.from(1, 20);
        const Map x = strided(map(c, h, w), c, h, w);
        const Prologue gated = {m.in(2 * c), act, m.in(n * c)}, plain = {m.in(2 * c), act, nullptr};
        const float* norm = m.in(2 * c);
        const Behind same = behind(c, h, w, true), wide = behind(k, h, w, true);
        const Behind conv = behind(c, p, q, false);
        const Convolution v = {s, p, q, kernel, stride, kernel / 2, kernel / 2};
        const float* taps = m.in(long(c) * kernel * kernel);
        const float* weight = m.in(long(k) * c);
        const float* drop = m.in(n);
        const void* residual = map(c, h, w);
        void* dense = map(c, h, w, true);
        void* out = map(k, h, w, true);
        void* convolved = map(c, p, q, true);
        float *stats = m.out(2 * c), *five = m.out(5 * n * c), *pooled = m.out(n * c);
        float *k_stats = m.out(2 * k), *k_pooled = m.out(n * k), *dw = m.out(long(k) * c);
        float *d_taps = m.out(long(c) * kernel * kernel), *strips = m.out((p + 3) / 4 * n * c);
        const Excitation mlp = {n, c, r, m.in(r * c), m.in(r), m.in(c * r), m.in(c), act};
        const ExcitationGradients grads = {m.out(n * c), m.out(r * c), m.out(r),
                                           m.out(c * r), m.out(c),     m.out(2 * c)};
        float *affine = m.out(2 * c), *made = m.out(2 * c), *coef = m.out(4 * c);
        const auto vector = [&](bool absent) {
            return absent ? Vector{} : Vector{m.in((3 * c - 1) / 2 + 1), Type::bf16, 3};
        };
        const Vector gamma = vector(m.perhaps()), beta = vector(m.perhaps()), mean = vector(false);
        const Vector var = {m.out(c), Type::f32, 1};
        return {
            [=](const Run& run) {
                bn_residual(run, s, x, gated, drop, strided(residual, c, h, w), dense);
            },
            [=](const Run& run) { bn_bwd_reduce(run, s, same, x, norm, stats); },
            [=](const Run& run) { bn_residual_bwd(run, s, same, x, dense); },
            [=](const Run& run) { moments(run, s, x, stats); },
            [=](const Run& run) { se_pool(run, s, x, plain, pooled); },
            [=](const Run& run) { se_bwd_reduce(run, s, residual, x, plain, norm, five); },
            [=](const Run& run) {
                pointwise(run, {s, k, x, weight, gated, nullptr, act, {}, out, k_stats, k_pooled});
            },
            [=](const Run& run) {
                pointwise_bwd(run, {s, k, wide, x, weight, gated, norm, residual, dense, dw, five});
            },
            [=](const Run& run) {
                depthwise(run, {v, x, taps, plain, nullptr, act, convolved, stats, strips, 4});
            },
            [=](const Run& run) {
                depthwise_bwd(run, {v, conv, x, taps, plain, norm, residual, dense, d_taps, stats});
            },
            [=](const Run& run) { se_gate(run, mlp, strips, (p + 3) / 4, p * q, pooled); },
            [=](const Run& run) { se_gate_bwd(run, mlp, five, pooled, pooled, h * w, grads); },
            [=](const Run&) {
                bn_finalize({c, norm, gamma, beta, mean, var, 9, 0.1, 1e-3, affine, made});
            },
            [=](const Run&) { bn_bwd_coef(c, stats, made, gamma, 9, true, coef); },
        };
    }

    Memory m;
    Shape x_shape;
    int k, kernel, stride, p, q;
    Activation act;
};

int run(unsigned seed) {
    int wrong = 0;
    for (const Isa isa : isas()) {
        for (const int threads : {1, 3}) {
            std::vector<float> found[2];
            for (std::vector<float>& results : found) {
                Ops ops(seed);
                for (const auto& call : ops.calls()) call({training_kernels_of(isa), threads});
                results = ops.m.taken();
            }
            if (std::memcmp(found[0].data(), found[1].data(), found[0].size() * sizeof(float))) {
                std::printf("seed %u, set %d, %d threads: two runs\n", seed, int(isa), threads);
                ++wrong;
            }
        }
    }
    return wrong;
}

}  // namespace

int main(int count, char** words) {
    if (count < 3) return 2;
    const int first = std::atoi(words[1]), last = std::atoi(words[2]);
    int wrong = 0;
    for (int seed = first; seed < last; ++seed) wrong += run(seed);
    std::printf("%d shapes\n", last - first);
    return wrong != 0;
}
