// Batch norm: its per-channel arithmetic, and the passes over activations that no convolution
// takes.
#include "cuda/activation.cuh"
#include "cuda/gradient.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sweep.cuh"

namespace effnet_fast {
namespace {

constexpr int kChannelThreads = 128;

// Of one channel, all of it loaded before anything is stored, so that it is waited for together.
struct Fold {
    float mean, var, gamma, beta;

    // From the biased variance.
    __device__ __forceinline__ void store(float eps, int channel, int c, float* affine,
                                          float* norm) const {
        const float invstd = rsqrtf(var + eps), scale = gamma * invstd;
        affine[channel] = scale;
        affine[c + channel] = beta - mean * scale;
        norm[channel] = mean;
        norm[c + channel] = invstd;
    }
};

__global__ void __launch_bounds__(kChannelThreads) bn_fold_kernel(const BnFoldArgs p) {
    const int channel = blockIdx.x * kChannelThreads + threadIdx.x;
    if (channel >= p.c) return;
    const Fold fold = {load_or(p.bn.mean, channel, 0.0f), load_or(p.bn.var, channel, 0.0f),
                       load_or(p.bn.gamma, channel, 1.0f), load_or(p.bn.beta, channel, 0.0f)};
    fold.store(p.bn.eps, channel, p.c, p.affine, p.norm);
}

__global__ void __launch_bounds__(kChannelThreads)
    bn_finalize_kernel(const BnFinalizeArgs p, double unbiased) {
    const int channel = blockIdx.x * kChannelThreads + threadIdx.x;
    if (channel >= p.c) return;
    const bool running = p.count > 0 && p.running_mean.data != nullptr;
    const Param old_mean = {running ? p.running_mean.data : nullptr, p.running_mean.dtype};
    const Param old_var = {running ? p.running_var.data : nullptr, p.running_var.dtype};
    const Fold fold = {p.stats[channel], p.stats[p.c + channel], load_or(p.gamma, channel, 1.0f),
                       load_or(p.beta, channel, 0.0f)};
    const double means = load_or(old_mean, channel, 0.0f), vars = load_or(old_var, channel, 0.0f);
    if (running) {
        const float var = float(fold.var * unbiased);
        store_any(p.running_mean.data, p.running_mean.dtype, channel,
                  float(means + p.momentum * (fold.mean - means)));
        store_any(p.running_var.data, p.running_var.dtype, channel,
                  float(vars + p.momentum * (var - vars)));
    }
    fold.store(p.eps, channel, p.c, p.affine, p.norm);
}

__global__ void __launch_bounds__(kChannelThreads) bn_bwd_coef_kernel(const BnBwdCoefArgs p) {
    const int channel = blockIdx.x * kChannelThreads + threadIdx.x;
    if (channel >= p.c) return;
    const float mean = p.norm[channel], invstd = p.norm[p.c + channel];
    const float sum = p.sums[channel], sum_xhat = p.sums[p.c + channel];
    const float a = load_or(p.gamma, channel, 1.0f) * invstd;
    const float count = float(p.count > 1 ? p.count : 1);
    p.coef[channel] = a;
    p.coef[p.c + channel] = p.batch_stats ? -a * invstd * (sum_xhat / count) : 0.0f;
    p.coef[2 * p.c + channel] = mean;
    p.coef[3 * p.c + channel] = p.batch_stats ? -a * (sum / count) : 0.0f;
}

// Blocks per multiprocessor, for which there are registers.
constexpr int kForwardResident = 3;
constexpr int kBackwardResident = 2;

struct Elementwise {
    Sweep sweep;
    Act act;
    bool x_dense, residual_dense;
};

template <class T>
__global__ void __launch_bounds__(kSweepThreads, kForwardResident)
    bn_residual_kernel(const BnResidualArgs p, const Elementwise e) {
    constexpr int kCount = kVector<T>, kBatch = 2;
    const Sweep& sweep = e.sweep;
    const SweepThread<T> thread(sweep, p.c);
    if (thread.channels <= 0) return;
    const int c = thread.c;
    float scale[kCount], shift[kCount];
    load_parameters(p.affine, c, sweep.vectors, thread.channels, e.act.factor, 1.0f, scale);
    load_parameters(p.affine == nullptr ? nullptr : p.affine + p.c, c, sweep.vectors,
                    thread.channels, e.act.factor, 0.0f, shift);
    for_items(sweep, thread, [&](int n, int first, int end) {
        float weight[kCount];
        load_parameters(p.gate, int64_t(n) * p.c + c, sweep.vectors, thread.channels,
                        p.drop_scale == nullptr ? 1.0f : p.drop_scale[n], 1.0f, weight);
        uint4 raw_x[kBatch], raw_residual[kBatch] = {};
        const auto load = [&](int k, int pixel) {
            raw_x[k] = load_raw(
                static_cast<const T*>(p.x.data) + pixel_offset(p.x, e.x_dense, p.w, n, pixel) + c,
                sweep.vectors, thread.channels);
            if (p.residual.data == nullptr) return;
            raw_residual[k] =
                load_raw(static_cast<const T*>(p.residual.data) +
                             pixel_offset(p.residual, e.residual_dense, p.w, n, pixel) + c,
                         sweep.vectors, thread.channels);
        };
        const auto use = [&](int k, int pixel) {
            float x[kCount], residual[kCount];
            widen<T>(raw_x[k], x);
            widen<T>(raw_residual[k], residual);
#pragma unroll
            for (int i = 0; i < kCount; i++) x[i] = fmaf(x[i], scale[i], shift[i]);
            apply<T>(e.act, x);
#pragma unroll
            for (int i = 0; i < kCount; i++) x[i] = fmaf(x[i], weight[i], residual[i]);
            store_channels(static_cast<T*>(p.y) + (n * sweep.pixels + pixel) * p.c + c,
                           sweep.vectors, thread.channels, x);
        };
        for_pixels<kBatch>(sweep, first, end, load, use);
    });
}

template <class T>
__global__ void __launch_bounds__(kSweepThreads, kBackwardResident)
    bn_bwd_reduce_kernel(const BnBwdReduceArgs p, const Elementwise e, float* partials) {
    constexpr int kCount = kVector<T>, kBatch = 4;
    __shared__ float shared[kCount * kSweepThreads];
    const Sweep& sweep = e.sweep;
    const SweepThread<T> thread(sweep, p.c);
    const int c = thread.c, channels = thread.channels;
    float scale[kCount], shift[kCount], mean[kCount];
    load_parameters(p.affine, c, sweep.vectors, channels, e.act.factor, 1.0f, scale);
    load_parameters(p.affine == nullptr ? nullptr : p.affine + p.c, c, sweep.vectors, channels,
                    e.act.factor, 0.0f, shift);
    load_parameters(p.norm, c, sweep.vectors, channels, 1.0f, 0.0f, mean);
    float sums[2][kCount] = {};  // h, h * (y - mean)
    for_items(sweep, thread, [&](int n, int first, int end) {
        if (channels <= 0) return;
        float dpool[kCount];
        load_parameters(p.dpool, int64_t(n) * p.c + c, sweep.vectors, channels, 1.0f, 0.0f, dpool);
        const float weight = p.drop_scale == nullptr ? 1.0f : p.drop_scale[n];
        uint4 raw_g[kBatch] = {}, raw_y[kBatch];
        const auto load = [&](int k, int pixel) {
            if (p.g != nullptr) {
                raw_g[k] =
                    load_raw(static_cast<const T*>(p.g) + (n * sweep.pixels + pixel) * p.c + c,
                             sweep.vectors, channels);
            }
            raw_y[k] = load_raw(
                static_cast<const T*>(p.y.data) + pixel_offset(p.y, e.x_dense, p.w, n, pixel) + c,
                sweep.vectors, channels);
        };
        const auto use = [&](int k, int) {
            float g[kCount], y[kCount];
            widen<T>(raw_g[k], g);
            widen<T>(raw_y[k], y);
#pragma unroll
            for (int i = 0; i < kCount; i++) {
                const float h = bn_output_grad<Summand<T>>(e.act, g[i], y[i], scale[i], shift[i],
                                                           weight, dpool[i]);
                sums[0][i] += h;
                sums[1][i] = fmaf(h, y[i] - mean[i], sums[1][i]);
            }
        };
        for_pixels<kBatch>(sweep, first, end, load, use);
    });
    float* const out = partials + int64_t(thread.part) * 2 * p.c;
    reduce_rows(sweep, thread, sums, shared, [&](int s, int channel, float sum) {
        if (channel < p.c) out[s * p.c + channel] = s == 0 ? sum : sum * p.norm[p.c + channel];
    });
}

template <class T>
__global__ void __launch_bounds__(kSweepThreads, kBackwardResident)
    bn_residual_bwd_kernel(const BnResidualBwdArgs p, const Elementwise e) {
    constexpr int kCount = kVector<T>, kBatch = 2;
    const Sweep& sweep = e.sweep;
    const SweepThread<T> thread(sweep, p.c);
    if (thread.channels <= 0) return;
    const int c = thread.c, channels = thread.channels;
    float scale[kCount], shift[kCount], a[kCount], b[kCount], mean[kCount], rest[kCount];
    const auto row = [&](const float* base, int i) {
        return base == nullptr ? nullptr : base + int64_t(i) * p.c;
    };
    load_parameters(p.affine, c, sweep.vectors, channels, e.act.factor, 1.0f, scale);
    load_parameters(row(p.affine, 1), c, sweep.vectors, channels, e.act.factor, 0.0f, shift);
    load_parameters(p.coef, c, sweep.vectors, channels, 1.0f, 1.0f, a);
    load_parameters(row(p.coef, 1), c, sweep.vectors, channels, 1.0f, 0.0f, b);
    load_parameters(row(p.coef, 2), c, sweep.vectors, channels, 1.0f, 0.0f, mean);
    load_parameters(row(p.coef, 3), c, sweep.vectors, channels, 1.0f, 0.0f, rest);
    for_items(sweep, thread, [&](int n, int first, int end) {
        float weight[kCount], dpool[kCount];
        load_parameters(p.gate, int64_t(n) * p.c + c, sweep.vectors, channels,
                        p.drop_scale == nullptr ? 1.0f : p.drop_scale[n], 1.0f, weight);
        load_parameters(p.dpool, int64_t(n) * p.c + c, sweep.vectors, channels, 1.0f, 0.0f, dpool);
        uint4 raw_g[kBatch], raw_y[kBatch];
        const auto load = [&](int k, int pixel) {
            raw_g[k] = load_raw(static_cast<const T*>(p.g) + (n * sweep.pixels + pixel) * p.c + c,
                                sweep.vectors, channels);
            raw_y[k] = load_raw(
                static_cast<const T*>(p.y.data) + pixel_offset(p.y, e.x_dense, p.w, n, pixel) + c,
                sweep.vectors, channels);
        };
        const auto use = [&](int k, int pixel) {
            float g[kCount], y[kCount];
            widen<T>(raw_g[k], g);
            widen<T>(raw_y[k], y);
#pragma unroll
            for (int i = 0; i < kCount; i++) {
                const float h =
                    bn_output_grad<T>(e.act, g[i], y[i], scale[i], shift[i], weight[i], dpool[i]);
                g[i] = bn_input_grad(h, y[i], a[i], b[i], mean[i], rest[i]);
            }
            store_channels(static_cast<T*>(p.dy) + (n * sweep.pixels + pixel) * p.c + c,
                           sweep.vectors, channels, g);
        };
        for_pixels<kBatch>(sweep, first, end, load, use);
    });
}

template <class P, class... Rest>
cudaError_t per_channel(void (*kernel)(P, Rest...), cudaStream_t stream, const P& args,
                        Rest... rest) {
    if (args.c <= 0) return args.c == 0 ? cudaSuccess : cudaErrorInvalidValue;
    const dim3 grid(unsigned(ceil_div(args.c, kChannelThreads)));
    return launch(kernel, grid, dim3(kChannelThreads), 0, stream, args, rest...);
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; }

// The sweep of an op over `x` and what lies beside it; false: not to be had.
template <class Args>
bool prepare(const Args& args, const Map& x, const Map& other, bool others_aligned, int resident,
             Elementwise* e) {
    if (args.n < 0 || args.c <= 0 || args.h <= 0 || args.w <= 0 ||
        int64_t(args.h) * args.w > INT32_MAX - kSweepThreads || !make_act(args.act, &e->act)) {
        return false;
    }
    if (args.n == 0) return true;
    const bool vectors = others_aligned && whole_vectors(x, args.dtype, args.c) &&
                         whole_vectors(other, args.dtype, args.c);
    e->sweep = make_sweep(args.n, int64_t(args.h) * args.w, args.c,
                          kVectorBytes / int(size_of(args.dtype)), vectors, resident, false);
    e->x_dense = dense_rows(x, args.w);
    e->residual_dense = dense_rows(other, args.w);
    return true;
}

dim3 grid_of(const Sweep& sweep) { return dim3(unsigned(sweep.channel_blocks * sweep.parts)); }

}  // namespace

cudaError_t bn_fold(const BnFoldArgs& args, cudaStream_t stream) {
    return per_channel(bn_fold_kernel, stream, args);
}

cudaError_t bn_finalize(const BnFinalizeArgs& args, cudaStream_t stream) {
    // Of the batch's variance to the running one, which is unbiased.
    const double unbiased = double(args.count) / double(args.count > 1 ? args.count - 1 : 1);
    return per_channel(bn_finalize_kernel, stream, args, unbiased);
}

cudaError_t bn_bwd_coef(const BnBwdCoefArgs& args, cudaStream_t stream) {
    return per_channel(bn_bwd_coef_kernel, stream, args);
}

cudaError_t bn_residual(const BnResidualArgs& args, cudaStream_t stream) {
    Elementwise e = {};
    if (!prepare(args, args.x, args.residual, aligned(args.y), kForwardResident, &e)) {
        return cudaErrorInvalidValue;
    }
    if (args.n == 0) return cudaSuccess;
    return with_type(args.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch(bn_residual_kernel<T>, grid_of(e.sweep), dim3(kSweepThreads), 0, stream, args,
                      e);
    });
}

