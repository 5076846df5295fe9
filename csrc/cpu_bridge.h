// What the bridge to csrc/cpu adds to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace effnet_fast {

void register_cpu_engine(pybind11::module_& m);
void register_cpu_ops(pybind11::module_& m);

}  // namespace effnet_fast
