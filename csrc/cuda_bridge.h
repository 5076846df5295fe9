// The CUDA ops as functions of the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace effnet_fast {

void register_cuda_ops(pybind11::module_& m);

}  // namespace effnet_fast
