// The ops of training on a CPU as Python sees them: addresses, sizes, strides and codes, as
// effnet_fast/ops/on_cpu/bridge.py makes them.
#include <pybind11/stl.h>

#include <array>

#include "cpu/training/ops.h"
#include "cpu_bridge.h"

namespace effnet_fast {

namespace py = pybind11;
namespace training = cpu::training;

namespace {

using Address = uintptr_t;
using MapArgument = std::tuple<Address, long, long, long>;      // address; strides of N, H, W
using ShapeArgument = std::tuple<int, int, int, int, int>;      // type, N, C, H, W
using PrologueArgument = std::tuple<Address, int, Address>;     // affine, activation, gate
using EpilogueArgument = std::tuple<Address, int>;              // affine, activation
// g, coef, affine, activation, gate, drop, dpool
using BehindArgument = std::tuple<Address, Address, Address, int, Address, Address, Address>;
// the shape of x; P, Q, kernel, stride, top, left
using ConvolutionArgument = std::tuple<ShapeArgument, int, int, int, int, int, int>;

using VectorArgument = std::tuple<Address, int, long>;           // address, type, stride
// w_reduce, b_reduce, w_expand, b_expand; activation
using MlpArgument = std::tuple<Address, Address, Address, Address, int>;

template <class T = const float>
T* pointer(Address address) { return reinterpret_cast<T*>(address); }

training::Map map(const MapArgument& m) {
    return {pointer<const char>(std::get<0>(m)), std::get<1>(m), std::get<2>(m), std::get<3>(m)};
}

training::Type type_of(int code) {
    if (code != 0 && code != 1) throw py::value_error("expected fp32 (0) or bf16 (1)");
    return code == 0 ? training::Type::f32 : training::Type::bf16;
}

training::Shape shape(const ShapeArgument& s) {
    const auto [type, n, c, h, w] = s;
    return {type_of(type), n, c, h, w};
}

training::Vector vector(const VectorArgument& v) {
    const auto [data, type, stride] = v;
    return {pointer<void>(data), type_of(type), stride};
}

cpu::Activation activation(int code) {
    if (code < 0 || code > int(cpu::Activation::silu)) throw py::value_error("no such activation");
    return cpu::Activation(code);
}

training::Prologue prologue(const PrologueArgument& p) {
    return {pointer(std::get<0>(p)), activation(std::get<1>(p)), pointer(std::get<2>(p))};
}

training::Behind behind(const BehindArgument& b, Address y) {
    const auto [g, coef, affine, act, gate, drop, dpool] = b;
    return {pointer<const void>(g), pointer<const void>(y), pointer(coef), pointer(affine),
            activation(act), pointer(gate), pointer(drop), pointer(dpool)};
}

training::Excitation excitation(int n, int c, int r, const MlpArgument& mlp) {
    const auto [w_reduce, b_reduce, w_expand, b_expand, act] = mlp;
    return {n, c, r, pointer(w_reduce), pointer(b_reduce), pointer(w_expand), pointer(b_expand),
            activation(act)};
}

training::Convolution convolution(const ConvolutionArgument& v) {
    const auto& [x, p, q, kernel, stride, top, left] = v;
    return {shape(x), p, q, kernel, stride, top, left};
}

// The kernels of one instruction set. Every call says how many threads may share it.
class CpuOps {
public:
    explicit CpuOps(const std::string& isa)
        : kernels_(training::training_kernels_of(cpu::choose_isa(isa))) {}

