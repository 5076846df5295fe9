// Squeeze-and-excitation: the squeeze, the gate (the whole MLP in one launch), and their backward.
#include "cuda/activation.cuh"
#include "cuda/gradient.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sweep.cuh"

namespace effnet_fast {
namespace {

constexpr int kGateThreads = 512;
constexpr int kWarp = 32;
constexpr int kGateWarps = kGateThreads / kWarp;
constexpr int kExpandLanes = 8;  // of a warp, per row of w_expand: R is 4 to 160
constexpr int kMaxSharedBytes = 99 * 1024;

// Weight gradients: a block has kWarp channels x kHiddenPerBlock hidden units, walks the images in
// stages of kStage, and each thread owns kHiddenPerThread units of one channel.
constexpr int kGradThreads = 256;
constexpr int kGradRows = kGradThreads / kWarp;
constexpr int kHiddenPerThread = 2;
constexpr int kHiddenPerBlock = kGradRows * kHiddenPerThread;
constexpr int kStage = 16;

// ---------------------------------------------------------------- passes over the map

struct Pass {
    Sweep sweep;
    Act act;
    bool x_dense;
};

// Item sums go to [chunks, kSums, N, C], or, times `mean_factor`, where they belong at once.
template <class T>
__global__ void __launch_bounds__(kSweepThreads, kSweepResident)
    se_pool_kernel(const SePoolArgs p, const Pass pass, float* partials, float mean_factor) {
    constexpr int kCount = kVector<T>;
    __shared__ float shared[kCount * kSweepThreads];
    const Sweep& sweep = pass.sweep;
    const SweepThread<T> thread(sweep, p.c);
    const int c = thread.c, channels = thread.channels;
    float scale[kCount], shift[kCount];
    load_parameters(p.affine, c, channels, pass.act.factor, 1.0f, scale);
    load_parameters(p.affine == nullptr ? nullptr : p.affine + p.c, c, channels, pass.act.factor,
                    0.0f, shift);
    for_items(sweep, thread, [&](int n, int first, int end) {
        float sums[1][kCount] = {};
        for (int pixel = first; pixel < end && channels > 0; pixel += sweep.rows) {
            float x[kCount];
            load_channels(static_cast<const T*>(p.x.data) +
                              pixel_offset(p.x, pass.x_dense, p.w, n, pixel) + c,
                          sweep.vectors, channels, x);
#pragma unroll
            for (int i = 0; i < kCount; i++) x[i] = fmaf(x[i], scale[i], shift[i]);
            apply<Summand<T>>(pass.act, x);
#pragma unroll
            for (int i = 0; i < kCount; i++) sums[0][i] += x[i];
        }
        const int64_t chunk = (first - thread.row) / sweep.chunk;
        reduce_rows(sweep, thread, sums, shared, [&](int, int channel, float sum) {
            if (channel < p.c) partials[(chunk * p.n + n) * p.c + channel] = mean_factor * sum;
        });
    });
}

template <class T>
__global__ void __launch_bounds__(kSweepThreads, 2)
    se_bwd_reduce_kernel(const SeBwdReduceArgs p, const Pass pass, float* partials) {
    constexpr int kCount = kVector<T>;
    __shared__ float shared[kCount * kSweepThreads];
    const Sweep& sweep = pass.sweep;
    const SweepThread<T> thread(sweep, p.c);
    const int c = thread.c, channels = thread.channels;
    float scale[kCount], shift[kCount], mean[kCount];
    load_parameters(p.affine, c, channels, pass.act.factor, 1.0f, scale);
    load_parameters(p.affine == nullptr ? nullptr : p.affine + p.c, c, channels, pass.act.factor,
                    0.0f, shift);
    load_parameters(p.norm, c, channels, 1.0f, 0.0f, mean);
    for_items(sweep, thread, [&](int n, int first, int end) {
        // g * act', act', g * act' * (x - mean), act' * (x - mean), g * act
        float sums[5][kCount] = {};
        for (int pixel = first; pixel < end && channels > 0; pixel += sweep.rows) {
            float g[kCount], x[kCount];
            load_channels(static_cast<const T*>(p.g) + (n * sweep.pixels + pixel) * p.c + c,
                          sweep.vectors, channels, g);
            load_channels(static_cast<const T*>(p.x.data) +
                              pixel_offset(p.x, pass.x_dense, p.w, n, pixel) + c,
                          sweep.vectors, channels, x);
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
        }
        const int64_t chunk = (first - thread.row) / sweep.chunk;
        reduce_rows(sweep, thread, sums, shared, [&](int s, int channel, float sum) {
            if (channel >= p.c) return;
            const bool centred = s == 2 || s == 3;
            const float invstd = p.norm == nullptr ? 0.0f : p.norm[p.c + channel];
            partials[((chunk * 5 + s) * p.n + n) * p.c + channel] = centred ? sum * invstd : sum;
        });
    });
}

// ---------------------------------------------------------------- the MLP

struct GateBlock {
    int c, r;
    SeWeights weights;
    Act act;
};

// A row of `count` weights, every kLanes-th, times v in shared memory.
template <class W>
__device__ __forceinline__ float dot(const W* row, const float* v, int count, int lane, int lanes) {
    float sum = 0.0f;
    for (int i = lane; i < count; i += lanes) sum = fmaf(to_float(row[i]), v[i], sum);
    return sum;
}

__device__ __forceinline__ float sum_lanes(float v, int lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        v += __shfl_xor_sync(0xffffffffu, v, distance);
    }
    return v;
}

// u = W1 pooled + b1 for all R, a warp per unit; `use(r, u)` by lane 0. The block's barrier is the
// caller's.
template <class W, class F>
__device__ __forceinline__ void reduce_layer(const GateBlock& g, const float* pooled, F use) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int r = warp; r < g.r; r += kGateWarps) {
        const W* const row = static_cast<const W*>(g.weights.w_reduce) + int64_t(r) * g.c;
        const float u = sum_lanes(dot(row, pooled, g.c, lane, kWarp), kWarp);
        if (lane == 0) use(r, u + load_or(g.weights.b_reduce, r, 0.0f));
    }
}

