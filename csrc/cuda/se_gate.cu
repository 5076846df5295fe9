// The gate of squeeze-and-excitation: the whole MLP in one launch.
#include "cuda/se_mlp.cuh"

namespace effnet_fast {
namespace {

constexpr int kStrips = 4;  // of the squeeze, that a thread waits for together

// Shared memory in floats: what a block has, one after the other, all multiples of four.
struct GateShared {
    int pooled;   // [kImages][slice], by place(); then the logits [slice][kImages]
    int hidden;   // [kImages][hidden], by place()
    int u;        // [hidden][kImages], of this block's channels; others of the cluster read it
    int b_reduce, b_expand;
    int partial;  // of the squeeze
    int total;

    __host__ __device__ __forceinline__ GateShared(const Mlp& m, int images) {
        pooled = 0;
        hidden = pooled + images * m.slice;
        u = hidden + images * m.hidden;
        b_reduce = u + images * m.hidden;
        b_expand = b_reduce + m.hidden;
        partial = b_expand + m.slice;
        total = partial + 4 * kMlpThreads;
    }
};

// pooled = factor * the sum over T of the block's images and channels, zeros where there are none:
// a thread for four channels of an image and, while there are threads, for a part of T.
template <int kImages>
__device__ __forceinline__ void squeeze(const SeGateArgs& p, const Mlp& m, const MlpBlock& b,
                                        float factor, float* partial, float* pooled) {
    const int quads = m.slice / 4, items = kImages * quads;
    const int width = min(items, kMlpThreads), parts = min(kMlpThreads / width, p.t);
    const int part = int(threadIdx.x) / width, lane = int(threadIdx.x) - part * width;
    const int64_t plane = int64_t(p.n) * m.c;
#pragma unroll 1
    for (int first = 0; first < items; first += width) {
        const int item = first + lane, image = item / quads, c = (item - image * quads) * 4;
        const int channels = image < b.images && item < items ? b.channels - c : 0;
        if (part < parts) {
            float sum[4] = {};
            if (channels > 0) {
                const float* at =
                    p.pool + part * plane + int64_t(b.image0 + image) * m.c + b.c0 + c;
#pragma unroll 1
                for (int t = part; t < p.t; t += kStrips * parts, at += kStrips * parts * plane) {
                    float strips[kStrips][4] = {};
#pragma unroll
                    for (int k = 0; k < kStrips; k++) {
                        if (t + k * parts >= p.t) break;
                        load_channels(at + k * parts * plane, m.c % 4 == 0, channels, strips[k]);
                    }
#pragma unroll
                    for (int k = 0; k < kStrips; k++) {
#pragma unroll
                        for (int e = 0; e < 4; e++) sum[e] += strips[k][e];
                    }
                }
            }
            store_some(partial + 4 * threadIdx.x, sum);
        }
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < 4 * width && first + i / 4 < items; i += kMlpThreads) {
            float sum = 0.0f;
            for (int other = 0; other < parts; other++) sum += partial[4 * other * width + i];
            const int at = 4 * first + i, row = at / m.slice;
            pooled[row * m.slice + place(at - row * m.slice)] = factor * sum;
        }
        __syncthreads();
    }
}

template <class W, int kImages>
__global__ void __launch_bounds__(kMlpThreads, 2)
    se_gate_kernel(const SeGateArgs p, float factor, const Mlp m) {
    EFFNET_FAST_DYNAMIC_SHARED(float, shared);
    const GateShared at(m, kImages);
    float* const pooled = shared + at.pooled;
    float* const hidden = shared + at.hidden;
    float* const u = shared + at.u;
    const MlpBlock b(m, kImages);
    const SliceWeights<W> weights = fetch_weights<W>(m, b, shared + at.total);
    for (int i = threadIdx.x; i < m.hidden * kImages; i += kMlpThreads) u[i] = 0.0f;
    const Biases b_reduce(m.weights.b_reduce, 0, m.r);
    const Biases b_expand(m.weights.b_expand, b.c0, b.channels);
    squeeze<kImages>(p, m, b, factor, shared + at.partial, pooled);
    b_reduce.store(shared + at.b_reduce);
    b_expand.store(shared + at.b_expand);
    wait_async<0>();
    __syncthreads();
    float* const logits = pooled;
    // One copy of the products' code for both layers: a kernel this short waits for instructions.
#pragma unroll 1
    for (int layer = 0; layer < 2; layer++) {
        const bool reduce = layer == 0;
        multiply_rows<kImages>(reduce ? weights.reduce : weights.expand,
                               reduce ? weights.pitch : m.r,
                               reduce ? m.reduce_grain : m.expand_grain,
                               reduce ? m.r : b.channels, reduce ? b.channels : m.r,
                               reduce ? pooled : hidden, reduce ? m.slice : m.hidden,
                               reduce ? u : logits);
        if (!reduce) break;
        sync_cluster();
#pragma unroll 1
        for (int i = threadIdx.x; i < m.hidden * kImages; i += kMlpThreads) {
            const int r = i / kImages, image = i % kImages;
            float value = 0.0f;
            if (r < m.r) {
                const float sum = shared[at.b_reduce + r] + sum_over_cluster(u + i, m.cluster);
                value = apply<float>(m.act, m.act.factor * sum);
            }
            hidden[image * m.hidden + place(r)] = value;
        }
        for (int i = threadIdx.x; i < m.slice * kImages; i += kMlpThreads) logits[i] = 0.0f;
        sync_cluster();
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < b.images * m.slice; i += kMlpThreads) {
        const int image = i / m.slice, c = i - image * m.slice;
        if (c >= b.channels) continue;
        const float logit = logits[c * kImages + image] + shared[at.b_expand + c];
        p.gate[int64_t(b.image0 + image) * m.c + b.c0 + c] = sigmoid_of_half<float>(0.5f * logit);
    }
}

}  // namespace

size_t se_gate_workspace(const SeGateArgs&) { return 0; }

cudaError_t se_gate(const SeGateArgs& args, cudaStream_t stream) {
    if (args.t < 1) return cudaErrorInvalidValue;
    const auto floats = [](const Mlp& m, int images) {
        return size_t(GateShared(m, images).total);
    };
    return with_type(args.weights.dtype, [&](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        return launch_mlp(se_gate_kernel<W, 1>, se_gate_kernel<W, kManyImages>, args.n, args.c,
                          args.r, args.weights, args.act, floats, stream, args,
                          1.0f / float(args.count));
    });
}

}  // namespace effnet_fast
