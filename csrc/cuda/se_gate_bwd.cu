// The backward of the squeeze-and-excitation MLP: a launch for what is summed over the channels of
// an image, and one for what is summed over images.
//
// Not one: the second needs all of the first, and blocks meet within a cluster, 8 of an H200's 132
// multiprocessors, or by a counter in memory. The workspace's is undefined before the launch (zeros
// are one more node of a graph, as dear as a kernel); one that outlives it two streams would share.
#include "cuda/se_mlp.cuh"

namespace effnet_fast {
namespace {

constexpr int kQuad = 4;
constexpr int kMostUnits = 48;  // of R, that a block of the second kernel has
constexpr int kRowsTogether = 8;

// The workspace is [tiles,N,2,units]: hidden and the gradient of its argument, zeros behind R.
struct Tiles {
    int tiles, units;

    explicit Tiles(int r) {
        tiles = ceil_div(r, kMostUnits);
        units = ceil_div(ceil_div(r, tiles), kQuad) * kQuad;
    }
    size_t floats(int n) const { return size_t(tiles) * n * 2 * units; }
};

// ---------------------------------------------------------------- sums over channels

// Shared memory in floats: what a block has, one after the other, all multiples of four.
struct ImageShared {
    int pooled;     // [kImages][slice], by place()
    int d_logit;    // [slice][kImages]; then dpool
    int u;          // [hidden][kImages], of this block's channels; others of the cluster read it
    int d_hidden;   // likewise
    int d_u;        // [hidden][kImages]
    int b_reduce;
    int partial;  // of multiply_columns()
    int total;

