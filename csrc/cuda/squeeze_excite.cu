// Squeeze-and-excitation, its passes over the map: the squeeze, and the sums of the backward.
#include "cuda/activation.cuh"
#include "cuda/gradient.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sweep.cuh"

namespace effnet_fast {
namespace {

// Blocks per multiprocessor, for which there are registers.
constexpr int kPoolResident = 3;
constexpr int kReduceResident = 2;

struct Pass {
    Sweep sweep;
    Act act;
    bool x_dense;
};

// Item sums go to [chunks, kSums, N, C], or, times `mean_factor`, where they belong at once.
template <class T>
__global__ void __launch_bounds__(kSweepThreads, kPoolResident)
    se_pool_kernel(const SePoolArgs p, const Pass pass, float* partials, float mean_factor) {
    constexpr int kCount = kVector<T>, kBatch = 4;
    __shared__ float shared[kCount * kSweepThreads];
    const Sweep& sweep = pass.sweep;
    const SweepThread<T> thread(sweep, p.c);
    const int c = thread.c, channels = thread.channels;
    float scale[kCount], shift[kCount];
    load_parameters(p.affine, c, sweep.vectors, channels, pass.act.factor, 1.0f, scale);
    load_parameters(p.affine == nullptr ? nullptr : p.affine + p.c, c, sweep.vectors, channels,
                    pass.act.factor, 0.0f, shift);
    for_items(sweep, thread, [&](int n, int first, int end) {
        float sums[1][kCount] = {};
        uint4 raw[kBatch];
        const auto load = [&](int k, int pixel) {
            raw[k] = load_raw(static_cast<const T*>(p.x.data) +
                                  pixel_offset(p.x, pass.x_dense, p.w, n, pixel) + c,
                              sweep.vectors, channels);
        };
        const auto use = [&](int k, int) {
            float x[kCount];
            widen<T>(raw[k], x);
#pragma unroll
            for (int i = 0; i < kCount; i++) x[i] = fmaf(x[i], scale[i], shift[i]);
            apply<Summand<T>>(pass.act, x);
#pragma unroll
            for (int i = 0; i < kCount; i++) sums[0][i] += x[i];
        };
        for_pixels<kBatch>(sweep, first, channels > 0 ? end : first, load, use);
        const int64_t chunk = (first - thread.row) / sweep.chunk;
        reduce_rows(sweep, thread, sums, shared, [&](int, int channel, float sum) {
            if (channel < p.c) partials[(chunk * p.n + n) * p.c + channel] = mean_factor * sum;
        });
    });
}

template <class T>
__global__ void __launch_bounds__(kSweepThreads, kReduceResident)
    se_bwd_reduce_kernel(const SeBwdReduceArgs p, const Pass pass, float* partials) {
    constexpr int kCount = kVector<T>, kBatch = 2;
    __shared__ float shared[kCount * kSweepThreads];
    const Sweep& sweep = pass.sweep;
    const SweepThread<T> thread(sweep, p.c);
    const int c = thread.c, channels = thread.channels;
    float scale[kCount], shift[kCount], mean[kCount];
    load_parameters(p.affine, c, sweep.vectors, channels, pass.act.factor, 1.0f, scale);
    load_parameters(p.affine == nullptr ? nullptr : p.affine + p.c, c, sweep.vectors, channels,
                    pass.act.factor, 0.0f, shift);
    load_parameters(p.norm, c, sweep.vectors, channels, 1.0f, 0.0f, mean);
    for_items(sweep, thread, [&](int n, int first, int end) {
        // g * act', act', g * act' * (x - mean), act' * (x - mean), g * act
        float sums[5][kCount] = {};
        uint4 raw_g[kBatch], raw_x[kBatch];
        const auto load = [&](int k, int pixel) {
            raw_g[k] = load_raw(static_cast<const T*>(p.g) + (n * sweep.pixels + pixel) * p.c + c,
                                sweep.vectors, channels);
            raw_x[k] = load_raw(static_cast<const T*>(p.x.data) +
                                    pixel_offset(p.x, pass.x_dense, p.w, n, pixel) + c,
                                sweep.vectors, channels);
        };
        const auto use = [&](int k, int) {
            float g[kCount], x[kCount];
            widen<T>(raw_g[k], g);
            widen<T>(raw_x[k], x);
#pragma unroll
            for (int i = 0; i < kCount; i++) {
                float derivative;
                const float a = apply_and_slope<Summand<T>>(
                    pass.act, fmaf(x[i], scale[i], shift[i]), &derivative);
                const float gs = g[i] * derivative, centred = x[i] - mean[i];
                sums[0][i] += gs;
                sums[1][i] += derivative;
                sums[2][i] = fmaf(gs, centred, sums[2][i]);
                sums[3][i] = fmaf(derivative, centred, sums[3][i]);
                sums[4][i] = fmaf(g[i], a, sums[4][i]);
            }
        };
        for_pixels<kBatch>(sweep, first, channels > 0 ? end : first, load, use);
        const int64_t chunk = (first - thread.row) / sweep.chunk;
        reduce_rows(sweep, thread, sums, shared, [&](int s, int channel, float sum) {
            if (channel >= p.c) return;
            const bool centred = s == 2 || s == 3;
            const float invstd = p.norm == nullptr ? 0.0f : p.norm[p.c + channel];
            partials[((chunk * 5 + s) * p.n + n) * p.c + channel] = centred ? sum * invstd : sum;
        });
    });
}

// ---------------------------------------------------------------- host

template <class Args>
bool prepare(const Args& args, bool others_aligned, int resident, Pass* pass) {
    if (args.n < 0 || args.c <= 0 || args.h <= 0 || args.w <= 0 ||
        int64_t(args.h) * args.w > INT32_MAX - kSweepThreads || !make_act(args.act, &pass->act)) {
        return false;
    }
    if (args.n == 0) return true;
    const bool vectors = others_aligned && whole_vectors(args.x, args.dtype, args.c);
    pass->sweep = make_sweep(args.n, int64_t(args.h) * args.w, args.c,
                             kVectorBytes / int(size_of(args.dtype)), vectors, resident, true);
    pass->x_dense = dense_rows(args.x, args.w);
    return true;
}

dim3 grid_of(const Sweep& sweep) { return dim3(unsigned(sweep.channel_blocks * sweep.parts)); }

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; }

}  // namespace

