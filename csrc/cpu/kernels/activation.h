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

template <typename T>
void scale_map(T* map, long stride, const float* gate, int blocks, int pixels) {
    for (int b = 0; b < blocks; ++b, map += stride, gate += kBlock) {
        for (int lane = 0; lane < kBlock; lane += kLanes) {
            const Vec g = load(gate + lane);
            for (int m = 0; m < pixels; ++m) {
                T* const x = map + m * kBlock + lane;
                store(x, load(x) * g);
            }
        }
    }
}

// `vecs` registers of out += in[count] * weight[count][width].
template <int vecs>
EFFNET_FAST_INLINE void add_columns(float* out, const float* in, const float* weight, int count,
                                    int width) {
    Vec acc[vecs];
    EFFNET_FAST_UNROLL for (int i = 0; i < vecs; ++i) acc[i] = load(out + i * kLanes);
    for (int k = 0; k < count; ++k, weight += width) {
        const Vec x = broadcast(in[k]);
        EFFNET_FAST_UNROLL for (int i = 0; i < vecs; ++i) acc[i] += load(weight + i * kLanes) * x;
    }
    EFFNET_FAST_UNROLL for (int i = 0; i < vecs; ++i) store(out + i * kLanes, acc[i]);
}

// out[width] += in[count] * weight[count][width].
static void add_product(float* out, const float* in, const float* weight, int count, int width) {
    constexpr int side = 4;  // blocks side by side
    int n = 0;
    for (; n + side * kBlock <= width; n += side * kBlock) {
        add_columns<side * kPer>(out + n, in, weight + n, count, width);
    }
    for (; n < width; n += kBlock) add_columns<kPer>(out + n, in, weight + n, count, width);
}

static void excite(float* gate, float* hidden, const float* widen, const float* bias,
                   Activation act, int count, int width) {
    activate_dense(hidden, (count + kBlock - 1) / kBlock, act, nullptr);
    for (int n = 0; n < width; n += kLanes) store(gate + n, load(bias + n));
    add_product(gate, hidden, widen, count, width);
    for (int n = 0; n < width; n += kLanes) {
        store(gate + n, times_sigmoid(broadcast(1.0f), load(gate + n)));
    }
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
