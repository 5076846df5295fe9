// Thread block clusters (sm_90 and newer): blocks that meet at a barrier of their own and read each
// other's shared memory. Elsewhere a cluster is one block, so a kernel that takes any size runs
// too.
#pragma once

#include "cuda/launch.h"

namespace effnet_fast {

constexpr int kMaxCluster = 8;  // that every device with clusters has room for

#ifdef EFFNET_FAST_EMULATED

using emulator::launch_clusters;
using emulator::shared_of;
using emulator::sync_cluster;

template <class... Params>
cudaError_t largest_cluster(void (*)(Params...), int* blocks) {
    *blocks = emulator::largest_cluster();
    return cudaSuccess;
}

#else

// A barrier of all threads of the cluster, which then see what all of them wrote to shared memory.
__device__ __forceinline__ void sync_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 8)
    // Ordering shared memory alone spares a fence that waits for global memory.
    asm volatile(
        "fence.release.sync_restrict::shared::cta.cluster;\n\t"
        "barrier.cluster.arrive.relaxed.aligned;\n\t"
        "barrier.cluster.wait.aligned;\n\t"
        "fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#else
    asm volatile(
        "barrier.cluster.arrive.aligned;\n\t"
        "barrier.cluster.wait.aligned;" ::: "memory");
#endif
#else
    __syncthreads();
#endif
}

// Where `own`, in this block's dynamic shared memory, is in block `rank` of the cluster. It is
// there until that block's last sync_cluster().
template <class T>
__device__ __forceinline__ T* shared_of(T* own, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return there;
#else
    return own;
#endif
}

// Blocks that a cluster of `kernel` may have on the current device: kMaxCluster or 1.
template <class... Params>
cudaError_t largest_cluster(void (*kernel)(Params...), int* blocks) {
    bool has_clusters = false;
    const cudaError_t status = has_since_sm_90(kernel, cudaDevAttrClusterLaunch, 1, &has_clusters);
    *blocks = has_clusters ? kMaxCluster : 1;
    return status;
}

// launch() of a grid whose blocks form clusters of `cluster` neighbours along x.
template <class... Params, class... Args>
cudaError_t launch_clusters(void (*kernel)(Params...), int cluster, dim3 grid, dim3 block,
                            size_t shared_bytes, cudaStream_t stream, Args&&... args) {
    if (cluster == 1) {
        return launch(kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
    }
    const cudaError_t status = allow_shared(kernel, shared_bytes);
    if (status != cudaSuccess) return status;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(cluster), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes, config.stream = stream;
    config.attrs = &attribute, config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, Params(std::forward<Args>(args))...);
}

#endif

}  // namespace effnet_fast
