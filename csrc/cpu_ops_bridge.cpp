// The ops of training on a CPU as Python sees them.
#include "cpu_bridge.h"

namespace effnet_fast {

void register_cpu_ops(pybind11::module_&) {}

}  // namespace effnet_fast
