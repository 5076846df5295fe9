// effnet_fast._C: the only bridge between Python and the native code. No torch header: tensors
// cross as pointers and sizes. Importing the module touches no driver.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu_bridge.h"

#ifdef EFFNET_FAST_CUDA_ARCHS
#include "cuda/device.h"
#include "cuda_bridge.h"
#endif

namespace py = pybind11;

namespace {

#ifdef EFFNET_FAST_CUDA_ARCHS
constexpr bool kCudaBuilt = true;
const std::vector<int> kCudaArchs{EFFNET_FAST_CUDA_ARCHS};

// Throws CUDA's own message, and clears it so that no later call reports it a second time.
void check(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status) + " (" +
                             cudaGetErrorName(status) + ")");
}

int cuda_device_count() {
    int count = 0;
    check(effnet_fast::device_count(&count), "cudaGetDeviceCount");
    return count;
}

int cuda_runtime_version() {
    int version = 0;
    check(effnet_fast::runtime_version(&version), "cudaRuntimeGetVersion");
    return version;
}
#else
constexpr bool kCudaBuilt = false;
const std::vector<int> kCudaArchs;
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Native part of effnet_fast.";
    m.def("cuda_built", [] { return kCudaBuilt; }, "Whether the CUDA kernels were compiled in.");
    m.def("cuda_archs", [] { return kCudaArchs; },
          "Compute capabilities compiled for, as 10 * major + minor, ascending; empty without "
          "CUDA.");
    effnet_fast::register_cpu_engine(m);
    effnet_fast::register_cpu_ops(m);
#ifdef EFFNET_FAST_CUDA_ARCHS
    m.def("cuda_device_count", &cuda_device_count, py::call_guard<py::gil_scoped_release>(),
          "Devices this process can see. RuntimeError with CUDA's message where there is no driver "
          "or no device.");
    m.def("cuda_runtime_version", &cuda_runtime_version,
          "CUDA runtime linked in, as 1000 * major + 10 * minor. Needs no driver.");
    effnet_fast::register_cuda_ops(m);
#endif
}
