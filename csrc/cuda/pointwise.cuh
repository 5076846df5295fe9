// y = epilogue(prologue(x) w^T): a 1x1 convolution forward, or the input gradient of one.
//
// A block holds its outputs' weights in shared memory. Each warp takes tiles of 16 kSteps rows
// (pixels) by 32 kGroups outputs, and goes through the contracted channels in chunks of 32, the
// next ones' copies under way while one is multiplied, across tiles too (operand.cuh). Lanes keep
// their channels from load to store (mma.cuh). Where there is one group or two, warps of a block
// differ in their rows; else neighbouring warps take the same rows and other outputs. A block's
// tiles are neighbours, so that what goes with an image stays in L1.
#pragma once

#include <algorithm>

#include "cuda/operand.cuh"
#include "cuda/reduce.cuh"

namespace effnet_fast {

// Warps per block at most, of which a multiprocessor holds kPointwiseResident: 128 registers a
// thread, or 168 where moments take 17 of them through the loop, or a second map's rows.
template <Prologue kPrologue, bool kStats>
constexpr int kPointwiseWarps = kStats || kPrologue == Prologue::kGradient ? 6 : 8;
constexpr int kPointwiseResident = 2;
constexpr int kPointwiseStages = 4;  // of a ring: three chunks of a warp are under way

struct PointwiseParams {
    Operand in;
    const void* weight;  // [outputs, channels]; kGradient: [channels, outputs]
    BatchNorm out_bn;
    Act out_act;
    const void* residual;
    int64_t residual_step;
    void* y;
    float* partials;  // [parts, 2, outputs], and
    float* counts;    // [parts], of statistics
    int outputs;
    int64_t rows;  // per group
    int64_t tiles_per_group, tiles;
    int columns;                  // per block, padded
    int column_warps, row_warps;  // of a block: those that share rows, those that share columns
    int column_blocks, parts;
    int64_t part_tiles;  // per part
};

// Mean and squares about it of a lane's outputs, by Chan's formula.
template <int kGroups>
struct LaneMoments {
    float count = 0.0f;
    float mean[kGroups][kLaneChannels] = {}, m2[kGroups][kLaneChannels] = {};

    // `v(group, e, i)`: value i of `values`, those below `valid` count.
    template <int kValues, class F>
    __device__ __forceinline__ void add(int valid, F v) {
        if (valid <= 0) return;
        const float n = float(valid), inverse = 1.0f / n;
        const float share = n / (count + n), weight = count * share;
        count += n;
#pragma unroll
        for (int i = 0; i < kGroups * kLaneChannels; i++) {
            const int group = i / kLaneChannels, e = i % kLaneChannels;
            float sum = 0.0f, squares = 0.0f;
#pragma unroll
            for (int r = 0; r < kValues; r++) sum += r < valid ? v(group, e, r) : 0.0f;
            const float own = sum * inverse;
#pragma unroll
            for (int r = 0; r < kValues; r++) {
                const float d = r < valid ? v(group, e, r) - own : 0.0f;
                squares = fmaf(d, d, squares);
            }
            const float delta = own - mean[group][e];
            mean[group][e] = fmaf(delta, share, mean[group][e]);
            m2[group][e] += fmaf(delta * delta, weight, squares);
        }
    }

    // With those of the lanes of other rows.
    __device__ __forceinline__ void merge_rows() {
#pragma unroll
        for (int bit = 4; bit < 32; bit *= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, count, bit);
            const float total = count + other;
            const float share = total > 0.0f ? other / total : 0.0f, weight = count * share;
#pragma unroll
            for (int i = 0; i < kGroups * kLaneChannels; i++) {
                const int group = i / kLaneChannels, e = i % kLaneChannels;
                const float other_mean = __shfl_xor_sync(0xffffffffu, mean[group][e], bit);
                const float other_m2 = __shfl_xor_sync(0xffffffffu, m2[group][e], bit);
                const float delta = other_mean - mean[group][e];
                mean[group][e] = fmaf(delta, share, mean[group][e]);
                m2[group][e] += fmaf(delta * delta, weight, other_m2);
            }
            count = total;
        }
    }
};

