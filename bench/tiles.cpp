// How the depthwise launchers cut layers into blocks, for bench/layer_model.py. No GPU and no nvcc:
//
//     g++ -std=c++17 -O0 -w -include cuda_emulator.h -DEFFNET_FAST_CUDA_ARCHS=90
//         -I csrc -I tests/cuda_emu -I <CUDA's headers> bench/tiles.cpp -Wl,--unresolved-symbols=ignore-all
//
// Reads lines "mode kernel stride N C H W multiprocessors" (mode plain, inference, training or
// backward; bf16, padding as in EfficientNet) and answers each with the launch and its tile, as
// TileOf in bench/layer_model.py names them. The launchers are the library's own; nothing runs.
#include "cuda/depthwise_bwd.cu"
#include "cuda/depthwise_tensor.cu"

#include <cstdlib>
#include <iostream>
#include <string>

namespace {
int multiprocessors_wanted = 0;
size_t threads, shared_bytes;

void print(const effnet_fast::Tile& t) {
    std::cout << t.vectors << ' ' << t.groups << ' ' << t.images << ' ' << t.columns_in << ' '
              << t.rows << ' ' << t.column_tiles << ' ' << t.items << ' ' << t.channel_blocks << ' '
              << t.parts << ' ' << threads << ' ' << shared_bytes << std::endl;
}
}  // namespace

extern "C" {
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    return *value = multiprocessors_wanted, cudaSuccess;
}
}

// What a launch in the emulator ends in: here nothing but a note of the first kernel's size.
cudaError_t emulator::run_grid(dim3, dim3 block, int, size_t shared, void (*)(void*), void*) {
    if (threads == 0) threads = block.x, shared_bytes = shared;
    return cudaSuccess;
}

#if __has_include("cuda/box_copy.cuh")  // not of older sources, which are modelled too
bool emulator::has_box_copies() {
    const char* const wanted = std::getenv("EFFNET_FAST_CUDA_BOXES");
    return wanted != nullptr && std::string(wanted) == "1";
}
cudaError_t emulator::make_boxes(const BoxTensor&, void*) { return cudaSuccess; }
#endif

namespace effnet_fast {
cudaError_t launch_merge_moments(const float*, const float*, int, int, float*, cudaStream_t) {
    return cudaSuccess;
}
cudaError_t launch_zero(float*, int64_t, cudaStream_t) { return cudaSuccess; }
}  // namespace effnet_fast

int main() {
    using namespace effnet_fast;
    static float memory[4];  // its address stands for every tensor's: nothing is read
    std::string mode;
    int kernel, stride, n, c, h, w;
    while (std::cin >> mode >> kernel >> stride >> n >> c >> h >> w >> multiprocessors_wanted) {
        threads = 0;
        const int p = (h + stride - 1) / stride, q = (w + stride - 1) / stride;
        const DepthwiseShape shape = {DType::kBFloat16, n, c, h, w, p, q, kernel, stride,
                                      kernel / 2,       kernel / 2};
        const Map x = dense_map(memory, h, w, c);
        Act identity = {};
        make_act(Activation::kIdentity, &identity);
        if (mode == "backward") {
            BwdParams params = {};
            params.op.shape = shape, params.op.x = x, params.op.sums = memory;
            params.op.g = params.op.y = params.op.weight = memory;
            params.op.in_affine = params.op.in_norm = memory, params.op.dx = memory;
            params.y_act = params.in_act = identity;
            dispatch(shape, [&](auto* type, auto k, auto s) {
                using T = std::remove_pointer_t<decltype(type)>;
                return launch_depthwise_bwd<T, k.value, s.value>(params, nullptr);
            });
            print(params.tile);
            continue;
        }
        FwdParams params = {};
        params.op.shape = shape, params.op.x = x, params.op.y = memory;
        params.in_act = params.out_act = identity;
        if (mode == "training") params.op.in_affine = memory, params.op.reduce = Reduce::kStats;
        if (mode == "inference") params.op.reduce = Reduce::kPool;
        if (!tensor_takes(params.op)) {
            std::cout << std::endl;  // another kernel's
            continue;
        }
        depthwise_tensor(params, nullptr);
        print(params.tile);
    }
}
