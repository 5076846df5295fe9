// The emulated device: clusters run one after another, the threads of all blocks of a cluster (most
// often of one) are fibers that switch at barriers, warp collectives and nowhere else. See cuda_emulator.h for what that finds.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

namespace emulator {

// The smallest of the supported devices (sm_86, 89 and 120 let a block have 99 KB).
constexpr size_t kMaxSharedBytes = 99 * 1024;
constexpr int kMultiprocessors = 2;
constexpr int kMaxCluster = 8;

// Blocks of a cluster that kernels are told they may have: kMaxCluster, or 1 as before sm_90.
int largest_cluster();

struct Site {
    const char* file;
    int line;
};

// ---------------------------------------------------------------- the running thread

const uint3& thread_index();
const uint3& block_index();
const dim3& block_size();
const dim3& grid_size();
int lane();
unsigned alive_lanes();  // of the running thread's warp
void* dynamic_shared_bytes();
size_t dynamic_shared_size();

template <class T>
T* dynamic_shared() {
    return static_cast<T*>(dynamic_shared_bytes());
}

// Ends the launch with this message (as that of printf) and its thread; does not return.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---------------------------------------------------------------- barriers and collectives

void sync_threads(Site site);
void sync_cluster(Site site = {__builtin_FILE(), __builtin_LINE()});

// Where `own`, an address of this block's dynamic shared memory, is in block `rank` of the cluster.
void* shared_bytes_of(void* own, int rank, Site site);

template <class T>
T* shared_of(T* own, int rank, Site site = {__builtin_FILE(), __builtin_LINE()}) {
    return static_cast<T*>(shared_bytes_of(own, rank, site));
}

// One value of up to 96 bytes per lane.
struct alignas(16) Lanes {
    unsigned char bytes[32][96];
};

// Waits until every lane of `mask` has come with its value; then each gets all of them, to be read
// before its next collective.
const Lanes& all_gather(unsigned mask, const void* value, size_t bytes, Site site);

// The value of `source`, one of the lanes of `mask`.
template <class T>
T exchange(unsigned mask, T value, int source, Site site) {
    static_assert(sizeof(T) <= sizeof(Lanes::bytes[0]) && std::is_trivially_copyable_v<T>, "a shuffle's operand");
    const Lanes& lanes = all_gather(mask, &value, sizeof value, site);
    if (!(mask >> source & 1u)) fail(site, "shuffle from lane %d, not in mask %08x", source, mask);
    T result;
    std::memcpy(&result, lanes.bytes[source], sizeof result);
    return result;
}

// A warp's product of matrices, mma.sync.m16n8k16: `own` are the floats of the lane's words, four of
// the row-major A and two of the column-major B. In matrix_functions.cpp.
void multiply_matrices(float (&c)[4], const float (&own)[6][2], Site site);

// Whether a lane of the whole warp has a NaN; if so, and none was to be expected, an error.
bool any_nan(float value, Site site = {__builtin_FILE(), __builtin_LINE()});

// ---------------------------------------------------------------- asynchronous copies

void copy_async(void* shared, const void* global, int bytes, bool inside,
                Site site = {__builtin_FILE(), __builtin_LINE()});
void commit_async();
void wait_async(int pending);

// What a launch ends in: `status`, or that boxes (box_copies.h) were on their way as a block left.
cudaError_t check_boxes(cudaError_t status);

// ---------------------------------------------------------------- launches

// cudaErrorLaunchFailure after a fail(), whose message cudaGetErrorString then gives.
cudaError_t run_grid(dim3 grid, dim3 block, int cluster, size_t shared_bytes, void (*body)(void*),
                     void* argument);

template <class... Params, class... Args>
cudaError_t launch_clusters(void (*kernel)(Params...), int cluster, dim3 grid, dim3 block,
                            size_t shared_bytes, cudaStream_t, Args&&... args) {
    struct Call {
        void (*kernel)(Params...);
        std::tuple<std::decay_t<Params>...> params;
    };
    Call call{kernel, {Params(std::forward<Args>(args))...}};
    const auto body = [](void* p) {
        auto& c = *static_cast<Call*>(p);
        std::apply(c.kernel, c.params);
    };
    return run_grid(grid, block, cluster, shared_bytes, body, &call);
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Args&&... args) {
    return emulator::launch_clusters(kernel, 1, grid, block, shared_bytes, stream,
                                     std::forward<Args>(args)...);
}

}  // namespace emulator
