// The arithmetic of training, once per instruction set: a table of functions on tiles.
//
// In memory a tile is [pixels][channels] in fp32 or bf16, its pixels `step` elements apart. What
// the functions work on is blocked, [channels / 16][pixels][16] in fp32, `stride` floats from one
// block of channels to the next. Parameters of channels are fp32; those with several values to a
// channel are rows `row` values apart. A null pointer is an absent operand. What is summed is added
// to what is there: over pixels in fp32 for a few, in fp64 beyond.
//
// Included by translation units of every instruction set: it holds declarations only.
#pragma once

#include "cpu/kernels/kernels.h"

namespace effnet_fast::cpu::training {

enum class Type { f32, bf16 };

struct Tile {
    Type type;
    int channels, pixels;
    long row;
    long stride;
};

// a = gate * factor * act(scale * x + shift).
struct Load {
    Tile tile;
    const void* x;
    long step;
    const float* affine;  // scale, shift
    Activation act;
    const float* gate;
    float factor;
    float* a;
    float* slope;  // act'(scale * x + shift)
    double* sum;   // of a, where neither it nor the slope is wanted
};

// h = (g * gate * factor + dpool) * act'(scale * y + shift)
// d = a * h + b * (y - mean) + c with coef = (a, b, mean, c), else h.
struct LoadGradient {
    Tile tile;
    const void* g;
    const void* y;
    long g_step, y_step;
    const float* affine;
    Activation act;
    const float* gate;
    float factor;
    const float* dpool;
    const float* coef;
    float* d;
    const float* norm;  // mean, invstd: of the sums
    double* sums;       // of h, of h * xhat
};

// y = act(scale * a + shift) + residual, rounded to the type in memory.
struct Store {
    Tile tile;
    const float* a;
    const float* affine;
    Activation act;
    const void* residual;
    long residual_step;
    void* y;     // null: only the sum is wanted
    long step;
    double* sum;  // of y before it is rounded
};

// Of g = d, the gradient of act(scale * x + shift):
// g * act', act', g * act' * xhat, act' * xhat, g * act, each summed to its own row; and, on the
// way, a = gate * act, as Load gives it.
struct FiveSums {
    Tile tile;
    const float* d;
    const void* x;
    long step;
    const float* affine;
    Activation act;
    const float* norm;
    double* sums;
    long sums_row;
    const float* gate;
    float* a;
};

// d *= slope, in place; sums of d and of d * xhat.
struct Undo {
    Tile tile;
    float* d;
    const float* slope;
    long slope_stride;
    const void* x;
    long step;
    const float* norm;
    double* sums;
};

// About `shift`: sums of a - shift and of its square.
struct Moments {
    Tile tile;
    const float* a;
    const float* shift;
    double* sums;
};

// c[m][n] = sum over k of a[m][k] b[k][n]: a and c blocked, b in panels of `panel_blocks` blocks of
// 16 columns, the last of as many as are left: [panel][k][16 * blocks], zeros beyond the last
// column.
struct Multiply {
    const float* a;
    const float* b;
    float* c;
    long a_stride, c_stride;
    int pixels, k, n;
};

// c[i][j] += sum over pixels of a[m][i] b[m][j]: a and b blocked. c has rows for a full block of i
// and columns for full blocks of j.
struct Outer {
    const float* a;
    const float* b;
    float* c;
    long a_stride, b_stride, c_row;
    int pixels, rows, columns;
};

// out[j * out_step][16] = sum over rows r and taps t of
// weight[r][t][16] rows[r][j * stride + t][16].
struct Correlate {
    const float* const* rows;
    const float* const* weights;  // one of `taps` for each row
    float* out;
    int row_count, taps, stride, width, out_step;
};

// dw[t][16] += sum over j of d[j][16] a[j * stride + t][16].
struct Taps {
    const float* a;
    const float* d;
    float* dw;
    int taps, stride, width;
};

// c[i][j] += sum over k of w[i][k] v[k][j]: small matrices in fp32 as they lie in memory, v and c
// by rows, w with any two strides.
struct Combine {
    const float* w;
    long w_row, w_step;
    const float* v;
    long v_row;
    float* c;
    long c_row;
    int rows, steps, columns;
};

// x = act(x), and act' of what it was.
struct Activate {
    Activation act;
    float* x;
    float* slope;
    int count;
};

struct Kernels {
    int panel_blocks;
    void (*load)(const Load&);
    void (*load_gradient)(const LoadGradient&);
    void (*store)(const Store&);
    void (*five_sums)(const FiveSums&);
    void (*undo)(const Undo&);
    void (*moments)(const Moments&);
    void (*multiply)(const Multiply&);
    void (*outer)(const Outer&);
    void (*correlate)(const Correlate&);
    void (*taps)(const Taps&);
    void (*combine)(const Combine&);
    void (*activate)(const Activate&);
    void (*sigmoid)(float* x, int count);
};

}  // namespace effnet_fast::cpu::training