// The moments of a block's warps that share columns, in their order, to the block's partials.
// Scratch of (2 * columns + 1) floats per row of warps.
template <int kGroups>
__device__ __forceinline__ void store_moments(LaneMoments<kGroups>& moments,
                                              const PointwiseParams& p, const Lane& lane,
                                              int row_warp, int column, int part, int first_output,
                                              float* scratch) {
    moments.merge_rows();
    const int stride = 2 * p.columns + 1;
    __syncthreads();  // the weights have been read
    float* const own = scratch + row_warp * stride;
    if (lane.g == 0) {
#pragma unroll
        for (int i = 0; i < kGroups * kLaneChannels; i++) {
            const int at = column + kChunk * (i / kLaneChannels) + i % kLaneChannels;
            own[at] = moments.mean[i / kLaneChannels][i % kLaneChannels];
            own[p.columns + at] = moments.m2[i / kLaneChannels][i % kLaneChannels];
        }
        own[2 * p.columns] = moments.count;  // the same of all that share the rows
    }
    __syncthreads();
    for (int i = threadIdx.x; i < p.columns; i += blockDim.x) {
        if (first_output + i >= p.outputs) continue;
        const Moments total = merge_moments(p.row_warps, 0, 1, [&](int w) {
            const float* const of = scratch + w * stride;
            return Moments{of[2 * p.columns], of[i], of[p.columns + i]};
        });
        float* const to = p.partials + int64_t(part) * 2 * p.outputs + first_output + i;
        to[0] = total.mean;
        to[p.outputs] = total.m2;
        if (first_output + i == 0) p.counts[part] = total.count;
    }
}