    __host__ __device__ __forceinline__ ImageShared(const Mlp& m, int images) {
        pooled = 0;
        d_logit = pooled + images * m.slice;
        u = d_logit + images * m.slice;
        d_hidden = u + images * m.hidden;
        d_u = d_hidden + images * m.hidden;
        b_reduce = d_u + images * m.hidden;
        partial = b_reduce + m.hidden;
        total = partial + 2 * kMlpThreads * images;
    }
};

// out[column][image] = sum over rows of w[row][column] x[row][image]; out has an even number of
// columns. A thread has two columns and, while there are threads, a part of the rows. `partial`
// holds 2 * kMlpThreads * kImages floats. All threads call it; ends with a barrier.
template <int kImages, class W>
__device__ __forceinline__ void multiply_columns(const W* w, int64_t pitch, Grain grain, int rows,
                                                 int columns, const float* x, float* partial,
                                                 float* out) {
    const int pairs = ceil_div(columns, 2), width = min(pairs, kMlpThreads);
    const int parts = kMlpThreads / width;
    const int part = int(threadIdx.x) / width, lane = int(threadIdx.x) - part * width;
#pragma unroll 1
    for (int first = 0; first < pairs; first += width) {
        const int column = 2 * (first + lane);
        if (part < parts && column < columns) {
            const bool second = column + 1 < columns;
            const bool pair = grain == Grain::kVector || (sizeof(W) == 2 && grain == Grain::kWord);
            float sums[2][kImages] = {};
#pragma unroll 1
            for (int row0 = part; row0 < rows; row0 += kRowsTogether * parts) {
                float weights[kRowsTogether][2] = {};
                if (pair) {
#pragma unroll
                    for (int k = 0; k < kRowsTogether; k++) {
                        const int row = row0 + k * parts;
                        if (row < rows) load_some(w + row * pitch + column, weights[k]);
                    }
                } else {
#pragma unroll
                    for (int k = 0; k < kRowsTogether; k++) {
                        const int row = row0 + k * parts;
                        if (row >= rows) continue;
                        weights[k][0] = to_float(w[row * pitch + column]);
                        if (second) weights[k][1] = to_float(w[row * pitch + column + 1]);
                    }
                }
#pragma unroll
                for (int k = 0; k < kRowsTogether; k++) {
                    const int row = row0 + k * parts;
                    if (row >= rows) break;
#pragma unroll
                    for (int i = 0; i < kImages; i++) {
                        const float own = x[row * kImages + i];
                        sums[0][i] = fmaf(weights[k][0], own, sums[0][i]);
                        sums[1][i] = fmaf(weights[k][1], own, sums[1][i]);
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < 2; k++) {
#pragma unroll
                for (int i = 0; i < kImages; i++) {
                    partial[(2 * threadIdx.x + k) * kImages + i] = sums[k][i];
                }
            }
        }
        __syncthreads();
        const int count = 2 * min(width, pairs - first) * kImages;
#pragma unroll 1
        for (int i = threadIdx.x; i < count; i += kMlpThreads) {
            float sum = 0.0f;
            for (int other = 0; other < parts; other++) {
                sum += partial[2 * other * width * kImages + i];
            }
            out[2 * first * kImages + i] = sum;
        }
        __syncthreads();
    }
}

// hidden and d_u into the workspace, and dpool.
template <class W, int kImages>
__global__ void __launch_bounds__(kMlpThreads, 2)
    se_gate_bwd_image_kernel(const SeGateBwdArgs p, float* units_out, int tiles, int units,
                             const Mlp m) {
    EFFNET_FAST_DYNAMIC_SHARED(float, shared);
    const ImageShared at(m, kImages);
    float* const pooled = shared + at.pooled;
    float* const d_logit = shared + at.d_logit;
    float* const u = shared + at.u;
    float* const d_hidden = shared + at.d_hidden;
    float* const d_u = shared + at.d_u;
    const MlpBlock b(m, kImages);
    const SliceWeights<W> weights = fetch_weights<W>(m, b, shared + at.total);
    for (int i = threadIdx.x; i < m.hidden * kImages; i += kMlpThreads) u[i] = 0.0f;
    const Biases b_reduce(m.weights.b_reduce, 0, m.r);
    const int quads = m.slice / kQuad;
#pragma unroll 1
    for (int i = threadIdx.x; i < kImages * quads; i += kMlpThreads) {
        const int image = i / quads, c = (i - image * quads) * kQuad;
        const int channels = image < b.images ? b.channels - c : 0;
        float mean[kQuad] = {}, gate[kQuad] = {}, slope[kQuad] = {};
        if (channels > 0) {
            const bool vectors = m.c % kQuad == 0;
            const int64_t from = int64_t(b.image0 + image) * m.c + b.c0 + c;
            load_channels(p.pooled + from, vectors, channels, mean);
            load_channels(p.gate + from, vectors, channels, gate);
            load_channels(p.sums + 4 * int64_t(m.n) * m.c + from, vectors, channels, slope);
        }
        store_some(pooled + image * m.slice + place(c), mean);
#pragma unroll
        for (int e = 0; e < kQuad; e++) {
            d_logit[(c + e) * kImages + image] = slope[e] * gate[e] * (1.0f - gate[e]);
        }
    }
    b_reduce.store(shared + at.b_reduce);
    wait_async<0>();
    __syncthreads();
    multiply_rows<kImages>(weights.reduce, weights.pitch, m.reduce_grain, m.r, b.channels, pooled,
                           m.slice, u);
    multiply_columns<kImages>(weights.expand, m.r, m.expand_grain, b.channels, m.r, d_logit,
                              shared + at.partial, d_hidden);
    sync_cluster();
#pragma unroll 1
    for (int i = threadIdx.x; i < tiles * units * kImages; i += kMlpThreads) {
        const int r = i / kImages, image = i % kImages;
        float hidden = 0.0f, gradient = 0.0f;
        if (r < m.r) {
            float slope, argument = shared[at.b_reduce + r];
            argument += sum_over_cluster(u + i, m.cluster);
            gradient = sum_over_cluster(d_hidden + i, m.cluster);
            hidden = apply_and_slope<float>(m.act, m.act.factor * argument, &slope);
            gradient *= slope;
            d_u[i] = gradient;
        }
        if (b.rank == 0 && image < b.images) {
            const int tile = r / units;
            const int64_t line = (int64_t(tile) * m.n + b.image0 + image) * 2;
            float* const to = units_out + line * units + r - tile * units;
            to[0] = hidden, to[units] = gradient;
        }
    }
    sync_cluster();
    if (b.channels <= 0) return;
    float* const dpool = d_logit;
    multiply_columns<kImages>(weights.reduce, weights.pitch, m.reduce_grain, m.r, b.channels, d_u,
                              shared + at.partial, dpool);
    const float factor = 1.0f / float(p.hw);
#pragma unroll 1
    for (int i = threadIdx.x; i < b.images * m.slice; i += kMlpThreads) {
        const int image = i / m.slice, c = i - image * m.slice;
        if (c >= b.channels) continue;
        p.dpool[int64_t(b.image0 + image) * m.c + b.c0 + c] = factor * dpool[c * kImages + image];
    }
}

// ---------------------------------------------------------------- sums over images

constexpr int kWeightThreads = 256;
constexpr int kTile = 8;          // channels of a block: a sector of memory in every row
constexpr int kStage = kWeightThreads * kQuad / kTile;  // images that a block holds together
constexpr int kSums = 3;          // over images, per channel: db_expand, and the batch norm's two
constexpr int kValues = 5 * kQuad;  // of a thread: its part of the weight gradients, and db_reduce

struct WeightShared {
    int pooled, d_logit;  // [kStage][kTile]
    int lines;            // [kStage][2][units]: hidden, d_u
    int total;            // and at the end, in place of all: [kValues][threads]

    __host__ __device__ __forceinline__ explicit WeightShared(int units) {
        pooled = 0;
        d_logit = pooled + kStage * kTile;
        lines = d_logit + kStage * kTile;
        total = lines + kStage * 2 * units;
        total = total > kValues * kWeightThreads ? total : kValues * kWeightThreads;
    }
};


// Gradients of the weights, the biases' and the batch norm's sums. A block has kTile channels and a
// tile of R, for all images. Blocks with blockIdx.y 0 have the sums of their channels besides,
// those with blockIdx.x 0 db_reduce.
__global__ void __launch_bounds__(kWeightThreads, 2)
    se_gate_bwd_weight_kernel(const SeGateBwdArgs p, const float* lines_in, int units) {
    EFFNET_FAST_DYNAMIC_SHARED(float, shared);
    const WeightShared at(units);
    const int c0 = blockIdx.x * kTile, r0 = blockIdx.y * units;
    const bool vectors = p.c % kQuad == 0, with_sums = blockIdx.y == 0;
    const int64_t plane = int64_t(p.n) * p.c;

    // Of the products a thread has two channels x four units, and every parts-th image.
    const int width = units, parts = kWeightThreads / width;
    const int part = int(threadIdx.x) / width, lane = int(threadIdx.x) - part * width;
    const int channel = 2 * (lane % kQuad), unit = lane / kQuad * kQuad;
    float dw_reduce[2][kQuad] = {}, dw_expand[2][kQuad] = {}, db_reduce[kQuad] = {};

    // Of the loads and of the sums over images it has four channels of every kStage-th image.
    const int row = int(threadIdx.x) / (kTile / kQuad);
    const int quad = int(threadIdx.x) % (kTile / kQuad) * kQuad;
    float sums[kSums][kQuad] = {};

    for (int n0 = 0; n0 < p.n; n0 += kStage) {
        const int images = min(kStage, p.n - n0);
        if (n0 > 0) __syncthreads();
        const float* const lines = lines_in + (int64_t(blockIdx.y) * p.n + n0) * 2 * units;
        for (int i = threadIdx.x * kQuad; i < images * 2 * units; i += kWeightThreads * kQuad) {
            copy_async<16>(shared + at.lines + i, lines + i, true);
        }
        commit_async();
        const int channels = row < images ? p.c - c0 - quad : 0;
        const int64_t from = int64_t(n0 + row) * p.c + c0 + quad;
        float pooled[kQuad] = {}, gate[kQuad] = {}, dpool[kQuad] = {}, five[5][kQuad] = {};
        if (channels > 0) {
            load_channels(p.pooled + from, vectors, channels, pooled);
            load_channels(p.gate + from, vectors, channels, gate);
            load_channels(p.sums + 4 * plane + from, vectors, channels, five[4]);
            if (with_sums) {
                load_channels(p.dpool + from, vectors, channels, dpool);
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    load_channels(p.sums + s * plane + from, vectors, channels, five[s]);
                }
            }
        }
#pragma unroll
        for (int e = 0; e < kQuad; e++) {
            five[4][e] *= gate[e] * (1.0f - gate[e]);
            sums[0][e] += five[4][e];
            sums[1][e] = fmaf(gate[e], five[0][e], fmaf(dpool[e], five[1][e], sums[1][e]));
            sums[2][e] = fmaf(gate[e], five[2][e], fmaf(dpool[e], five[3][e], sums[2][e]));
        }
        store_some(shared + at.pooled + row * kTile + quad, pooled);
        store_some(shared + at.d_logit + row * kTile + quad, five[4]);
        wait_async<0>();
        __syncthreads();
        const int end = part < parts ? images : 0;
#pragma unroll 4
        for (int image = part; image < end; image += parts) {
            float mean[2], gradient[2], hidden[kQuad], d_u[kQuad];
            load_some(shared + at.pooled + image * kTile + channel, mean);
            load_some(shared + at.d_logit + image * kTile + channel, gradient);
            load_some(shared + at.lines + 2 * image * units + unit, hidden);
            load_some(shared + at.lines + (2 * image + 1) * units + unit, d_u);
#pragma unroll
            for (int e = 0; e < kQuad; e++) {
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    dw_reduce[k][e] = fmaf(d_u[e], mean[k], dw_reduce[k][e]);
                    dw_expand[k][e] = fmaf(gradient[k], hidden[e], dw_expand[k][e]);
                }
                db_reduce[e] += d_u[e];
            }
        }
    }

    // Parts to sums, in their order.
    __syncthreads();
    const auto value_of = [&](int v) {  // of thread `threadIdx.x - v * kWeightThreads`
        return shared + v * kWeightThreads + threadIdx.x;
    };
#pragma unroll
    for (int e = 0; e < kQuad; e++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            *value_of(2 * e + k) = dw_reduce[k][e];
            *value_of(2 * kQuad + 2 * e + k) = dw_expand[k][e];
        }
        *value_of(4 * kQuad + e) = db_reduce[e];
    }
    __syncthreads();
    const int values = blockIdx.x == 0 ? kValues : 4 * kQuad;
    for (int i = threadIdx.x; i < values * width; i += kWeightThreads) {
        const int v = i / width, from = i - v * width;
        const int e = v < 4 * kQuad ? v / 2 % kQuad : v - 4 * kQuad;
        const int c = c0 + 2 * (from % kQuad) + v % 2, r = r0 + from / kQuad * kQuad + e;
        if (r >= p.r) continue;
        float sum = 0.0f;
        for (int other = 0; other < parts; other++) {
            sum += shared[v * kWeightThreads + other * width + from];
        }
        if (v >= 4 * kQuad) {
            if (from % kQuad == 0) p.db_reduce[r] = sum;
        } else if (c < p.c) {
            if (v < 2 * kQuad) p.dw_reduce[int64_t(r) * p.c + c] = sum;
            if (v >= 2 * kQuad) p.dw_expand[int64_t(c) * p.r + r] = sum;
        }
    }
    if (!with_sums) return;

