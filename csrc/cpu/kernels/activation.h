// What is done to values one by one, and the gate of squeeze-and-excitation.
#pragma once

#include "cpu/kernels/simd.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

// Four pixels side by side, so that their chains hide each other's latency.
template <Activation act, bool rough, typename X, typename At>
EFFNET_FAST_INLINE void activate_as(X* x, At at, int pixels, float* sum) {
    constexpr int step = 4;
    for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec total = {};
        int i = 0;
        for (; i + step <= pixels; i += step) {
            Vec v[step];
            EFFNET_FAST_UNROLL for (int j = 0; j < step; ++j) v[j] = load(x + at(i + j) + lane);
            activated<act, step, rough>(v);
            EFFNET_FAST_UNROLL for (int j = 0; j < step; ++j) store(x + at(i + j) + lane, v[j]);
            if (sum) total += (v[0] + v[1]) + (v[2] + v[3]);
        }
        for (; i < pixels; ++i) {
            Vec v = load(x + at(i) + lane);
            activated<act, 1, rough>(&v);
            store(x + at(i) + lane, v);
            if (sum) total += v;
        }
        if (sum) store(sum + lane, load(sum + lane) + total);
    }
}

template <bool rough, typename X, typename At>
EFFNET_FAST_INLINE void activate_at(X* x, At at, int pixels, Activation act, float* sum) {
    switch (act) {
        case Activation::identity:
            if (!sum) return;
            return activate_as<Activation::identity, rough>(x, at, pixels, sum);
        case Activation::relu:
            return activate_as<Activation::relu, rough>(x, at, pixels, sum);
        case Activation::relu6:
            return activate_as<Activation::relu6, rough>(x, at, pixels, sum);
        case Activation::silu:
            return activate_as<Activation::silu, rough>(x, at, pixels, sum);
    }
}

template <bool rough>
void activate(float* x, const int* offset, int pixels, Activation act, float* sum) {
    activate_at<rough>(x, [offset](int i) { return offset[i]; }, pixels, act, sum);
}

template <typename X>
void activate_dense(X* x, int pixels, Activation act, float* sum) {
    activate_at<kRough<X>>(x, [](int i) { return i * kBlock; }, pixels, act, sum);
}

template <typename To, typename From>
void convert(To* out, const From* in, long count) {
    for (long i = 0; i < count; i += kLanes) store(out + i, load(in + i));
}

template <typename T>
void scale_rows(T* out, const T* in, const float* gate, int k, int width) {
    if constexpr (sizeof(T) == 4) {
        for (int i = 0; i < k; ++i, in += width, out += width) {
            const Vec g = broadcast(gate[i]);
            for (int n = 0; n < width; n += kLanes) store(out + n, load(in + n) * g);
        }
    } else {
        for (int i = 0; i < k; i += 2) {
            const Vec even = broadcast(gate[i]), odd = broadcast(gate[i + 1]);
            for (int n = 0; n < width; n += kLanes, in += 2 * kLanes, out += 2 * kLanes) {
                const Vec both = *reinterpret_cast<const UnalignedVec*>(in);
                *reinterpret_cast<UnalignedVec*>(out) = pairs(low(both) * even, high(both) * odd);
            }
        }
    }
}

static void squeeze_excite(const float* mean, const float* reduce, const float* reduce_bias,
                           const float* widen, const float* widen_bias, Activation act,
                           float* hidden, float* gate, int squeezed, int blocks) {
    const int width = blocks * kBlock;
    for (int j = 0; j < squeezed; ++j, reduce += width) {
        Vec acc[4] = {};
        int c = 0;
        for (; c + 4 * kLanes <= width; c += 4 * kLanes) {
            EFFNET_FAST_UNROLL for (int i = 0; i < 4; ++i) {
                acc[i] += load(reduce + c + i * kLanes) * load(mean + c + i * kLanes);
            }
        }
        for (; c < width; c += kLanes) acc[0] += load(reduce + c) * load(mean + c);
        const Vec all = (acc[0] + acc[1]) + (acc[2] + acc[3]);
        float z = reduce_bias[j];
        for (int i = 0; i < kLanes; ++i) z += all[i];
        hidden[j] = z;
    }
    for (int j = 0; j < squeezed; j += kBlock) {
        alignas(64) float some[kBlock] = {};
        const int count = squeezed - j < kBlock ? squeezed - j : kBlock;
        for (int i = 0; i < count; ++i) some[i] = hidden[j + i];
        activate_dense(some, 1, act, nullptr);
        for (int i = 0; i < count; ++i) hidden[j + i] = some[i];
    }
    constexpr int step = 4;  // registers side by side; blocks hold kPer each
    for (int c = 0; c < width; c += step * kLanes) {
        const int count = (width - c) / kLanes < step ? (width - c) / kLanes : step;
        Vec acc[step] = {};
        for (int i = 0; i < count; ++i) acc[i] = load(widen_bias + c + i * kLanes);
        if (count == step) {
            for (int j = 0; j < squeezed; ++j) {
                const float* w = widen + long(j) * width + c;
                const Vec z = broadcast(hidden[j]);
                EFFNET_FAST_UNROLL for (int i = 0; i < step; ++i) {
                    acc[i] += load(w + i * kLanes) * z;
                }
            }
        } else {
            for (int j = 0; j < squeezed; ++j) {
                const float* w = widen + long(j) * width + c;
                for (int i = 0; i < count; ++i) acc[i] += load(w + i * kLanes) * hidden[j];
            }
        }
        for (int i = 0; i < count; ++i) {
            store(gate + c + i * kLanes, times_sigmoid(broadcast(1.0f), acc[i]));
        }
    }
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
