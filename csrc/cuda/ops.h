// The CUDA ops: one plain struct of pointers and sizes in, cudaError_t out; no torch header.
//
// What an op computes is said in effnet_fast/reference.py, whose functions have the same names.
// Tensor letters: N C H W in, P Q out, K kernel, R squeeze width, T strips of output rows.
//
// Memory. All pointers are device pointers to the current device, whose stream is passed along.
// * An activation is NHWC with C innermost (stride 1). A Map may be a slice of a larger tensor; a
//   plain `const void*` activation is dense. Activations of one op share `dtype`, and so do the
//   weights of a convolution.
// * `affine` (scale, shift) and `norm` (mean, invstd) are [2,C]; `coef` (a, b, mean, c) is [4,C];
//   `gate` and `dpool` are [N,C]; `drop_scale` is [N]: fp32, contiguous, aligned to 16 bytes only
//   at their start. Null: absent.
// * A Param is a contiguous vector of its own type.
// * `workspace` holds what <op>_workspace(args) asks for, aligned to 256 bytes, contents undefined.
//
// Contract. An op fills every element of its results, reads no result, is deterministic (no float
// atomics), launches on `stream` only, never synchronises or allocates (so it can be captured into
// a graph) and returns the first error of its launches. N = 0 returns cudaSuccess: per-channel
// results are zeroed, nothing else is touched. Unsupported arguments: cudaErrorInvalidValue.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace effnet_fast {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kHalf = 2 };
enum class Activation : int { kIdentity = 0, kRelu = 1, kRelu6 = 2, kSilu = 3 };
enum class Reduce : int { kNone = 0, kStats = 1, kPool = 2 };

// Output rows behind one strip of depthwise's pool sums; reference.POOL_ROWS.
constexpr int kPoolRows = 4;

// [N,H,W,C] to read: strides in elements, that of C is 1. Null data: absent.
struct Map {
    const void* data;
    int64_t n_stride, h_stride, w_stride;
};

struct Param {
    const void* data;  // null: absent
    DType dtype;
};

struct MutableParam {
    void* data;  // null: absent
    DType dtype;
};

// Batch norm with running statistics; absent if mean.data is null. gamma and beta may be absent.
struct BatchNorm {
    Param gamma, beta, mean, var;  // [C] each
    float eps;
};

// ---------------------------------------------------------------- depthwise convolution

// What forward and backward share: x [N,H,W,C], weight [C,K,K], y [N,P,Q,C]. Padding below and to
// the right is what P and Q imply; every element of y sees at least one row and column of padded x.
struct DepthwiseShape {
    DType dtype;
    int n, c, h, w, p, q;
    int kernel, stride, pad_top, pad_left;
};

// y = act(bn(conv(act(affine(x))))). `reduced` by `reduce`: stats [2,C], pool [ceil(P/4),N,C].
struct DepthwiseArgs {
    DepthwiseShape shape;
    Map x;
    const void* weight;
    const float* in_affine;
    Activation in_act;
    BatchNorm out_bn;
    Activation out_act;
    Reduce reduce;
    void* y;
    float* reduced;
    void* workspace;
};
size_t depthwise_workspace(const DepthwiseArgs& args);
cudaError_t depthwise(const DepthwiseArgs& args, cudaStream_t stream);

// dx, dw [C,K,K] fp32 and sums [2,C] are each null if not wanted. With `sums`, in_affine and
// in_norm are given and dx is the gradient of the first batch norm's output; else in_act is not
// undone. dx gains residual_grad where given. dw is of act(in_affine(x)).
struct DepthwiseBwdArgs {
    DepthwiseShape shape;
    const void* g;
    const void* y;
    Map x;
    const void* weight;
    const float* coef;
    const float* y_affine;
    Activation y_act;
    const float* gate;
    const float* dpool;
    const float* in_affine;
    Activation in_act;
    const float* in_norm;
    const void* residual_grad;
    void* dx;
    float* dw;
    float* sums;
    void* workspace;
};
size_t depthwise_bwd_workspace(const DepthwiseBwdArgs& args);
cudaError_t depthwise_bwd(const DepthwiseBwdArgs& args, cudaStream_t stream);

// ---------------------------------------------------------------- 1x1 convolution

// Activations of a product: pixel i, counted through [N,H,W], is `step` elements behind pixel
// i - 1. Null data: absent.
struct Pixels {
    const void* data;
    int64_t step;
};

// What forward and backward share: x [N,HW,C], weight [K,C], y [N,HW,K]. 16-bit types; C, K and all
// steps are multiples of 8, and activations aligned to 16 bytes.
struct PointwiseShape {
    DType dtype;
    int n, c, k;
    int64_t hw;
};

// y = act(bn(gate * act(affine(x)) . weight^T)) + residual; or, with `stats` [2,K], the raw product
// and its moments.
struct PointwiseArgs {
    PointwiseShape shape;
    Pixels x;
    const void* weight;
    const float* in_affine;
    Activation in_act;
    const float* in_gate;
    BatchNorm out_bn;
    Activation out_act;
    Pixels residual;
    void* y;
    float* stats;
    void* workspace;
};
size_t pointwise_workspace(const PointwiseArgs& args);
cudaError_t pointwise(const PointwiseArgs& args, cudaStream_t stream);

