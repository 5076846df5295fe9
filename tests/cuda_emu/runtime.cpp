// The CUDA runtime's functions that csrc uses, for one emulated device of compute capability 9.0.
#include <cuda_runtime_api.h>

#include <cstring>
#include <string>

#include "scheduler.h"

namespace emulator {
extern std::string last_message;
}

namespace {
int current_device = 0;
int cluster_limit = emulator::kMaxCluster;
}

int emulator::largest_cluster() { return cluster_limit; }

// Whether the device has clusters.
extern "C" __attribute__((visibility("default"))) void emulator_set_clusters(bool has) {
    cluster_limit = has ? emulator::kMaxCluster : 1;
}

// For the tests of the bridge.
extern "C" __attribute__((visibility("default"))) int emulator_device() { return current_device; }

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device > 1) return cudaErrorInvalidDevice;  // two, to test the way back
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = emulator::kMultiprocessors; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = emulator::kMaxSharedBytes; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 100 * 1024; break;
        default: return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    *blocks = 1;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
    if (bytes > 0) std::memset(memory, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidConfiguration:
        case cudaErrorLaunchFailure: return emulator::last_message.c_str();
        default: return "an error that the emulator does not raise";
    }
}

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
        default: return "unknown";
    }
}

}  // extern "C"