template <class T, Prologue kPrologue, bool kStats, int kGroups, int kSteps>
__global__ void __launch_bounds__(32 * kPointwiseWarps<kPrologue, kStats>, kPointwiseResident)
    pointwise_kernel(const PointwiseParams p) {
    constexpr int kTileRows = kRowsPerMma * kSteps;
    constexpr bool kGradient = kPrologue == Prologue::kGradient;
    EFFNET_FAST_DYNAMIC_SHARED(unsigned char, shared);  // weights [columns][pitch]
    const int pitch = weight_pitch(p.in.channels);
    float* const out_scale = reinterpret_cast<float*>(shared + p.columns * pitch);  // [columns]
    float* const out_shift = out_scale + p.columns;
    const int part = blockIdx.x / p.column_blocks;
    const int first_output = (blockIdx.x - part * p.column_blocks) * p.columns;
    copy_weights<T, kGradient>(static_cast<const T*>(p.weight), p.outputs, p.in.channels,
                               first_output, p.columns, shared);
    for (int i = threadIdx.x; i < p.columns; i += blockDim.x) {
        float scale = 1.0f, shift = 0.0f;
        if (p.out_bn.mean.data != nullptr && first_output + i < p.outputs) {
            const BatchNorm& bn = p.out_bn;
            const int k = first_output + i;
            scale = load_or(bn.gamma, k, 1.0f) *
                    rsqrtf(load_any(bn.var.data, bn.var.dtype, k) + bn.eps);
            shift = load_or(bn.beta, k, 0.0f) - load_any(bn.mean.data, bn.mean.dtype, k) * scale;
        }
        out_scale[i] = p.out_act.factor * scale, out_shift[i] = p.out_act.factor * shift;
    }
    __syncthreads();

    const Lane lane;
    const int warp = threadIdx.x / 32, row_warp = warp / p.column_warps;
    const int column =
        (warp - row_warp * p.column_warps) * kChunk * kGroups + kLaneChannels * lane.t;
    const unsigned char* const weights = shared + (column - kLaneChannels * lane.t) * pitch +
                                         kLaneChannels * lane.t * int(sizeof(T));
    const int chunks = ceil_div(p.in.channels, kChunk);
    LaneMoments<kStats ? kGroups : 1> moments;
    const int64_t end = min((part + 1) * p.part_tiles, p.tiles);
    int64_t tile = part * p.part_tiles + row_warp, ahead_tile = tile;
    TileRows<T, kPrologue> rows, ahead;
    Ring<kPointwiseStages, ChunkRows<kPrologue, kSteps>::kBytes> ring(
        reinterpret_cast<unsigned char*>(out_shift + p.columns), warp);
    int ahead_chunk = 0;
    const auto place = [&](TileRows<T, kPrologue>& to, int64_t at) {
        const int group = int(at / p.tiles_per_group);
        to.place(p.in, group, p.rows, (at - group * p.tiles_per_group) * kTileRows, kTileRows,
                 lane);
    };
    const auto copy_next = [&] {
        if (ahead_tile < end) {
            if (ahead_chunk == 0) place(ahead, ahead_tile);
            ahead.template copy<kSteps>(p.in, ahead_chunk, lane.t, ring.to_copy());
            if (++ahead_chunk == chunks) ahead_chunk = 0, ahead_tile += p.row_warps;
        }
        commit_async();
    };
#pragma unroll
    for (int stage = 0; stage < kPointwiseStages - 1; stage++) copy_next();
    for (; tile < end; tile += p.row_warps) {
        place(rows, tile);
        float acc[kSteps][kGroups][kTiles][4] = {};
        for (int chunk = 0; chunk < chunks; chunk++) {
            wait_async<kPointwiseStages - 2>();
            ChunkRows<kPrologue, kSteps> own;
            own.read(ring.to_read());
            copy_next();
            apply_prologue<T>(p.in, rows.group, chunk, lane.t, own);
            const unsigned char* const of_chunk = weights + chunk * kChunk * int(sizeof(T));
#pragma unroll
            for (int i = 0; i < kGroups * kTiles; i++) {
                const int group = i / kTiles, j = i % kTiles;
                const uint4 b = weight_words(of_chunk + group * kChunk * pitch, pitch, lane.g, j);
#pragma unroll
                for (int s = 0; s < kSteps; s++) {
                    const uint32_t(&low)[4] = own.x[s][0].words;
                    const uint32_t(&high)[4] = own.x[s][1].words;
                    float(&c)[4] = acc[s][group][j];
                    multiply_add<T>(c, low[0], high[0], low[1], high[1], b.x, b.y);
                    multiply_add<T>(c, low[2], high[2], low[3], high[3], b.z, b.w);
                }
            }
        }
        // Value e of the lane's row i: rows are 8 i further on.
        const auto value = [&](int group, int e, int i) -> float& {
            return acc[i / 2][group][e / 2][2 * (i % 2) + e % 2];
        };
        if constexpr (kStats) {
            moments.template add<2 * kSteps>(clamp_rows(rows.count, 2 * kSteps), value);
        }
#pragma unroll
        for (int group = 0; group < kGroups; group++) {
            const int at = column + group * kChunk, k = first_output + at;
            if (k >= p.outputs) continue;
            float scale[kLaneChannels], shift[kLaneChannels];
            if (!kStats && !kGradient) {
                load_parameters8(out_scale + at, true, 1.0f, scale);
                load_parameters8(out_shift + at, true, 0.0f, shift);
            }
#pragma unroll
            for (int i = 0; i < 2 * kSteps; i++) {
                if (8 * i >= rows.count) continue;
                float v[kLaneChannels];
#pragma unroll
                for (int e = 0; e < kLaneChannels; e++) {
                    v[e] = value(group, e, i);
                    if (!kStats && !kGradient) v[e] = fmaf(v[e], scale[e], shift[e]);
                }
                if (!kStats && !kGradient) apply<T>(p.out_act, v);
                const int64_t row = rows.first + lane.g + 8 * i;
                if (!kStats && p.residual != nullptr) {
                    float r[kLaneChannels];
                    const T* const from = static_cast<const T*>(p.residual);
                    widen<T>(load_row8(from + row * p.residual_step + k), r);
#pragma unroll
                    for (int e = 0; e < kLaneChannels; e++) v[e] += r[e];
                }
                store_some(static_cast<T*>(p.y) + row * p.outputs + k, v);
            }
        }
    }
    if constexpr (kStats) {
        store_moments(moments, p, lane, row_warp, column, part, first_output,
                      reinterpret_cast<float*>(shared));
    }
}

