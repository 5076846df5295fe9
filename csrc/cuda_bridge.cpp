// The CUDA ops for Python: tensors come as (address, type, strides), null as 0. See cuda/ops.h.
#include "cuda_bridge.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/ops.h"

namespace py = pybind11;

namespace effnet_fast {
namespace {

using Address = std::uintptr_t;
// (address, stride of N, H, W in elements)
using MapTuple = std::tuple<Address, int64_t, int64_t, int64_t>;
// (address, type)
using ParamTuple = std::tuple<Address, int>;
// gamma, beta, mean, var and eps
using BatchNormTuple = std::tuple<ParamTuple, ParamTuple, ParamTuple, ParamTuple, float>;
// w_reduce, w_expand, their type, b_reduce, b_expand
using SeWeightsTuple = std::tuple<Address, Address, int, ParamTuple, ParamTuple>;
// type, N, C, H, W
using MapShape = std::tuple<int, int, int, int, int>;
// type, N, C, H, W, P, Q, kernel, stride, top and left padding
using ConvShape = std::tuple<int, int, int, int, int, int, int, int, int, int, int>;
// type, N, C, K, pixels per image
using PointwiseTuple = std::tuple<int, int, int, int, int64_t>;
// (address, elements from pixel to pixel)
using PixelsTuple = std::tuple<Address, int64_t>;
// device index and stream
using Place = std::tuple<int, Address>;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

const float* floats(Address address) { return pointer<const float>(address); }

DType dtype(int code) { return static_cast<DType>(code); }

Activation activation(int code) { return static_cast<Activation>(code); }

Map map(const MapTuple& m) {
    return {pointer<const void>(std::get<0>(m)), std::get<1>(m), std::get<2>(m), std::get<3>(m)};
}

Param param(const ParamTuple& p) {
    return {pointer<const void>(std::get<0>(p)), dtype(std::get<1>(p))};
}

MutableParam mutable_param(const ParamTuple& p) {
    return {pointer<void>(std::get<0>(p)), dtype(std::get<1>(p))};
}

BatchNorm batch_norm(const std::optional<BatchNormTuple>& b) {
    if (!b) return {};
    const auto& [gamma, beta, mean, var, eps] = *b;
    return {param(gamma), param(beta), param(mean), param(var), eps};
}

SeWeights se_weights(const SeWeightsTuple& w) {
    const auto& [w_reduce, w_expand, type, b_reduce, b_expand] = w;
    return {dtype(type), pointer<const void>(w_reduce), pointer<const void>(w_expand),
            param(b_reduce), param(b_expand)};
}

DepthwiseShape conv_shape(const ConvShape& s) {
    const auto& [type, n, c, h, w, p, q, kernel, stride, top, left] = s;
    return {dtype(type), n, c, h, w, p, q, kernel, stride, top, left};
}

PointwiseShape pointwise_shape(const PointwiseTuple& s) {
    const auto& [type, n, c, k, hw] = s;
    return {dtype(type), n, c, k, hw};
}

Pixels pixels(const PixelsTuple& p) {
    return {pointer<const void>(std::get<0>(p)), std::get<1>(p)};
}

// Sets the fields that all ops on one map share.
template <class Args>
Args with_shape(const MapShape& shape) {
    Args args{};
    int type = 0;
    std::tie(type, args.n, args.c, args.h, args.w) = shape;
    args.dtype = dtype(type);
    return args;
}

// ---------------------------------------------------------------- errors and devices

std::string sizes(const DepthwiseShape& s) {
    std::ostringstream out;
    out << "x " << s.n << "x" << s.c << "x" << s.h << "x" << s.w << ", y " << s.p << "x" << s.q
        << ", kernel " << s.kernel << ", stride " << s.stride;
    return out.str();
}

std::string sizes(const PointwiseShape& s) {
    std::ostringstream out;
    out << "N " << s.n << ", " << s.hw << " pixels, C " << s.c << ", K " << s.k;
    return out.str();
}

template <class Args>
auto sizes(const Args& a) -> decltype(sizes(a.shape)) {
    return sizes(a.shape);
}

template <class Args>
auto sizes(const Args& a) -> decltype(a.h, std::string()) {
    std::ostringstream out;
    out << "N C H W " << a.n << "x" << a.c << "x" << a.h << "x" << a.w;
    return out.str();
}

template <class Args>
auto sizes(const Args& a) -> decltype(a.r, std::string()) {
    std::ostringstream out;
    out << "N " << a.n << ", C " << a.c << ", R " << a.r;
    return out.str();
}

std::string sizes(const BnFoldArgs& a) { return "C " + std::to_string(a.c); }
std::string sizes(const BnFinalizeArgs& a) { return "C " + std::to_string(a.c); }
std::string sizes(const BnBwdCoefArgs& a) { return "C " + std::to_string(a.c); }

void check(cudaError_t status, const char* op, const std::string& what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // so that no later call reports it a second time
    throw std::runtime_error(std::string("effnet_fast.") + op + " (" + what +
                             "): " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) +
                             ")");
}

// Makes a device current, and on the way out the one that was.
class DeviceGuard {
  public:
    DeviceGuard(int device, const char* op) {
        check(cudaGetDevice(&before_), op, "asking for the current device");
        if (device == before_) return;
        check(cudaSetDevice(device), op, "changing to device " + std::to_string(device));
        changed_ = true;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

template <class Args>
void run(const char* op, cudaError_t (*launch)(const Args&, cudaStream_t), const Args& args,
         const Place& place) {
    const DeviceGuard guard(std::get<0>(place), op);
    check(launch(args, pointer<CUstream_st>(std::get<1>(place))), op, sizes(args));
}

// `allocate` gets a number of bytes and returns the address of that much memory of the device.
template <class Args>
void run(const char* op, cudaError_t (*launch)(const Args&, cudaStream_t),
         size_t (*workspace)(const Args&), Args args, const py::function& allocate,
         const Place& place) {
    const DeviceGuard guard(std::get<0>(place), op);
    const size_t bytes = workspace(args);
    if (bytes > 0) args.workspace = pointer<void>(allocate(bytes).cast<Address>());
    check(launch(args, pointer<CUstream_st>(std::get<1>(place))), op, sizes(args));
}

// ---------------------------------------------------------------- depthwise convolution

void depthwise_(const ConvShape& shape, const MapTuple& x, Address weight, Address in_affine,
                int in_act, const std::optional<BatchNormTuple>& out_bn, int out_act, int reduce,
                Address y, Address reduced, const py::function& allocate, const Place& place) {
    DepthwiseArgs args{};
    args.shape = conv_shape(shape);
    args.x = map(x);
    args.weight = pointer<const void>(weight);
    args.in_affine = floats(in_affine);
    args.in_act = activation(in_act);
    args.out_bn = batch_norm(out_bn);
    args.out_act = activation(out_act);
    args.reduce = static_cast<Reduce>(reduce);
    args.y = pointer<void>(y);
    args.reduced = pointer<float>(reduced);
    run("depthwise", depthwise, depthwise_workspace, args, allocate, place);
}

void depthwise_bwd_(const ConvShape& shape, Address g, Address y, const MapTuple& x, Address weight,
                    Address coef, Address y_affine, int y_act, Address gate, Address dpool,
                    Address in_affine, int in_act, Address in_norm, Address residual_grad,
                    Address dx, Address dw, Address sums, const py::function& allocate,
                    const Place& place) {
    DepthwiseBwdArgs args{};
    args.shape = conv_shape(shape);
    args.g = pointer<const void>(g);
    args.y = pointer<const void>(y);
    args.x = map(x);
    args.weight = pointer<const void>(weight);
    args.coef = floats(coef);
    args.y_affine = floats(y_affine);
    args.y_act = activation(y_act);
    args.gate = floats(gate);
    args.dpool = floats(dpool);
    args.in_affine = floats(in_affine);
    args.in_act = activation(in_act);
    args.in_norm = floats(in_norm);
    args.residual_grad = pointer<const void>(residual_grad);
    args.dx = pointer<void>(dx);
    args.dw = pointer<float>(dw);
    args.sums = pointer<float>(sums);
    run("depthwise_bwd", depthwise_bwd, depthwise_bwd_workspace, args, allocate, place);
}

// ---------------------------------------------------------------- 1x1 convolution

void pointwise_(const PointwiseTuple& shape, const PixelsTuple& x, Address weight,
                Address in_affine, int in_act, Address in_gate,
                const std::optional<BatchNormTuple>& out_bn, int out_act,
                const PixelsTuple& residual, Address y, Address stats, const py::function& allocate,
                const Place& place) {
    PointwiseArgs args{};
    args.shape = pointwise_shape(shape);
    args.x = pixels(x);
    args.weight = pointer<const void>(weight);
    args.in_affine = floats(in_affine);
    args.in_act = activation(in_act);
    args.in_gate = floats(in_gate);
    args.out_bn = batch_norm(out_bn);
    args.out_act = activation(out_act);
    args.residual = pixels(residual);
    args.y = pointer<void>(y);
    args.stats = pointer<float>(stats);
    run("pointwise", pointwise, pointwise_workspace, args, allocate, place);
}

void pointwise_bwd_(const PointwiseTuple& shape, Address g, Address y, const PixelsTuple& x,
                    Address weight, Address coef, Address drop_scale, Address in_affine, int in_act,
                    Address in_gate, Address in_norm, Address residual_grad, Address dx, Address dw,
                    Address sums, const py::function& allocate, const Place& place) {
    PointwiseBwdArgs args{};
    args.shape = pointwise_shape(shape);
    args.g = pointer<const void>(g);
    args.y = pointer<const void>(y);
    args.x = pixels(x);
    args.weight = pointer<const void>(weight);
    args.coef = floats(coef);
    args.drop_scale = floats(drop_scale);
    args.in_affine = floats(in_affine);
    args.in_act = activation(in_act);
    args.in_gate = floats(in_gate);
    args.in_norm = floats(in_norm);
    args.residual_grad = pointer<const void>(residual_grad);
    args.dx = pointer<void>(dx);
    args.dw = pointer<float>(dw);
    args.sums = pointer<float>(sums);
    run("pointwise_bwd", pointwise_bwd, pointwise_bwd_workspace, args, allocate, place);
}

// ---------------------------------------------------------------- squeeze-and-excitation

void se_pool_(const MapShape& shape, const MapTuple& x, Address affine, int act, Address pooled,
              const py::function& allocate, const Place& place) {
    auto args = with_shape<SePoolArgs>(shape);
    args.x = map(x);
    args.affine = floats(affine);
    args.act = activation(act);
    args.pooled = pointer<float>(pooled);
    run("se_pool", se_pool, se_pool_workspace, args, allocate, place);
}

void se_gate_(const std::array<int, 4>& tncr, Address pool, int64_t count,
              const SeWeightsTuple& weights, int act, Address gate, const py::function& allocate,
              const Place& place) {
    SeGateArgs args{};
    args.t = tncr[0];
    args.n = tncr[1];
    args.c = tncr[2];
    args.r = tncr[3];
    args.pool = floats(pool);
    args.count = count;
    args.weights = se_weights(weights);
    args.act = activation(act);
    args.gate = pointer<float>(gate);
    run("se_gate", se_gate, se_gate_workspace, args, allocate, place);
}

void se_bwd_reduce_(const MapShape& shape, Address g, const MapTuple& x, Address affine, int act,
                    Address norm, Address sums, const py::function& allocate, const Place& place) {
    auto args = with_shape<SeBwdReduceArgs>(shape);
    args.g = pointer<const void>(g);
    args.x = map(x);
    args.affine = floats(affine);
    args.act = activation(act);
    args.norm = floats(norm);
    args.sums = pointer<float>(sums);
    run("se_bwd_reduce", se_bwd_reduce, se_bwd_reduce_workspace, args, allocate, place);
}

// `results`: dpool, dw_reduce, db_reduce, dw_expand, db_expand, bn_sums.
void se_gate_bwd_(const std::array<int, 3>& ncr, int64_t hw, Address sums, Address gate,
                  Address pooled, const SeWeightsTuple& weights, int act,
                  const std::array<Address, 6>& results, const py::function& allocate,
                  const Place& place) {
    SeGateBwdArgs args{};
    args.n = ncr[0];
    args.c = ncr[1];
    args.r = ncr[2];
    args.hw = hw;
    args.sums = floats(sums);
    args.gate = floats(gate);
    args.pooled = floats(pooled);
    args.weights = se_weights(weights);
    args.act = activation(act);
    args.dpool = pointer<float>(results[0]);
    args.dw_reduce = pointer<float>(results[1]);
    args.db_reduce = pointer<float>(results[2]);
    args.dw_expand = pointer<float>(results[3]);
    args.db_expand = pointer<float>(results[4]);
    args.bn_sums = pointer<float>(results[5]);
    run("se_gate_bwd", se_gate_bwd, se_gate_bwd_workspace, args, allocate, place);
}

// ---------------------------------------------------------------- batch norm

void bn_fold_(int c, const BatchNormTuple& bn, Address affine, Address norm, const Place& place) {
    const BnFoldArgs args{c, batch_norm(bn), pointer<float>(affine), pointer<float>(norm)};
    run("bn_fold", bn_fold, args, place);
}

void bn_finalize_(int c, Address stats, const ParamTuple& gamma, const ParamTuple& beta,
                  const ParamTuple& running_mean, const ParamTuple& running_var, int64_t count,
                  double momentum, float eps, Address affine, Address norm, const Place& place) {
    BnFinalizeArgs args{};
    args.c = c;
    args.stats = floats(stats);
    args.gamma = param(gamma);
    args.beta = param(beta);
    args.running_mean = mutable_param(running_mean);
    args.running_var = mutable_param(running_var);
    args.count = count;
    args.momentum = momentum;
    args.eps = eps;
    args.affine = pointer<float>(affine);
    args.norm = pointer<float>(norm);
    run("bn_finalize", bn_finalize, args, place);
}

void bn_residual_(const MapShape& shape, const MapTuple& x, Address affine, int act, Address gate,
                  Address drop_scale, const MapTuple& residual, Address y, const Place& place) {
    auto args = with_shape<BnResidualArgs>(shape);
    args.x = map(x);
    args.affine = floats(affine);
    args.act = activation(act);
    args.gate = floats(gate);
    args.drop_scale = floats(drop_scale);
    args.residual = map(residual);
    args.y = pointer<void>(y);
    run("bn_residual", bn_residual, args, place);
}

void bn_bwd_reduce_(const MapShape& shape, Address g, const MapTuple& y, Address norm,
                    Address affine, int act, Address drop_scale, Address dpool, Address sums,
                    const py::function& allocate, const Place& place) {
    auto args = with_shape<BnBwdReduceArgs>(shape);
    args.g = pointer<const void>(g);
    args.y = map(y);
    args.norm = floats(norm);
    args.affine = floats(affine);
    args.act = activation(act);
    args.drop_scale = floats(drop_scale);
    args.dpool = floats(dpool);
    args.sums = pointer<float>(sums);
    run("bn_bwd_reduce", bn_bwd_reduce, bn_bwd_reduce_workspace, args, allocate, place);
}

void bn_bwd_coef_(int c, Address sums, Address norm, const ParamTuple& gamma, int64_t count,
                  bool batch_stats, Address coef, const Place& place) {
    const BnBwdCoefArgs args{c,           floats(sums), floats(norm),        param(gamma), count,
                             batch_stats, pointer<float>(coef)};
    run("bn_bwd_coef", bn_bwd_coef, args, place);
}

void bn_residual_bwd_(const MapShape& shape, Address g, const MapTuple& y, Address coef,
                      Address affine, int act, Address gate, Address drop_scale, Address dpool,
                      Address dy, const Place& place) {
    auto args = with_shape<BnResidualBwdArgs>(shape);
    args.g = pointer<const void>(g);
    args.y = map(y);
    args.coef = floats(coef);
    args.affine = floats(affine);
    args.act = activation(act);
    args.gate = floats(gate);
    args.drop_scale = floats(drop_scale);
    args.dpool = floats(dpool);
    args.dy = pointer<void>(dy);
    run("bn_residual_bwd", bn_residual_bwd, args, place);
}

}  // namespace

void register_cuda_ops(py::module_& m) {
    m.def("depthwise", depthwise_);
    m.def("depthwise_bwd", depthwise_bwd_);
    m.def("pointwise", pointwise_);
    m.def("pointwise_bwd", pointwise_bwd_);
    m.def("se_pool", se_pool_);
    m.def("se_gate", se_gate_);
    m.def("se_bwd_reduce", se_bwd_reduce_);
    m.def("se_gate_bwd", se_gate_bwd_);
    m.def("bn_fold", bn_fold_);
    m.def("bn_finalize", bn_finalize_);
    m.def("bn_residual", bn_residual_);
    m.def("bn_bwd_reduce", bn_bwd_reduce_);
    m.def("bn_bwd_coef", bn_bwd_coef_);
    m.def("bn_residual_bwd", bn_residual_bwd_);
}

}  // namespace effnet_fast
