// Questions about the CUDA runtime and its devices.
// Every function returns CUDA's own status and writes its output only on cudaSuccess.
#pragma once

#include <cuda_runtime_api.h>

namespace effnet_fast {

// Number of devices this process can see. The first call loads the driver.
cudaError_t device_count(int* count);

// Version of the CUDA runtime linked into this module: 1000 * major + 10 * minor. Needs no driver.
cudaError_t runtime_version(int* version);

}  // namespace effnet_fast
