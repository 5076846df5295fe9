// The table of one instruction set. setup.py compiles this file once for each.
#include "cpu/kernels/depthwise.h"
#include "cpu/kernels/product.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {
namespace {

// Four registers at a time: four independent chains hide the latency of the polynomial.
template <Activation act>
void activate_as(float* x, long pixels, float* sum) {
    constexpr int step = 4;
    for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec total = {};  // of one row, so that errors grow with the square root of rows + columns
        long i = 0;
        for (; i + step <= pixels; i += step) {
            Vec v[step];
#pragma GCC unroll 4
            for (int j = 0; j < step; ++j) v[j] = activated<act>(load(x + (i + j) * kBlock + lane));
#pragma GCC unroll 4
            for (int j = 0; j < step; ++j) store(x + (i + j) * kBlock + lane, v[j]);
            if (sum) total += (v[0] + v[1]) + (v[2] + v[3]);
        }
        for (; i < pixels; ++i) {
            const Vec v = activated<act>(load(x + i * kBlock + lane));
            store(x + i * kBlock + lane, v);
            if (sum) total += v;
        }
        if (sum) store(sum + lane, load(sum + lane) + total);
    }
}

void activate(float* x, long pixels, Activation act, float* sum) {
    switch (act) {
        case Activation::identity:
            return activate_as<Activation::identity>(x, pixels, sum);
        case Activation::relu:
            return activate_as<Activation::relu>(x, pixels, sum);
        case Activation::relu6:
            return activate_as<Activation::relu6>(x, pixels, sum);
        case Activation::silu:
            return activate_as<Activation::silu>(x, pixels, sum);
    }
}

void scale_rows(float* out, const float* in, const float* gate, int k, int width) {
    for (int i = 0; i < k; ++i, in += width, out += width) {
        const Vec g = broadcast(gate[i]);
        for (int n = 0; n < width; n += kLanes) store(out + n, load(in + n) * g);
    }
}

void squeeze_excite(const float* mean, const float* reduce, const float* reduce_bias,
                    const float* widen, const float* widen_bias, Activation act, float* hidden,
                    float* gate, int squeezed, int blocks) {
    const int width = blocks * kBlock;
    for (int j = 0; j < squeezed; ++j, reduce += width) {
        Vec acc[4] = {};  // blocks hold 16 channels: two of its registers at least, or pairs of blocks
        int c = 0;
        for (; c + 4 * kLanes <= width; c += 4 * kLanes) {
            for (int i = 0; i < 4; ++i) {
                acc[i] += load(reduce + c + i * kLanes) * load(mean + c + i * kLanes);
            }
        }
        for (; c < width; c += kLanes) acc[0] += load(reduce + c) * load(mean + c);
        const Vec all = (acc[0] + acc[1]) + (acc[2] + acc[3]);
        float z = reduce_bias[j];
        for (int i = 0; i < kLanes; ++i) z += all[i];
        hidden[j] = z;
    }
    for (int j = 0; j < squeezed; ++j) {
        alignas(64) float one[kBlock] = {hidden[j]};
        activate(one, 1, act, nullptr);
        hidden[j] = one[0];
    }
    for (int c = 0; c < width; c += kBlock) {
        Vec acc[kPer];
        for (int i = 0; i < kPer; ++i) acc[i] = load(widen_bias + c + i * kLanes);
        for (int j = 0; j < squeezed; ++j) {
            const Vec z = broadcast(hidden[j]);
            const float* w = widen + long(j) * width + c;
            for (int i = 0; i < kPer; ++i) acc[i] += load(w + i * kLanes) * z;
        }
        for (int i = 0; i < kPer; ++i) {
            store(gate + c + i * kLanes, times_sigmoid(broadcast(1.0f), acc[i]));
        }
    }
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {kPanelBlocks, product, depthwise_row, activate, scale_rows,
                         squeeze_excite};

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
