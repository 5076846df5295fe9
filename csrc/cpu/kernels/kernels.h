// The arithmetic of the engine, once per instruction set: a table of functions on blocks of 16
// channels. A map is [C/16][H*W][16] in fp32; lanes beyond C are padding.
//
// Included by translation units of every instruction set: it holds declarations only.
#pragma once

namespace effnet_fast::cpu {

constexpr int kBlock = 16;      // channels that lie side by side
constexpr int kGroupBlocks = 2; // blocks that one pass expands and convolves

// The upper half of a float: how maps and weights of an engine of bfloat16 lie in memory.
struct Bf16 {
    unsigned short bits;
};

enum class Activation { identity, relu, relu6, silu };

// c[m][n] = bias[n] + sum over k of a[k][m] b[k][n] (+ residual[m][n]), for `pixels` values of m and
// the 16 * blocks values of n that one panel of weights holds.
struct Product {
    const float* a;         // pixel m, input channel k at a[k / 16 * a_stride + m * 16 + k % 16]
    long a_stride;
    const float* b;         // [k][16 * blocks]
    int k;
    const float* bias;      // [16 * blocks]
    float* c;               // block n at c + n * c_stride, pixel m of it at offset[m] or m * 16
    long c_stride;
    const int* offset;      // null: dense
    const float* residual;  // of c's layout, or null
    int pixels;
    int blocks;             // 1 up to Kernels::panel_blocks
    const float* next;      // the next panel's weights, fetched meanwhile, or null
};

// One row of one block of channels.
struct DepthwiseRow {
    const float* const* rows;  // `kernel` rows, each from its left padding on
    const float* weight;       // [kernel * kernel][16]
    const float* bias;         // [16]
    float* out;                // [width][16]
    int kernel, stride, width;
};

struct Kernels {
    int panel_blocks;  // blocks of 16 columns whose sums the registers hold beside those of max rows
    void (*product)(const Product&);
    // 3 or 5, stride 1 or 2.
    void (*depthwise_row)(const DepthwiseRow&);
    // x[i][16] = act(x), in place, `pixels` times; adds up what it wrote in sum[16] unless null.
    void (*activate)(float* x, long pixels, Activation act, float* sum);
    // out[k][width] = in[k][width] * gate[k]: the gate of squeeze-and-excitation in the weights.
    void (*scale_rows)(float* out, const float* in, const float* gate, int k, int width);
    // gate = sigmoid(widen * act(reduce * mean + reduce_bias) + widen_bias): reduce and widen are
    // [squeezed][16 * blocks], hidden has room for `squeezed` values.
    void (*squeeze_excite)(const float* mean, const float* reduce, const float* reduce_bias,
                           const float* widen, const float* widen_bias, Activation act,
                           float* hidden, float* gate, int squeezed, int blocks);
};

}  // namespace effnet_fast::cpu
