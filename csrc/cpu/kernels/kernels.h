// The arithmetic of the engine, once per instruction set: tables of functions on blocks of 16
// channels. A map is [C/16][H*W][16]; lanes beyond C are padding, and zero.
//
// T is how maps and weights lie in memory: float or Bf16. Arithmetic is fp32, but for products of
// two Bf16 where AVX512_BF16 has an instruction for them. Sums of Bf16 are multiplied by a `scale`
// before `bias` is added; of float it is in the weights, and not read.
//
// Included by translation units of every instruction set: it holds declarations only.
#pragma once

namespace effnet_fast::cpu {

constexpr int kBlock = 16;  // channels that lie side by side
constexpr int kWidest = 3;  // blocks of the widest panel

// The upper half of a float.
struct Bf16 {
    unsigned short bits;
};

// Values of one channel that lie side by side for one instruction: products of two are added.
template <typename T>
constexpr int kPair = 4 / sizeof(T);

enum class Activation { identity, relu, relu6, silu };

// c[m][n] = bias[n] + sum over k of a[k][m] b[k][n] (+ residual[m][n]), for `pixels` values of m
// and the 16 * blocks values of n that one panel of weights holds.
template <typename T, typename C>
struct Product {
    const T* a;          // pixel m, input channel k at a[k / 16 * a_stride + m * 16 + k % 16]
    long a_stride;
    const T* b;          // float: [k][16 * blocks]; Bf16: [k / 2][16 * blocks][2]
    int k;
    const float *scale, *bias;  // [16 * blocks]
    C* c;  // block n at c + n * c_stride, pixel m of it at offset[m], or in a map m * 16
    long c_stride;
    const int* offset;   // unless c is a map
    const C* residual;   // a map of c's layout, or null
    int pixels;
    int blocks;          // 1 to kWidest
    const T* next;       // what is multiplied by next: fetched meanwhile
};

// One row of a dense convolution of an image, for the 16 * blocks channels of one panel.
template <typename T>
struct StemRow {
    // `count` rows of the image, from the left padding on: float: of each (channel, row), [x];
    // Bf16: of each (channel / 2, row), [x][2].
    const T* const* rows;
    int count, kernel, stride;  // kernel: columns; stride 1 or 2
    const T* weight;            // float: [count][kernel][16 * blocks]; Bf16: ... [2]
    const float *scale, *bias;
    float* out;                 // block n at out + n * out_stride, dense
    long out_stride;
    int pixels, blocks;
};

// Rows of one block of channels through their activation, to where a depthwise convolution reads
// them: float: [pixel][16]; Bf16: [pixel / 2][16][2].
template <typename T>
struct RingRows {
    const float* in;  // [rows][width][16], `in_stride` apart, with a pixel of zeros on either side
    long in_stride;
    T* out;           // from the left padding on, `out_stride` apart
    long out_stride;
    int before;       // pixels of padding; of Bf16 those that share a pair with others are written
    int rows, width;
    Activation act;
};

// Rows of one block of channels, through its activation.
template <typename T>
struct Depthwise {
    // From row 0 of what output row 0 reads on, `stride` further for each; of RingRows.
    const T* const* rows;
    // float: [row][column][16]; Bf16: [row][parity][column / 2][16][2], for outputs at columns of
    // that parity, of which there is one where stride is 2.
    const T* weight;
    const float *scale, *bias;  // [16]
    T* out;                     // [count][width][16]
    float* sum;                 // [16]: what is written is added
    int kernel, stride;         // 3 or 5; 1 or 2
    int count, width;
    Activation act;
};

template <typename T>
struct Kernels {
    // Blocks of the panels that `b` is cut into: 1; or 2, for both twos and threes.
    int panel_blocks;
    // StemRow's row from `width` pixels of each of its channels; zeros up to a multiple of 16.
    void (*image_row)(T* out, const float* const* in, int width);
    void (*stem)(const StemRow<T>&);
    void (*product)(const Product<T, float>&);  // c is no map
    void (*product_to_map)(const Product<T, T>&);
    void (*fill)(const RingRows<T>&);
    void (*depthwise)(const Depthwise<T>&);
    // x[pixels][16] = act(x), added to sum[16] unless null.
    void (*activate)(float* x, int pixels, Activation act, float* sum);
    void (*widen)(float* out, const T* in, long count);  // count: a multiple of 16
    void (*narrow)(T* out, const float* in, long count);
    // hidden[width] += in[count] * reduce[count][width]; width: a multiple of 16.
    void (*squeeze)(float* hidden, const float* in, const T* reduce, int count, int width);
    // gate[width] = sigmoid(hidden[count] * widen[count][width] + bias[width])
    void (*excite)(float* gate, const float* hidden, const T* widen, const float* bias, int count,
                   int width);
    // out[k][n] = in[k][n] * gate[k], in b's layout: the gate in the weights. gate[k] is read up to
    // an even number.
    void (*scale_rows)(T* out, const T* in, const float* gate, int k, int width);
    // The gate in `pixels` pixels of all `blocks` of a map.
    void (*scale_map)(T* map, long stride, const float* gate, int blocks, int pixels);
};

}  // namespace effnet_fast::cpu