// One block per image.
template <class W>
__global__ void __launch_bounds__(kGateThreads)
    se_gate_kernel(const SeGateArgs p, const GateBlock g, float factor) {
    EFFNET_FAST_DYNAMIC_SHARED(float, pooled);  // [C]
    float* const hidden = pooled + g.c;         // [R]
    const int64_t image = blockIdx.x;
    for (int c = threadIdx.x; c < g.c; c += kGateThreads) {
        float sum = 0.0f;
        for (int t = 0; t < p.t; t++) sum += p.pool[(t * int64_t(p.n) + image) * g.c + c];
        pooled[c] = factor * sum;
    }
    __syncthreads();
    reduce_layer<W>(g, pooled,
                    [&](int r, float u) { hidden[r] = apply<float>(g.act, g.act.factor * u); });
    __syncthreads();
    const int lane = threadIdx.x % kExpandLanes;
    constexpr int kRows = kGateThreads / kExpandLanes;
    // All lanes of a warp take every turn, as they must for the shuffles.
    for (int first = 0; first < g.c; first += kRows) {
        const int own = first + int(threadIdx.x) / kExpandLanes, c = own < g.c ? own : g.c - 1;
        const W* const row = static_cast<const W*>(g.weights.w_expand) + int64_t(c) * g.r;
        const float logit = sum_lanes(dot(row, hidden, g.r, lane, kExpandLanes), kExpandLanes);
        if (lane == 0 && own < g.c) {
            const float u = logit + load_or(g.weights.b_expand, c, 0.0f);
            p.gate[image * g.c + c] = sigmoid_of_half<float>(0.5f * u);
        }
    }
}

// Backward, one block per image: hidden and d_u [N,R] into the workspace, and dpool.
template <class W>
__global__ void __launch_bounds__(kGateThreads)
    se_gate_bwd_image_kernel(const SeGateBwdArgs p, const GateBlock g, float* hidden, float* d_u) {
    EFFNET_FAST_DYNAMIC_SHARED(float, pooled);  // [C]
    float* const d_logit = pooled + g.c;        // [C]
    float* const slope_r = d_logit + g.c;       // [R]
    float* const d_u_r = slope_r + g.r;         // [R]
    float* const partial = d_u_r + g.r;         // [max(threads, R)]
    const int64_t image = blockIdx.x, base = image * g.c;
    for (int c = threadIdx.x; c < g.c; c += kGateThreads) {
        const float gate = p.gate[base + c];
        pooled[c] = p.pooled[base + c];
        d_logit[c] = p.sums[4 * int64_t(p.n) * g.c + base + c] * gate * (1.0f - gate);
    }
    __syncthreads();
    reduce_layer<W>(g, pooled, [&](int r, float u) {
        hidden[image * g.r + r] = apply_and_slope<float>(g.act, g.act.factor * u, &slope_r[r]);
    });
    __syncthreads();
    // d_hidden = d_logit W2: a thread per unit and slice of the channels, so that a warp reads
    // neighbouring weights; R beyond the block is walked by its threads.
    const int slices = g.r < kGateThreads ? kGateThreads / g.r : 1;
    for (int i = threadIdx.x; i < slices * g.r; i += kGateThreads) {
        const int slice = i / g.r, r = i - slice * g.r;
        const W* const w = static_cast<const W*>(g.weights.w_expand) + r;
        float sum = 0.0f;
        for (int c = slice; c < g.c; c += slices) {
            sum = fmaf(d_logit[c], to_float(w[int64_t(c) * g.r]), sum);
        }
        partial[i] = sum;
    }
    __syncthreads();
    for (int r = threadIdx.x; r < g.r; r += kGateThreads) {
        float sum = 0.0f;
        for (int slice = 0; slice < slices; slice++) sum += partial[slice * g.r + r];
        d_u_r[r] = sum * slope_r[r];
        d_u[image * g.r + r] = d_u_r[r];
    }
    __syncthreads();
    const float factor = 1.0f / float(p.hw);
    for (int c = threadIdx.x; c < g.c; c += kGateThreads) {
        const W* const w = static_cast<const W*>(g.weights.w_reduce) + c;
        float sum = 0.0f;
        for (int r = 0; r < g.r; r++) sum = fmaf(d_u_r[r], to_float(w[int64_t(r) * g.c]), sum);
        p.dpool[base + c] = factor * sum;
    }
}