    __syncthreads();
    const int lane_in_warp = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    constexpr int kStep = kTile / kQuad;  // between lanes of the same channels
#pragma unroll
    for (int s = 0; s < kSums; s++) {
        const float sum = sum_lanes(sums[s], kWarp / kStep, kStep);
        if (lane_in_warp < kTile) {
            const int c = lane_in_warp % kStep * kQuad + lane_in_warp / kStep;
            shared[(warp * kSums + s) * kTile + c] = sum;
        }
    }
    __syncthreads();
    const int c = c0 + int(threadIdx.x) % kTile, s = int(threadIdx.x) / kTile;
    if (s >= kSums || c >= p.c) return;
    float sum = 0.0f;
    for (int other = 0; other < kWeightThreads / kWarp; other++) {
        sum += shared[other * kSums * kTile + threadIdx.x];
    }
    if (s == 0) p.db_expand[c] = sum;
    if (s > 0) p.bn_sums[(s - 1) * p.c + c] = sum;
}

}  // namespace

size_t se_gate_bwd_workspace(const SeGateBwdArgs& args) {
    return args.n > 0 && args.r > 0 ? Tiles(args.r).floats(args.n) * sizeof(float) : 0;
}

cudaError_t se_gate_bwd(const SeGateBwdArgs& args, cudaStream_t stream) {
    if (args.r <= 0) return cudaErrorInvalidValue;
    const Tiles tiles(args.r);
    float* const lines = static_cast<float*>(args.workspace);
    const auto floats = [](const Mlp& m, int images) {
        return size_t(ImageShared(m, images).total);
    };
    const cudaError_t status = with_type(args.weights.dtype, [&](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        return launch_mlp(se_gate_bwd_image_kernel<W, 1>, se_gate_bwd_image_kernel<W, kManyImages>,
                          args.n, args.c, args.r, args.weights, args.act, floats, stream, args,
                          lines, tiles.tiles, tiles.units);
    });
    if (status != cudaSuccess) return status;
    // Without images this stores zeros.
    const size_t bytes = WeightShared(tiles.units).total * sizeof(float);
    return launch(se_gate_bwd_weight_kernel, dim3(ceil_div(args.c, kTile), tiles.tiles),
                  dim3(kWeightThreads), bytes, stream, args, lines, tiles.units);
}

}  // namespace effnet_fast
