#include "cuda/device.h"

namespace effnet_fast {

cudaError_t device_count(int* count) {
    int found = 0;
    const cudaError_t status = cudaGetDeviceCount(&found);
    if (status == cudaSuccess) *count = found;
    return status;
}

cudaError_t runtime_version(int* version) {
    int found = 0;
    const cudaError_t status = cudaRuntimeGetVersion(&found);
    if (status == cudaSuccess) *version = found;
    return status;
}

}  // namespace effnet_fast
