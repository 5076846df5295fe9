// What is done to values one by one, and the gate of squeeze-and-excitation.
#pragma once

#include "cpu/kernels/simd.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {

constexpr int kSide = 4;  // pixels side by side, so that their chains hide each other's latency

template <Activation act>
struct Tag {};

template <typename F>
EFFNET_FAST_INLINE void with_tag(Activation act, F f) {
    switch (act) {
        case Activation::identity: return f(Tag<Activation::identity>());
        case Activation::relu: return f(Tag<Activation::relu>());
        case Activation::relu6: return f(Tag<Activation::relu6>());
        case Activation::silu: return f(Tag<Activation::silu>());
    }
}

template <bool rough, Activation act, typename X>
void activate_as(Tag<act>, X* x, int pixels, float* sum) {
    if (act == Activation::identity && !sum) return;
    for (int lane = 0; lane < kBlock; lane += kLanes) {
        Vec total = {};
        X* at = x + lane;
        int i = 0;
        for (; i + kSide <= pixels; i += kSide, at += kSide * kBlock) {
            Vec v[kSide];
            EFFNET_FAST_UNROLL for (int j = 0; j < kSide; ++j) v[j] = load(at + j * kBlock);
            activated<act, kSide, rough>(v);
            EFFNET_FAST_UNROLL for (int j = 0; j < kSide; ++j) store(at + j * kBlock, v[j]);
            if (sum) total += (v[0] + v[1]) + (v[2] + v[3]);
        }
        for (; i < pixels; ++i, at += kBlock) {
            Vec v = load(at);
            activated<act, 1, rough>(&v);
            store(at, v);
            if (sum) total += v;
        }
        if (sum) store(sum + lane, load(sum + lane) + total);
    }
}

template <bool rough, typename X>
void activate(X* x, int pixels, Activation act, float* sum) {
    with_tag(act, [=](auto tag) { activate_as<rough>(tag, x, pixels, sum); });
}

// `count` pixels, from an even one on where they lie by pairs.
template <Activation act, int count, typename T>
EFFNET_FAST_INLINE void fill_pixels(T* out, const float* in) {
    constexpr int per = kPair<T>;
    Vec v[count];
    EFFNET_FAST_UNROLL for (int j = 0; j < count; ++j) v[j] = load(in + j * kBlock);
    activated<act, count, kRough<T>>(v);
    EFFNET_FAST_UNROLL for (int j = 0; j < count; j += per) {
        store_lanes(out + j * kBlock, v + j);
    }
}

template <Activation act, typename T>
void fill_as(Tag<act>, const RingRows<T>& r) {
    constexpr int per = kPair<T>;
    const int left = r.before % per, count = left + r.width;  // zeros complete a pair
    for (int lane = 0; lane < kBlock; lane += kLanes) {
        for (int y = 0; y < r.rows; ++y) {
            const float* in = r.in + y * r.in_stride - left * kBlock + lane;
            T* out = r.out + y * r.out_stride + (r.before - left) * kBlock + lane * per;
            int i = 0;
            for (; i + kSide <= count; i += kSide, in += kSide * kBlock, out += kSide * kBlock) {
                fill_pixels<act, kSide>(out, in);
            }
            for (; i < count; i += per, in += per * kBlock, out += per * kBlock) {
                fill_pixels<act, per>(out, in);
            }
        }
    }
}

template <typename T>
void fill(const RingRows<T>& rows) {
    with_tag(rows.act, [&](auto tag) { fill_as(tag, rows); });
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
                const Vec both = load_lanes(in);
                const Vec scaled[] = {low(both) * even, high(both) * odd};
                store_lanes(out, scaled);
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

// `vecs` registers of out += in[count] * weight[count][width], as sums of every `chains`-th term
// whose latencies hide each other.
template <int vecs, typename T>
EFFNET_FAST_INLINE void add_columns(float* out, const float* in, const T* weight, int count,
                                    int width) {
    constexpr int chains = vecs < 4 ? 4 : vecs < 8 ? 2 : 1;
    Vec acc[chains][vecs] = {};
    int k = 0;
    const auto add = [&](int chain) {
        const Vec x = broadcast(in[k++]);
        EFFNET_FAST_UNROLL for (int i = 0; i < vecs; ++i) {
            acc[chain][i] += load(weight + i * kLanes) * x;
        }
        weight += width;
    };
    while (k + chains <= count) {
        EFFNET_FAST_UNROLL for (int c = 0; c < chains; ++c) add(c);
    }
    while (k < count) add(0);
    EFFNET_FAST_UNROLL for (int i = 0; i < vecs; ++i) {
        EFFNET_FAST_UNROLL for (int c = 1; c < chains; ++c) acc[0][i] += acc[c][i];
        store(out + i * kLanes, load(out + i * kLanes) + acc[0][i]);
    }
}

// out[width] += in[count] * weight[count][width].
template <typename T>
void add_product(float* out, const float* in, const T* weight, int count, int width) {
    constexpr int side = 4;  // blocks side by side
    int n = 0;
    for (; n + side * kBlock <= width; n += side * kBlock) {
        add_columns<side * kPer>(out + n, in, weight + n, count, width);
    }
    for (; n < width; n += kBlock) add_columns<kPer>(out + n, in, weight + n, count, width);
}

template <typename T>
void excite(float* gate, const float* hidden, const T* widen, const float* bias, int count,
            int width) {
    for (int n = 0; n < width; n += kLanes) store(gate + n, load(bias + n));
    add_product(gate, hidden, widen, count, width);
    for (int n = 0; n < width; n += kLanes) {
        store(gate + n, times_sigmoid(broadcast(1.0f), load(gate + n)));
    }
}

}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
