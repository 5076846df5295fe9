// csrc's bridge as one unit: pybind11's headers, most of its time, are read once. Of the CPU's part,
// which the emulator is not about, nothing.
#include "cuda_bridge.cpp"
#include "module.cpp"

namespace effnet_fast {

void register_cpu_engine(pybind11::module_&) {}
void register_cpu_ops(pybind11::module_&) {}

}  // namespace effnet_fast