size_t se_pool_workspace(const SePoolArgs& args) {
    Pass pass = {};
    if (!prepare(args, true, kPoolResident, &pass) || args.n == 0 || pass.sweep.chunks == 1)
        return 0;
    return size_t(pass.sweep.chunks) * args.n * args.c * sizeof(float);
}

cudaError_t se_pool(const SePoolArgs& args, cudaStream_t stream) {
    Pass pass = {};
    if (!prepare(args, true, kPoolResident, &pass)) return cudaErrorInvalidValue;
    if (args.n == 0) return cudaSuccess;
    const bool whole = pass.sweep.chunks == 1;
    const float factor = 1.0f / (float(args.h) * float(args.w));
    float* const partials = whole ? args.pooled : static_cast<float*>(args.workspace);
    const cudaError_t status = with_type(args.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch(se_pool_kernel<T>, grid_of(pass.sweep), dim3(kSweepThreads), 0, stream, args,
                      pass, partials, whole ? factor : 1.0f);
    });
    if (status != cudaSuccess || whole) return status;
    return launch_sum(partials, pass.sweep.chunks, int64_t(args.n) * args.c, factor, args.pooled,
                      stream);
}

size_t se_bwd_reduce_workspace(const SeBwdReduceArgs& args) {
    Pass pass = {};
    if (!prepare(args, true, kReduceResident, &pass) || args.n == 0 || pass.sweep.chunks == 1)
        return 0;
    return size_t(5) * pass.sweep.chunks * args.n * args.c * sizeof(float);
}

cudaError_t se_bwd_reduce(const SeBwdReduceArgs& args, cudaStream_t stream) {
    Pass pass = {};
    if (!prepare(args, aligned(args.g), kReduceResident, &pass)) return cudaErrorInvalidValue;
    if (args.n == 0) return cudaSuccess;
    const bool whole = pass.sweep.chunks == 1;
    float* const partials = whole ? args.sums : static_cast<float*>(args.workspace);
    const cudaError_t status = with_type(args.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch(se_bwd_reduce_kernel<T>, grid_of(pass.sweep), dim3(kSweepThreads), 0, stream,
                      args, pass, partials);
    });
    if (status != cudaSuccess || whole) return status;
    return launch_sum(partials, pass.sweep.chunks, int64_t(5) * args.n * args.c, 1.0f, args.sums,
                      stream);
}

}  // namespace effnet_fast
