// The inference engine as Python sees it: weights come as fp32 arrays, images as addresses.
#include "cpu_bridge.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "cpu/engine.h"

namespace effnet_fast {

namespace py = pybind11;

namespace {

using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::vector<float> values(const py::handle& array) {
    const Array a = py::cast<Array>(array);
    return {a.data(), a.data() + a.size()};
}

cpu::Activation activation(const std::string& name) {
    if (name == "identity") return cpu::Activation::identity;
    if (name == "relu") return cpu::Activation::relu;
    if (name == "relu6") return cpu::Activation::relu6;
    if (name == "silu") return cpu::Activation::silu;
    throw py::value_error("unknown activation '" + name + "'");
}

// {"weight": [out, in / groups, k, k], "scale": float64, "bias", "in", "stride", "act"}; None: no
// such layer.
cpu::Conv conv(const py::object& spec) {
    cpu::Conv c;
    if (spec.is_none()) return c;
    const Array weight = py::cast<Array>(spec["weight"]);
    c.weight = values(weight);
    c.bias = values(spec["bias"]);
    const auto scale = py::cast<py::array_t<double, py::array::c_style>>(spec["scale"]);
    c.scale.assign(scale.data(), scale.data() + scale.size());
    c.in = spec["in"].cast<int>();
    c.out = int(weight.shape(0));
    c.kernel = int(weight.shape(3));
    c.stride = spec["stride"].cast<int>();
    c.act = activation(spec["act"].cast<std::string>());
    return c;
}

// {"weight": [out, in], "bias"}; None: no such layer.
cpu::Linear linear(const py::object& spec) {
    cpu::Linear l;
    if (spec.is_none()) return l;
    const Array weight = py::cast<Array>(spec["weight"]);
    l.weight = values(weight);
    l.bias = values(spec["bias"]);
    l.out = int(weight.shape(0));
    l.in = int(weight.shape(1));
    return l;
}

cpu::Network network(const py::dict& spec) {
    cpu::Network n;
    n.stem = conv(spec["stem"]);
    n.head = conv(spec["head"]);
    n.classifier = linear(spec["classifier"]);
    n.same_padding = spec["same_padding"].cast<bool>();
    n.scale = values(spec["scale"]);
    n.shift = values(spec["shift"]);
    for (const py::handle item : spec["blocks"]) {
        const auto block = py::reinterpret_borrow<py::dict>(item);
        cpu::Block b;
        b.expand = conv(block["expand"]);
        b.depthwise = conv(block["depthwise"]);
        b.reduce = linear(block["reduce"]);
        b.widen = linear(block["widen"]);
        b.squeeze_act = activation(block["squeeze_act"].cast<std::string>());
        b.project = conv(block["project"]);
        b.residual = block["residual"].cast<bool>();
        n.blocks.push_back(std::move(b));
    }
    return n;
}

// The seconds of each of steps() if `profiled`, else nothing.
std::vector<double> run(const cpu::Engine& engine, uintptr_t data, bool is_uint8,
                        const std::vector<int>& shape, const std::vector<int64_t>& stride,
                        int threads, bool features, uintptr_t out, bool profiled) {
    const cpu::Input x = {reinterpret_cast<const void*>(data), is_uint8,
                          shape.at(0), shape.at(1), shape.at(2), shape.at(3),
                          stride.at(0), stride.at(1), stride.at(2), stride.at(3)};
    const py::gil_scoped_release unlocked;
    std::vector<double> seconds(profiled ? engine.steps(x.h, x.w).size() : 0);
    engine.run(x, threads, features ? cpu::Result::features : cpu::Result::logits,
               reinterpret_cast<float*>(out), profiled ? seconds.data() : nullptr);
    return seconds;
}

}  // namespace

void register_cpu_engine(py::module_& m) {
    m.def("cpu_isas", [] {
        std::vector<std::string> names;
        for (const cpu::Isa isa : cpu::available_isas()) names.push_back(cpu::name(isa));
        return names;
    }, "Instruction sets of csrc/cpu that this machine runs, ascending.");
    py::class_<cpu::Engine>(m, "CpuEngine")
        .def(py::init([](const py::dict& spec, const std::string& isa, bool bf16) {
            return std::make_unique<cpu::Engine>(network(spec), cpu::choose_isa(isa),
                                                 bf16 ? cpu::Type::bf16 : cpu::Type::fp32);
        }), py::arg("network"), py::arg("isa"), py::arg("bf16"))
        .def("run", &run)
        .def("feature_size", &cpu::Engine::feature_size)
        .def("workspace_bytes", &cpu::Engine::workspace_bytes)
        .def("steps", [](const cpu::Engine& engine, int h, int w) {
            py::list steps;
            for (const cpu::Step& s : engine.steps(h, w)) {
                steps.append(py::make_tuple(s.name, s.shape, s.multiply_adds, s.weight_bytes));
            }
            return steps;
        });
}

}  // namespace effnet_fast