// Backward, the sums over images: weight gradients, biases' and the batch norm's.
__global__ void __launch_bounds__(kGradThreads)
    se_gate_bwd_weight_kernel(const SeGateBwdArgs p, const float* hidden, const float* d_u) {
    __shared__ float pooled_s[kStage][kWarp], d_logit_s[kStage][kWarp];
    __shared__ float hidden_s[kStage][kHiddenPerBlock], d_u_s[kStage][kHiddenPerBlock];
    const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp;
    const int c = blockIdx.x * kWarp + lane, r0 = blockIdx.y * kHiddenPerBlock;
    const int64_t plane = int64_t(p.n) * p.c;
    float dw_reduce[kHiddenPerThread] = {}, dw_expand[kHiddenPerThread] = {};
    float db_reduce[kHiddenPerThread] = {}, db_expand = 0.0f, sum_h = 0.0f, sum_hx = 0.0f;
    for (int n0 = 0; n0 < p.n; n0 += kStage) {
        __syncthreads();
        for (int i = row; i < kStage; i += kGradRows) {
            const bool inside = n0 + i < p.n && c < p.c;
            const int64_t at = int64_t(n0 + i) * p.c + c;
            const float gate = inside ? p.gate[at] : 0.0f;
            pooled_s[i][lane] = inside ? p.pooled[at] : 0.0f;
            d_logit_s[i][lane] = inside ? p.sums[4 * plane + at] * gate * (1.0f - gate) : 0.0f;
        }
        for (int i = threadIdx.x; i < kStage * kHiddenPerBlock; i += kGradThreads) {
            const int image = i / kHiddenPerBlock, unit = i % kHiddenPerBlock;
            const bool inside = n0 + image < p.n && r0 + unit < p.r;
            const int64_t at = int64_t(n0 + image) * p.r + r0 + unit;
            hidden_s[image][unit] = inside ? hidden[at] : 0.0f;
            d_u_s[image][unit] = inside ? d_u[at] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kStage; i++) {
#pragma unroll
            for (int j = 0; j < kHiddenPerThread; j++) {
                const float du = d_u_s[i][row + j * kGradRows];
                dw_reduce[j] = fmaf(du, pooled_s[i][lane], dw_reduce[j]);
                dw_expand[j] =
                    fmaf(d_logit_s[i][lane], hidden_s[i][row + j * kGradRows], dw_expand[j]);
                db_reduce[j] += du;
            }
            db_expand += d_logit_s[i][lane];
        }
        if (blockIdx.y == 0 && row == 0 && c < p.c) {
            for (int n = n0; n < min(n0 + kStage, p.n); n++) {
                const int64_t at = int64_t(n) * p.c + c;
                const float gate = p.gate[at], dpool = p.dpool[at];
                sum_h = fmaf(gate, p.sums[at], fmaf(dpool, p.sums[plane + at], sum_h));
                sum_hx =
                    fmaf(gate, p.sums[2 * plane + at], fmaf(dpool, p.sums[3 * plane + at], sum_hx));
            }
        }
    }
    if (c >= p.c) return;
#pragma unroll
    for (int j = 0; j < kHiddenPerThread; j++) {
        const int r = r0 + row + j * kGradRows;
        if (r >= p.r) continue;
        p.dw_reduce[int64_t(r) * p.c + c] = dw_reduce[j];
        p.dw_expand[int64_t(c) * p.r + r] = dw_expand[j];
        if (c == 0) p.db_reduce[r] = db_reduce[j];
    }
    if (blockIdx.y == 0 && row == 0) {
        p.db_expand[c] = db_expand;
        p.bn_sums[c] = sum_h;
        p.bn_sums[p.c + c] = sum_hx;
    }
}