size_t bn_bwd_reduce_workspace(const BnBwdReduceArgs& args) {
    Elementwise e = {};
    if (!prepare(args, args.y, {}, true, kBackwardResident, &e)) return 0;
    return size_t(2) * args.c * e.sweep.parts * sizeof(float);
}

cudaError_t bn_bwd_reduce(const BnBwdReduceArgs& args, cudaStream_t stream) {
    Elementwise e = {};
    if (!prepare(args, args.y, {}, aligned(args.g), kBackwardResident, &e)) {
        return cudaErrorInvalidValue;
    }
    if (args.n == 0) return launch_zero(args.sums, int64_t(2) * args.c, stream);
    float* const partials = static_cast<float*>(args.workspace);
    const cudaError_t status = with_type(args.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch(bn_bwd_reduce_kernel<T>, grid_of(e.sweep), dim3(kSweepThreads), 0, stream,
                      args, e, partials);
    });
    if (status != cudaSuccess) return status;
    return launch_sum(partials, e.sweep.parts, int64_t(2) * args.c, 1.0f, args.sums, stream);
}

cudaError_t bn_residual_bwd(const BnResidualBwdArgs& args, cudaStream_t stream) {
    Elementwise e = {};
    if (!prepare(args, args.y, {}, aligned(args.g) && aligned(args.dy), kBackwardResident,
                 &e)) {
        return cudaErrorInvalidValue;
    }
    if (args.n == 0) return cudaSuccess;
    return with_type(args.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch(bn_residual_bwd_kernel<T>, grid_of(e.sweep), dim3(kSweepThreads), 0, stream,
                      args, e);
    });
}

}  // namespace effnet_fast