// Steps of 16 rows where a warp has one group of outputs: a gradient loads two maps.
template <Prologue kPrologue>
constexpr int kStepsOfOne = kPrologue == Prologue::kGradient ? 1 : 2;

// How the work is cut; the same for <op>_workspace and <op>.
struct PointwisePlan {
    int groups, steps;  // of the kernel
    int threads;
    size_t shared;
};

// Fills what p's sizes imply, tiles not crossing the groups of p.rows; there are rows. False: the
// weights of 32 outputs are more than shared memory holds.
template <Prologue kPrologue, bool kStats>
bool plan_pointwise(PointwiseParams& p, int64_t groups, PointwisePlan* plan) {
    constexpr int most = kPointwiseWarps<kPrologue, kStats>;
    const int all = ceil_div(p.outputs, kChunk);
    const int row_bytes = weight_pitch(p.in.channels) + 2 * int(sizeof(float));
    // Two groups a warp halve the work on its operand; an odd number of groups leaves one idle.
    const bool pairs = all > 1 && (all % 2 == 0 || p.in.channels > 3 * kChunk);
    const auto fits = [&](int columns, int warps) {
        const int ring = kPointwiseStages * ChunkRows<kPrologue, 1>::kBytes * plan->steps;
        return columns * kChunk * row_bytes + warps * ring <= kMaxSharedBytes;
    };
    plan->groups = pairs ? 2 : 1, plan->steps = pairs ? 1 : kStepsOfOne<kPrologue>;
    int warps = most;
    if (!fits(plan->groups, warps)) {
        plan->groups = plan->steps = 1;
        while (warps > 1 && !fits(1, warps)) warps--;
    }
    if (!fits(1, warps)) return false;
    const int units = ceil_div(all, plan->groups);
    p.column_warps = std::min(units, warps);
    while (!fits(p.column_warps * plan->groups, warps)) p.column_warps--;
    p.column_blocks = ceil_div(units, p.column_warps);
    p.column_warps = ceil_div(units, p.column_blocks);
    p.row_warps = warps / p.column_warps;
    warps = p.column_warps * p.row_warps;
    p.columns = p.column_warps * plan->groups * kChunk;
    plan->threads = 32 * warps;
    plan->shared =
        std::max(size_t(p.columns) * row_bytes + size_t(warps) * kPointwiseStages * plan->steps *
                                                     ChunkRows<kPrologue, 1>::kBytes,
                 size_t(p.row_warps) * (2 * p.columns + 1) * sizeof(float));
    p.tiles_per_group = ceil_div(p.rows, int64_t(kRowsPerMma * plan->steps));
    p.tiles = groups * p.tiles_per_group;
    const int by_registers = kPointwiseResident * most / warps;
    const int by_memory = int(2 * kMaxSharedBytes / plan->shared);
    const int resident = std::max(1, std::min(by_registers, by_memory));
    const int64_t wanted = programs_per_share(resident, p.column_blocks);
    const int64_t parts = std::min(wanted, ceil_div(p.tiles, int64_t(p.row_warps)));
    p.part_tiles = ceil_div(p.tiles, parts);
    p.parts = int(ceil_div(p.tiles, p.part_tiles));
    return true;
}

template <class T, Prologue kPrologue, bool kStats>
cudaError_t launch_pointwise(const PointwiseParams& p, const PointwisePlan& plan,
                             cudaStream_t stream) {
    const dim3 grid(unsigned(p.column_blocks * p.parts)), block(plan.threads);
    const auto kernel = plan.groups == 2 ? pointwise_kernel<T, kPrologue, kStats, 2, 1>
                        : plan.steps == 1
                            ? pointwise_kernel<T, kPrologue, kStats, 1, 1>
                            : pointwise_kernel<T, kPrologue, kStats, 1, kStepsOfOne<kPrologue>>;
    return launch(kernel, grid, block, plan.shared, stream, p);
}

}  // namespace effnet_fast