// dx [N,HW,C], dw [K,C] fp32 and sums [5,N,C] are each null if not wanted; sums, for which
// in_affine is given, come with dx and without residual_grad. g and y are dense, and y's batch norm
// has no activation.
struct PointwiseBwdArgs {
    PointwiseShape shape;
    const void* g;
    const void* y;
    Pixels x;
    const void* weight;
    const float* coef;
    const float* drop_scale;
    const float* in_affine;
    Activation in_act;
    const float* in_gate;
    const float* in_norm;
    const void* residual_grad;
    void* dx;
    float* dw;
    float* sums;
    void* workspace;
};
size_t pointwise_bwd_workspace(const PointwiseBwdArgs& args);
cudaError_t pointwise_bwd(const PointwiseBwdArgs& args, cudaStream_t stream);

// ---------------------------------------------------------------- squeeze-and-excitation

// pooled [N,C] = mean over H, W of act(affine(x)).
struct SePoolArgs {
    DType dtype;
    int n, c, h, w;
    Map x;
    const float* affine;
    Activation act;
    float* pooled;
    void* workspace;
};
size_t se_pool_workspace(const SePoolArgs& args);
cudaError_t se_pool(const SePoolArgs& args, cudaStream_t stream);

// The weights of the two 1x1 convolutions, both of type `dtype`, and their biases.
struct SeWeights {
    DType dtype;
    const void* w_reduce;  // [R,C]
    const void* w_expand;  // [C,R]
    Param b_reduce;        // [R]
    Param b_expand;        // [C]; not used by the backward
};

// pool [T,N,C]: its sum over T divided by `count` is what is squeezed. gate [N,C].
struct SeGateArgs {
    int t, n, c, r;
    const float* pool;
    int64_t count;
    SeWeights weights;
    Activation act;
    float* gate;
    void* workspace;
};
size_t se_gate_workspace(const SeGateArgs& args);
cudaError_t se_gate(const SeGateArgs& args, cudaStream_t stream);

// sums [5,N,C]; g is dense. Without norm, sums 2 and 3 are zero.
struct SeBwdReduceArgs {
    DType dtype;
    int n, c, h, w;
    const void* g;
    Map x;
    const float* affine;
    Activation act;
    const float* norm;
    float* sums;
    void* workspace;
};
size_t se_bwd_reduce_workspace(const SeBwdReduceArgs& args);
cudaError_t se_bwd_reduce(const SeBwdReduceArgs& args, cudaStream_t stream);

// pooled [N,C] is the mean; hw = H * W. All results are fp32.
struct SeGateBwdArgs {
    int n, c, r;
    int64_t hw;
    const float* sums;    // [5,N,C]
    const float* gate;    // [N,C]
    const float* pooled;  // [N,C]
    SeWeights weights;
    Activation act;
    float* dpool;      // [N,C]
    float* dw_reduce;  // [R,C]
    float* db_reduce;  // [R]
    float* dw_expand;  // [C,R]
    float* db_expand;  // [C]
    float* bn_sums;    // [2,C]
    void* workspace;
};
size_t se_gate_bwd_workspace(const SeGateBwdArgs& args);
cudaError_t se_gate_bwd(const SeGateBwdArgs& args, cudaStream_t stream);

// ---------------------------------------------------------------- batch norm

// Running statistics to affine [2,C] and norm [2,C].
struct BnFoldArgs {
    int c;
    BatchNorm bn;
    float* affine;
    float* norm;
};
cudaError_t bn_fold(const BnFoldArgs& args, cudaStream_t stream);

// Batch moments [2,C] over `count` elements; updates the running statistics, both or neither given,
// unless count is 0.
struct BnFinalizeArgs {
    int c;
    const float* stats;
    Param gamma, beta;
    MutableParam running_mean, running_var;
    int64_t count;
    double momentum;
    float eps;
    float* affine;
    float* norm;
};
cudaError_t bn_finalize(const BnFinalizeArgs& args, cudaStream_t stream);

// y = act(affine(x)) * gate * drop_scale + residual, dense.
struct BnResidualArgs {
    DType dtype;
    int n, c, h, w;
    Map x;
    const float* affine;
    Activation act;
    const float* gate;
    const float* drop_scale;
    Map residual;
    void* y;
};
cudaError_t bn_residual(const BnResidualArgs& args, cudaStream_t stream);

// sums [2,C] = (sum h, sum h * xhat) over N, H, W. g may be null (zero).
struct BnBwdReduceArgs {
    DType dtype;
    int n, c, h, w;
    const void* g;
    Map y;
    const float* norm;
    const float* affine;
    Activation act;
    const float* drop_scale;
    const float* dpool;
    float* sums;
    void* workspace;
};
size_t bn_bwd_reduce_workspace(const BnBwdReduceArgs& args);
cudaError_t bn_bwd_reduce(const BnBwdReduceArgs& args, cudaStream_t stream);

// coef [4,C] from sums over `count` elements.
struct BnBwdCoefArgs {
    int c;
    const float* sums;
    const float* norm;
    Param gamma;
    int64_t count;
    bool batch_stats;
    float* coef;
};
cudaError_t bn_bwd_coef(const BnBwdCoefArgs& args, cudaStream_t stream);

// dy, dense: h alone where coef is null.
struct BnResidualBwdArgs {
    DType dtype;
    int n, c, h, w;
    const void* g;
    Map y;
    const float* coef;
    const float* affine;
    Activation act;
    const float* gate;
    const float* drop_scale;
    const float* dpool;
    void* dy;
};
cudaError_t bn_residual_bwd(const BnResidualBwdArgs& args, cudaStream_t stream);

}  // namespace effnet_fast
