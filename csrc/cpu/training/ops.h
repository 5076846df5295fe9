// The ops of training on a CPU: the vocabulary of effnet_fast/reference.py, less the dense
// convolution.
//
// Activations are NHWC in memory, fp32 or bf16; parameters, sums and weights are fp32 and
// contiguous. A null pointer is an absent operand or a result that is not wanted. A result that
// sums over pixels or images is summed in parts that depend on the shape alone, but for the weight
// gradients of pointwise_bwd, which depend on the number of threads too; each in a fixed order.
#pragma once

#include "cpu/isa.h"
#include "cpu/training/kernels/kernels.h"

namespace effnet_fast::cpu::training {

const Kernels& training_kernels_of(Isa isa);

struct Run {
    const Kernels& kernels;
    int threads;
};

struct Shape {
    Type type;
    int n, c, h, w;
    long pixels() const { return long(h) * w; }
};

// An activation that may be a slice of a larger one: strides of N, H, W in elements.
struct Map {
    const char* data;
    long n, h, w;
};

// What lies before an op on its input: act(affine(x)) * gate[N,C].
struct Prologue {
    const float* affine;
    Activation act;
    const float* gate;
};

// What lies behind the raw output y of an op, from g, the gradient behind all of it, on: dense
// maps.
struct Behind {
    const void* g;
    const void* y;
    const float* coef;
    const float* affine;
    Activation act;
    const float* gate;
    const float* drop;   // [N]
    const float* dpool;  // [N,C]
};

void bn_residual(const Run& run, const Shape& shape, const Map& x, const Prologue& prologue,
                 const float* drop, const Map& residual, void* y);
// y of `behind` may be any map, so it comes by itself in these two.
void bn_bwd_reduce(const Run& run, const Shape& shape, const Behind& behind, const Map& y,
                   const float* norm, float* sums);
void bn_residual_bwd(const Run& run, const Shape& shape, const Behind& behind, const Map& y,
                     void* dy);
void moments(const Run& run, const Shape& shape, const Map& x, float* stats);

// [C] fp32 or bf16 values, `stride` values apart; data null: absent.
struct Vector {
    void* data;
    Type type;
    long stride;
};

// affine = (scale, shift), norm = (mean, invstd), [2,C] each; either may be null.
void bn_fold(int c, const Vector& weight, const Vector& bias, const Vector& mean, const Vector& var,
             double eps, float* affine, float* norm);
// stats [2,C]; the running statistics are updated where they lie.
struct Finalize {
    int c;
    const float* stats;
    Vector weight, bias, running_mean, running_var;
    long count;
    double momentum, eps;
    float* affine;
    float* norm;
};
void bn_finalize(const Finalize& p);
void bn_bwd_coef(int c, const float* sums, const float* norm, const Vector& weight, long count,
                 bool batch_stats, float* coef);

// The MLP of N images' C channels: w_reduce [R,C], w_expand [C,R].
struct Excitation {
    int n, c, r;
    const float* w_reduce;
    const float* b_reduce;
    const float* w_expand;
    const float* b_expand;
    Activation act;
};
// pool [t,N,C], of which the sum over t divided by `count` is squeezed.
void se_gate(const Run& run, const Excitation& e, const float* pool, int t, long count,
             float* gate);
struct ExcitationGradients {
    float* dpool;  // [N,C]
    float* dw_reduce;
    float* db_reduce;
    float* dw_expand;
    float* db_expand;
    float* bn_sums;  // [2,C]
};
// sums [5,N,C].
void se_gate_bwd(const Run& run, const Excitation& e, const float* sums, const float* gate,
                 const float* pooled, long hw, const ExcitationGradients& out);

void se_pool(const Run& run, const Shape& shape, const Map& x, const Prologue& prologue,
             float* pooled);
void se_bwd_reduce(const Run& run, const Shape& shape, const void* g, const Map& x,
                   const Prologue& prologue, const float* norm, float* sums);

// weight [K,C]; the epilogue is act(affine(.)) + residual; pooled [N,K] is its mean.
struct PointwiseForward {
    Shape shape;  // of x
    int k;
    Map x;
    const float* weight;
    Prologue prologue;
    const float* affine;
    Activation act;
    Map residual;
    void* y;
    float* stats;
    float* pooled;
};
void pointwise(const Run& run, const PointwiseForward& p);

struct PointwiseBackward {
    Shape shape;  // of x
    int k;
    Behind behind;
    Map x;
    const float* weight;
    Prologue prologue;
    const float* norm;
    const void* residual;
    void* dx;
    float* dw;
    float* sums;  // [5,N,C]
};
void pointwise_bwd(const Run& run, const PointwiseBackward& p);

struct Convolution {
    Shape shape;  // of x
    int p, q;
    int kernel, stride, top, left;
};

// weight [C,k*k].
struct DepthwiseForward {
    Convolution conv;
    Map x;
    const float* weight;
    Prologue prologue;  // no gate
    const float* affine;
    Activation act;
    void* y;
    float* stats;
    float* pool;  // [strips,N,C], each of pool_rows rows
    int pool_rows;
};
void depthwise(const Run& run, const DepthwiseForward& p);

struct DepthwiseBackward {
    Convolution conv;
    Behind behind;
    Map x;
    const float* weight;
    Prologue prologue;  // no gate
    const float* norm;  // with it the prologue is undone in dx, and sums [2,C] wanted
    const void* residual;
    void* dx;
    float* dw;
    float* sums;
};
void depthwise_bwd(const Run& run, const DepthwiseBackward& p);

}  // namespace effnet_fast::cpu::training