// ---------------------------------------------------------------- host

template <class Args>
bool prepare(const Args& args, bool others_aligned, Pass* pass) {
    if (args.n < 0 || args.c <= 0 || args.h <= 0 || args.w <= 0 ||
        int64_t(args.h) * args.w > INT32_MAX - kSweepThreads || !make_act(args.act, &pass->act)) {
        return false;
    }
    if (args.n == 0) return true;
    const bool vectors = others_aligned && whole_vectors(args.x, args.dtype, args.c);
    pass->sweep = make_sweep(args.n, int64_t(args.h) * args.w, args.c,
                             kVectorBytes / int(size_of(args.dtype)), vectors);
    pass->x_dense = dense_rows(args.x, args.w);
    return true;
}

dim3 grid_of(const Sweep& sweep) { return dim3(unsigned(sweep.channel_blocks * sweep.parts)); }

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; }

bool make_gate(int n, int c, int r, const SeWeights& weights, Activation act, GateBlock* g) {
    g->c = c, g->r = r, g->weights = weights;
    return n >= 0 && c > 0 && r > 0 && make_act(act, &g->act);
}

// f(W*) for the weights' type.
template <class F>
cudaError_t launch_gate(size_t shared_floats, DType dtype, F f) {
    if (shared_floats * sizeof(float) > kMaxSharedBytes) return cudaErrorInvalidValue;
    return with_type(dtype, f);
}

}  // namespace

size_t se_pool_workspace(const SePoolArgs& args) {
    Pass pass = {};
    if (!prepare(args, true, &pass) || args.n == 0 || pass.sweep.chunks == 1) return 0;
    return size_t(pass.sweep.chunks) * args.n * args.c * sizeof(float);
}

cudaError_t se_pool(const SePoolArgs& args, cudaStream_t stream) {
    Pass pass = {};
    if (!prepare(args, true, &pass)) return cudaErrorInvalidValue;
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
    if (!prepare(args, true, &pass) || args.n == 0 || pass.sweep.chunks == 1) return 0;
    return size_t(5) * pass.sweep.chunks * args.n * args.c * sizeof(float);
}

cudaError_t se_bwd_reduce(const SeBwdReduceArgs& args, cudaStream_t stream) {
    Pass pass = {};
    if (!prepare(args, aligned(args.g), &pass)) return cudaErrorInvalidValue;
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

size_t se_gate_workspace(const SeGateArgs&) { return 0; }

cudaError_t se_gate(const SeGateArgs& args, cudaStream_t stream) {
    GateBlock g = {};
    if (!make_gate(args.n, args.c, args.r, args.weights, args.act, &g) || args.t < 1) {
        return cudaErrorInvalidValue;
    }
    if (args.n == 0) return cudaSuccess;
    const float factor = 1.0f / float(args.count);
    const size_t floats = size_t(args.c) + args.r;
    return launch_gate(floats, args.weights.dtype, [&](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        return launch(se_gate_kernel<W>, dim3(args.n), dim3(kGateThreads), floats * sizeof(float),
                      stream, args, g, factor);
    });
}

size_t se_gate_bwd_workspace(const SeGateBwdArgs& args) {
    return args.n > 0 && args.r > 0 ? size_t(2) * args.n * args.r * sizeof(float) : 0;
}

cudaError_t se_gate_bwd(const SeGateBwdArgs& args, cudaStream_t stream) {
    GateBlock g = {};
    if (!make_gate(args.n, args.c, args.r, args.weights, args.act, &g)) {
        return cudaErrorInvalidValue;
    }
    float* const hidden = static_cast<float*>(args.workspace);
    float* const d_u = args.n == 0 ? nullptr : hidden + int64_t(args.n) * args.r;
    if (args.n > 0) {
        const int slots = args.r > kGateThreads ? args.r : kGateThreads;
        const size_t floats = 2 * (size_t(args.c) + args.r) + slots;
        const cudaError_t status = launch_gate(floats, args.weights.dtype, [&](auto* type) {
            using W = std::remove_pointer_t<decltype(type)>;
            return launch(se_gate_bwd_image_kernel<W>, dim3(args.n), dim3(kGateThreads),
                          floats * sizeof(float), stream, args, g, hidden, d_u);
        });
        if (status != cudaSuccess) return status;
    }
    // Without images this stores zeros.
    const dim3 grid(ceil_div(args.c, kWarp), ceil_div(args.r, kHiddenPerBlock));
    return launch(se_gate_bwd_weight_kernel, grid, dim3(kGradThreads), 0, stream, args, hidden,
                  d_u);
}

}  // namespace effnet_fast
