// The module of the emulator is about csrc/cuda: it leaves csrc/cpu out.
#include "cpu_bridge.h"

namespace effnet_fast {

void register_cpu_engine(pybind11::module_&) {}
void register_cpu_ops(pybind11::module_&) {}

}  // namespace effnet_fast
