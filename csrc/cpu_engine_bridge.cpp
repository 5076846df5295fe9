// The inference engine as Python sees it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu_bridge.h"

namespace effnet_fast {

void register_cpu_engine(pybind11::module_& m) {
    m.def("cpu_isas", [] {
        std::vector<std::string> names;
        for (const cpu::Isa isa : cpu::available_isas()) names.push_back(cpu::name(isa));
        return names;
    }, "Instruction sets of csrc/cpu that this machine runs, ascending.");
}

}  // namespace effnet_fast