    // A few channels' arithmetic: no kernels, one thread.
    void bn_fold(int c, const VectorArgument& weight, const VectorArgument& bias,
                 const VectorArgument& mean, const VectorArgument& var, double eps, Address affine,
                 Address norm) {
        training::bn_fold(c, vector(weight), vector(bias), vector(mean), vector(var), eps,
                          pointer<float>(affine), pointer<float>(norm));
    }
    void bn_finalize(int c, Address stats, const VectorArgument& weight, const VectorArgument& bias,
                     const VectorArgument& running_mean, const VectorArgument& running_var,
                     long count, double momentum, double eps, Address affine, Address norm) {
        training::bn_finalize({c, pointer(stats), vector(weight), vector(bias),
                               vector(running_mean), vector(running_var), count, momentum, eps,
                               pointer<float>(affine), pointer<float>(norm)});
    }
    void bn_bwd_coef(int c, Address sums, Address norm, const VectorArgument& weight, long count,
                     bool batch_stats, Address coef) {
        training::bn_bwd_coef(c, pointer(sums), pointer(norm), vector(weight), count, batch_stats,
                              pointer<float>(coef));
    }
    void bn_residual(int threads, const ShapeArgument& s, const MapArgument& x,
                     const PrologueArgument& p, Address drop, const MapArgument& residual,
                     Address y) {
        run(threads, [&, s = shape(s), p = prologue(p)](const training::Run& run) {
            training::bn_residual(run, s, map(x), p, pointer(drop), map(residual),
                                  pointer<void>(y));
        });
    }
    void bn_bwd_reduce(int threads, const ShapeArgument& s, const BehindArgument& b,
                       const MapArgument& y, Address norm, Address sums) {
        run(threads, [&, s = shape(s), b = behind(b, 0)](const training::Run& run) {
            training::bn_bwd_reduce(run, s, b, map(y), pointer(norm), pointer<float>(sums));
        });
    }
    void bn_residual_bwd(int threads, const ShapeArgument& s, const BehindArgument& b,
                         const MapArgument& y, Address dy) {
        run(threads, [&, s = shape(s), b = behind(b, 0)](const training::Run& run) {
            training::bn_residual_bwd(run, s, b, map(y), pointer<void>(dy));
        });
    }
    void moments(int threads, const ShapeArgument& s, const MapArgument& x, Address stats) {
        run(threads, [&, s = shape(s)](const training::Run& run) {
            training::moments(run, s, map(x), pointer<float>(stats));
        });
    }
    void se_pool(int threads, const ShapeArgument& s, const MapArgument& x,
                 const PrologueArgument& p, Address pooled) {
        run(threads, [&, s = shape(s), p = prologue(p)](const training::Run& run) {
            training::se_pool(run, s, map(x), p, pointer<float>(pooled));
        });
    }
    void se_gate(int threads, const std::tuple<int, int, int, int>& tncr, Address pool, long count,
                 const MlpArgument& mlp, Address gate) {
        const auto [t, n, c, r] = tncr;
        run(threads, [&, t = t, e = excitation(n, c, r, mlp)](const training::Run& run) {
            training::se_gate(run, e, pointer(pool), t, count, pointer<float>(gate));
        });
    }
    void se_gate_bwd(int threads, const std::tuple<int, int, int>& ncr, long hw, Address sums,
                     Address gate, Address pooled, const MlpArgument& mlp,
                     const std::array<Address, 6>& results) {
        const auto [n, c, r] = ncr;
        const auto out = [&](int i) { return pointer<float>(results[i]); };
        run(threads, [&, e = excitation(n, c, r, mlp)](const training::Run& run) {
            training::se_gate_bwd(run, e, pointer(sums), pointer(gate), pointer(pooled), hw,
                                  {out(0), out(1), out(2), out(3), out(4), out(5)});
        });
    }
    void se_bwd_reduce(int threads, const ShapeArgument& s, Address g, const MapArgument& x,
                       const PrologueArgument& p, Address norm, Address sums) {
        run(threads, [&, s = shape(s), p = prologue(p)](const training::Run& run) {
            training::se_bwd_reduce(run, s, pointer<const void>(g), map(x), p, pointer(norm),
                                    pointer<float>(sums));
        });
    }
    void pointwise(int threads, const ShapeArgument& s, int k, const MapArgument& x, Address weight,
                   const PrologueArgument& p, const EpilogueArgument& e,
                   const MapArgument& residual, Address y, Address stats, Address pooled) {
        const training::PointwiseForward args = {
            shape(s), k, map(x), pointer(weight), prologue(p), pointer(std::get<0>(e)),
            activation(std::get<1>(e)), map(residual), pointer<void>(y), pointer<float>(stats),
            pointer<float>(pooled)};
        run(threads, [&](const training::Run& run) { training::pointwise(run, args); });
    }
    void pointwise_bwd(int threads, const ShapeArgument& s, int k, const BehindArgument& b,
                       Address y, const MapArgument& x, Address weight, const PrologueArgument& p,
                       Address norm, Address residual, Address dx, Address dw, Address sums) {
        const training::PointwiseBackward args = {
            shape(s), k, behind(b, y), map(x), pointer(weight), prologue(p), pointer(norm),
            pointer<const void>(residual), pointer<void>(dx), pointer<float>(dw),
            pointer<float>(sums)};
        run(threads, [&](const training::Run& run) { training::pointwise_bwd(run, args); });
    }
    void depthwise(int threads, const ConvolutionArgument& v, const MapArgument& x, Address weight,
                   const PrologueArgument& p, const EpilogueArgument& e, Address y, Address stats,
                   Address pool, int pool_rows) {
        const training::DepthwiseForward args = {
            convolution(v), map(x), pointer(weight), prologue(p), pointer(std::get<0>(e)),
            activation(std::get<1>(e)), pointer<void>(y), pointer<float>(stats),
            pointer<float>(pool), pool_rows};
        run(threads, [&](const training::Run& run) { training::depthwise(run, args); });
    }
    void depthwise_bwd(int threads, const ConvolutionArgument& v, const BehindArgument& b,
                       Address y, const MapArgument& x, Address weight, const PrologueArgument& p,
                       Address norm, Address residual, Address dx, Address dw, Address sums) {
        const training::DepthwiseBackward args = {
            convolution(v), behind(b, y), map(x), pointer(weight), prologue(p), pointer(norm),
            pointer<const void>(residual), pointer<void>(dx), pointer<float>(dw),
            pointer<float>(sums)};
        run(threads, [&](const training::Run& run) { training::depthwise_bwd(run, args); });
    }

private:
    template <class F>
    void run(int threads, F f) {
        if (threads < 1) throw py::value_error("expected at least one thread");
        const py::gil_scoped_release unlocked;
        f(training::Run{kernels_, threads});
    }

    const training::Kernels& kernels_;
};

}  // namespace

void register_cpu_ops(py::module_& m) {
    py::class_<CpuOps>(m, "CpuOps")
        .def(py::init<const std::string&>(), py::arg("isa"))
        .def("bn_fold", &CpuOps::bn_fold)
        .def("bn_finalize", &CpuOps::bn_finalize)
        .def("bn_bwd_coef", &CpuOps::bn_bwd_coef)
        .def("bn_residual", &CpuOps::bn_residual)
        .def("bn_bwd_reduce", &CpuOps::bn_bwd_reduce)
        .def("bn_residual_bwd", &CpuOps::bn_residual_bwd)
        .def("moments", &CpuOps::moments)
        .def("se_pool", &CpuOps::se_pool)
        .def("se_gate", &CpuOps::se_gate)
        .def("se_gate_bwd", &CpuOps::se_gate_bwd)
        .def("se_bwd_reduce", &CpuOps::se_bwd_reduce)
        .def("pointwise", &CpuOps::pointwise)
        .def("pointwise_bwd", &CpuOps::pointwise_bwd)
        .def("depthwise", &CpuOps::depthwise)
        .def("depthwise_bwd", &CpuOps::depthwise_bwd);
}

}  // namespace effnet_fast
