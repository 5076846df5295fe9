// What is done to a tile on its way from memory and back: batch norm, activation, gate, residual,
// their derivatives, and sums.
//
// Channels outside, pixels inside: parameters and sums of a channel stay in registers for the tile.
#pragma once

#include "cpu/training/kernels/lanes.h"

namespace effnet_fast::cpu::EFFNET_FAST_ISA {
namespace {

// So many pixels are summed in fp32.
constexpr int kSummed = 16;

// f(first, end) for each so many of `pixels`.
template <class F>
EFFNET_FAST_INLINE void for_sums(int pixels, F f) {
    for (int first = 0; first < pixels; first += kSummed) {
        f(first, pixels - first < kSummed ? pixels : first + kSummed);
    }
}

// The pixel as far behind the tile's end as i is behind its beginning: most often the next tile's.
// Steps of many channels are no pattern that a processor's own prefetcher follows far.
template <class T>
EFFNET_FAST_INLINE void fetch_next(const training::Tile& tile, const T* p, long step, int i) {
    __builtin_prefetch(p + (i + tile.pixels) * step, 0, 2);
}

void load_tile(const training::Load& p) {
    with_types(p.tile.type, p.act, [&](auto element, auto of) {
        using T = decltype(element);
        constexpr Activation act = decltype(of)::value;
        for_channels(p.tile.channels, [&](int c, auto lanes) {
            const T* x = static_cast<const T*>(p.x) + c;
            const Vec scale = get_or(lanes, p.affine, c, 1.0f);
            const Vec shift = get_or(lanes, p.affine ? p.affine + p.tile.row : nullptr, c, 0.0f);
            const Vec gate = get_or(lanes, p.gate, c, 1.0f) * p.factor;
            float* a = blocked(p.a, c, p.tile.stride);
            float* slope = blocked(p.slope, c, p.tile.stride);
            const long step = p.step;
            if (slope) {
                for (int i = 0; i < p.tile.pixels; ++i) {
                    fetch_next(p.tile, x, step, i);
                    const auto [value, s] =
                        value_and_slope<act>(lanes.get(x + i * step) * scale + shift);
                    store(a + i * kBlock, value * gate);
                    store(slope + i * kBlock, s);
                }
            } else if (a) {
                for (int i = 0; i < p.tile.pixels; ++i) {
                    fetch_next(p.tile, x, step, i);
                    // As above to the bit: a weight gradient is the same with and without the
                    // input's.
                    const Vec u = lanes.get(x + i * step) * scale + shift;
                    store(a + i * kBlock, value_and_slope<act>(u).value * gate);
                }
            } else {
                for_sums(p.tile.pixels, [&](int first, int end) {
                    Vec total = {};
                    for (int i = first; i < end; ++i) {
                        fetch_next(p.tile, x, step, i);
                        total += value_of<act>(lanes.get(x + i * step) * scale + shift) * gate;
                    }
                    lanes.add(p.sum + c, total);
                });
            }
        });
    });
}

void load_gradient_tile(const training::LoadGradient& p) {
    const long row = p.tile.row;
    with_types(p.tile.type, p.act, [&](auto element, auto of) {
        using T = decltype(element);
        constexpr Activation act = decltype(of)::value;
        for_channels(p.tile.channels, [&](int c, auto lanes) {
            const T* g = p.g ? static_cast<const T*>(p.g) + c : nullptr;
            const T* y = static_cast<const T*>(p.y) + c;
            const auto row_of = [&](const float* rows, int i, float absent) {
                return get_or(lanes, rows ? rows + i * row : nullptr, c, absent);
            };
            const Vec scale = row_of(p.affine, 0, 1.0f), shift = row_of(p.affine, 1, 0.0f);
            const Vec gate = get_or(lanes, p.gate, c, 1.0f) * p.factor;
            const Vec dpool = get_or(lanes, p.dpool, c, 0.0f);
            const Vec ca = row_of(p.coef, 0, 1.0f), cb = row_of(p.coef, 1, 0.0f);
            const Vec cmean = row_of(p.coef, 2, 0.0f), cc = row_of(p.coef, 3, 0.0f);
            const long g_step = p.g_step, y_step = p.y_step;
            const auto output_gradient = [&](int i, Vec value) {
                fetch_next(p.tile, y, y_step, i);
                if (g) fetch_next(p.tile, g, g_step, i);
                const Vec from = (g ? lanes.get(g + i * g_step) : Vec{}) * gate + dpool;
                return act == Activation::identity
                           ? from
                           : from * value_and_slope<act>(value * scale + shift).slope;
            };
            if (p.sums) {
                const Vec mean = row_of(p.norm, 0, 0.0f), invstd = row_of(p.norm, 1, 1.0f);
                for_sums(p.tile.pixels, [&](int first, int end) {
                    Vec sum_h = {}, sum_hx = {};
                    for (int i = first; i < end; ++i) {
                        const Vec value = lanes.get(y + i * y_step);
                        const Vec h = output_gradient(i, value);
                        sum_h += h;
                        sum_hx += h * (value - mean);
                    }
                    lanes.add(p.sums + c, sum_h);
                    lanes.add(p.sums + row + c, sum_hx * invstd);
                });
                return;
            }
            float* d = blocked(p.d, c, p.tile.stride);
            for (int i = 0; i < p.tile.pixels; ++i) {
                const Vec value = lanes.get(y + i * y_step);
                const Vec h = output_gradient(i, value);
                store(d + i * kBlock, ca * h + (cb * (value - cmean) + cc));
            }
        });
    });
}

void store_tile(const training::Store& p) {
    with_types(p.tile.type, p.act, [&](auto element, auto of) {
        using T = decltype(element);
        constexpr Activation act = decltype(of)::value;
        for_channels(p.tile.channels, [&](int c, auto lanes) {
            const float* a = blocked(p.a, c, p.tile.stride);
            const T* residual = p.residual ? static_cast<const T*>(p.residual) + c : nullptr;
            T* y = p.y ? static_cast<T*>(p.y) + c : nullptr;
            const Vec scale = get_or(lanes, p.affine, c, 1.0f);
            const Vec shift = get_or(lanes, p.affine ? p.affine + p.tile.row : nullptr, c, 0.0f);
            const long step = p.step, residual_step = p.residual_step;
            for_sums(p.tile.pixels, [&](int first, int end) {
                Vec total = {};
                for (int i = first; i < end; ++i) {
                    Vec v = value_of<act>(load(a + i * kBlock) * scale + shift);
                    if (residual) v += lanes.get(residual + i * residual_step);
                    if (y) lanes.put(y + i * step, v);
                    total += v;
                }
                if (p.sum) lanes.add(p.sum + c, total);
            });
        });
    });
}

void five_sums_tile(const training::FiveSums& p) {
    const long row = p.tile.row;
    with_types(p.tile.type, p.act, [&](auto element, auto of) {
        using T = decltype(element);
        constexpr Activation act = decltype(of)::value;
        for_channels(p.tile.channels, [&](int c, auto lanes) {
            const float* d = blocked(p.d, c, p.tile.stride);
            float* operand = blocked(p.a, c, p.tile.stride);
            const T* x = static_cast<const T*>(p.x) + c;
            const Vec gate = get_or(lanes, p.gate, c, 1.0f);
            const Vec scale = get_or(lanes, p.affine, c, 1.0f);
            const Vec shift = get_or(lanes, p.affine ? p.affine + row : nullptr, c, 0.0f);
            const Vec mean = get_or(lanes, p.norm, c, 0.0f);
            // Without a norm xhat is 0.
            const Vec invstd = get_or(lanes, p.norm ? p.norm + row : nullptr, c, 0.0f);
            const long step = p.step;
            for_sums(p.tile.pixels, [&](int first, int end) {
                Vec sum[5] = {};
                for (int i = first; i < end; ++i) {
                    fetch_next(p.tile, x, step, i);
                    const Vec value = lanes.get(x + i * step), g = load(d + i * kBlock);
                    const auto [a, slope] = value_and_slope<act>(value * scale + shift);
                    if (operand) store(operand + i * kBlock, a * gate);
                    const Vec away = value - mean, gs = g * slope;
                    sum[0] += gs;
                    sum[1] += slope;
                    sum[2] += gs * away;
                    sum[3] += slope * away;
                    sum[4] += g * a;
                }
                sum[2] *= invstd;
                sum[3] *= invstd;
                for (int s = 0; s < 5; ++s) lanes.add(p.sums + s * p.sums_row + c, sum[s]);
            });
        });
    });
}

void undo_tile(const training::Undo& p) {
    const long row = p.tile.row;
    with_types(p.tile.type, Activation::identity, [&](auto element, auto) {
        using T = decltype(element);
        for_channels(p.tile.channels, [&](int c, auto lanes) {
            float* d = blocked(p.d, c, p.tile.stride);
            const float* slope = blocked(p.slope, c, p.slope_stride);
            const T* x = static_cast<const T*>(p.x) + c;
            const Vec mean = lanes.get(p.norm + c), invstd = lanes.get(p.norm + row + c);
            const long step = p.step;
            for_sums(p.tile.pixels, [&](int first, int end) {
                Vec sum_h = {}, sum_hx = {};
                for (int i = first; i < end; ++i) {
                    const Vec h = load(d + i * kBlock) * load(slope + i * kBlock);
                    store(d + i * kBlock, h);
                    sum_h += h;
                    sum_hx += h * (lanes.get(x + i * step) - mean);
                }
                lanes.add(p.sums + c, sum_h);
                lanes.add(p.sums + row + c, sum_hx * invstd);
            });
        });
    });
}

void moments_tile(const training::Moments& p) {
    for_channels(p.tile.channels, [&](int c, auto lanes) {
        const float* a = blocked(p.a, c, p.tile.stride);
        const Vec shift = get_or(lanes, p.shift, c, 0.0f);
        constexpr int step = 4;  // chains of additions side by side
        for_sums(p.tile.pixels, [&](int first, int end) {
            Vec sum[step] = {}, squares[step] = {};
            int i = first;
            for (; i + step <= end; i += step) {
#pragma GCC unroll 4
                for (int j = 0; j < step; ++j) {
                    const Vec away = load(a + (i + j) * kBlock) - shift;
                    sum[j] += away;
                    squares[j] += away * away;
                }
            }
            for (; i < end; ++i) {
                const Vec away = load(a + i * kBlock) - shift;
                sum[0] += away;
                squares[0] += away * away;
            }
            lanes.add(p.sums + c, (sum[0] + sum[1]) + (sum[2] + sum[3]));
            lanes.add(p.sums + p.tile.row + c,
                      (squares[0] + squares[1]) + (squares[2] + squares[3]));
        });
    });
}

}  // namespace
}  // namespace effnet_fast::cpu::EFFNET_FAST_ISA
