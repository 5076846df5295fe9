// Backward of a projection, y = (gate * act(affine(x))) w^T: dx of the operand before the gate, the
// five sums of se_bwd_reduce per image, and dw, in one pass over g, y and x.
//
// A warp takes 32 channels of x and strips of images in turn, 16 rows at a time: dx = dy w leaves
// the tensor cores in the layout in which x came (mma.cuh), so that the sums are taken in
// registers, and so is dw, of as many chunks of outputs as those hold. Two steps' rows are under
// way (Ring): a step is a tile, or where dw is not formed one chunk of dy, x coming with a tile's
// last.
#pragma once

#include <algorithm>

#include "cuda/operand.cuh"
#include "cuda/outer.cuh"

namespace effnet_fast {

constexpr int kFiveSums = 5;
constexpr int kMostChunksW = 2;  // of outputs whose dw a warp holds: 64 registers

// Warps per block at most; two such blocks per multiprocessor leave 168 registers a thread, or 255.
constexpr int project_warps(int chunks_w) { return chunks_w == 2 ? 4 : 6; }

struct ProjectParams {
    Operand dy, a;
    const void* weight;  // [K, C]
    const float* norm;   // [2, C]: mean, invstd; null: sums 2 and 3 are zero
    void* dx;
    float* sums;  // [strips, 5, N, C]
    float* dw;    // [parts, K, C]
    int images;
    int64_t rows;  // per image
    int64_t strip_rows;
    int strips;
    int columns;                  // of x's channels per block, padded
    int column_warps, row_warps;  // of a block: those that share rows, those that share channels
    int column_blocks, parts;
};

constexpr int kProjectStages = 3;
// Bytes of a step in a warp's ring.
__host__ __device__ constexpr int project_step_bytes(int chunks_w) {
    const int dy = ChunkRows<Prologue::kGradient, 1>::kBytes;
    return (chunks_w == 0 ? 1 : chunks_w) * dy + 2 * kPieceBytes;
}

// kChunksW: of dy, whose weight gradient is formed too; 0: none, whatever dy has.
template <class T, int kChunksW>
__global__ void __launch_bounds__(32 * project_warps(kChunksW), 2)
    project_bwd_kernel(const ProjectParams p) {
    EFFNET_FAST_DYNAMIC_SHARED(unsigned char, shared);  // weights, transposed: [columns][pitch]
    const int pitch = weight_pitch(p.dy.channels);
    // [4][columns]: scale, shift, -mean * invstd, invstd
    float* const table = reinterpret_cast<float*>(shared + p.columns * pitch);
    const int part = blockIdx.x / p.column_blocks;
    const int first = (blockIdx.x - part * p.column_blocks) * p.columns;
    copy_weights<T, true>(static_cast<const T*>(p.weight), p.a.channels, p.dy.channels, first,
                          p.columns, shared);
    for (int i = threadIdx.x; i < p.columns; i += blockDim.x) {
        const int c = first + i;
        const bool exists = c < p.a.channels;
        table[i] = exists ? p.a.act.factor * p.a.affine[c] : 0.0f;
        table[p.columns + i] = exists ? p.a.act.factor * p.a.affine[p.a.channels + c] : 0.0f;
        const bool normed = exists && p.norm != nullptr;
        table[2 * p.columns + i] = normed ? p.norm[c] : 0.0f;
        table[3 * p.columns + i] = normed ? p.norm[p.a.channels + c] : 0.0f;
    }
    __syncthreads();

    const Lane lane;
    const int warp = threadIdx.x / 32, row_warp = warp / p.column_warps;
    const int own = (warp - row_warp * p.column_warps) * kChunk;  // first of the warp's channels
    const int column = own + kLaneChannels * lane.t, c = first + column;
    const bool exists = c < p.a.channels;
    const unsigned char* const weights = shared + own * pitch + kLaneChannels * lane.t * 2;
    // Of dy: in a step, and steps of a tile.
    constexpr int kChunks = kChunksW == 0 ? 1 : kChunksW;
    const int steps = kChunksW == 0 ? ceil_div(p.dy.channels, kChunk) : 1;
    constexpr int kDyBytes = ChunkRows<Prologue::kGradient, 1>::kBytes;
    Ring<kProjectStages, project_step_bytes(kChunksW)> ring(
        reinterpret_cast<unsigned char*>(table + 4 * p.columns), warp);
    WeightSums dw[kChunks];

    const int64_t units = int64_t(p.images) * p.strips;
    const int64_t programs = int64_t(p.parts) * p.row_warps;
    for (int64_t unit = int64_t(part) * p.row_warps + row_warp; unit < units; unit += programs) {
        const int image = int(unit / p.strips), strip = int(unit - int64_t(image) * p.strips);
        const int64_t begin = strip * p.strip_rows;
        const int64_t end = min(begin + p.strip_rows, p.rows);
        float gate[kLaneChannels], sums[kFiveSums][kLaneChannels] = {};
        const float* const gates = p.a.gate;
        load_parameters8(gates == nullptr ? nullptr : gates + int64_t(image) * p.a.channels + c,
                         exists, 1.0f, gate);
        int64_t ahead = begin;
        int ahead_step = 0;
        const auto copy_next = [&] {
            if (ahead < end) {
                unsigned char* const slot = ring.to_copy();
                TileRows<T, Prologue::kGradient> rows;
                rows.place(p.dy, image, p.rows, ahead, int(min(int64_t(kRowsPerMma), end - ahead)),
                           lane);
#pragma unroll
                for (int i = 0; i < kChunks; i++) {
                    rows.template copy<1>(p.dy, ahead_step + i, lane.t, slot + i * kDyBytes);
                }
                if (++ahead_step == steps) {
                    const T* const x = static_cast<const T*>(p.a.x) +
                                       (image * p.rows + ahead + lane.g) * p.a.x_step + c;
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        copy_async<kVectorBytes>(
                            slot + kChunks * kDyBytes + i * kPieceBytes, x + 8 * i * p.a.x_step,
                            exists && 8 * i < rows.count);
                    }
                    ahead_step = 0, ahead += kRowsPerMma;
                }
            }
            commit_async();
        };
#pragma unroll
        for (int stage = 0; stage < kProjectStages - 1; stage++) copy_next();
        for (int64_t row = begin; row < end; row += kRowsPerMma) {
            const int count = int(min(int64_t(kRowsPerMma), end - row)) - lane.g;
            float acc[kTiles][4] = {};
            Row8 x[2];
            Turned turned[kChunks];
            for (int step = 0; step < steps; step++) {
                wait_async<kProjectStages - 2>();
                const unsigned char* const slot = ring.to_read();
#pragma unroll
                for (int i = 0; i < kChunks; i++) {
                    ChunkRows<Prologue::kGradient, 1> dy;
                    dy.read(slot + i * kDyBytes);
                    const int chunk = step + i;
                    apply_prologue<T>(p.dy, image, chunk, lane.t, dy);
                    clear_missing(dy.x[0], count);
                    const uint32_t(&low)[4] = dy.x[0][0].words, (&high)[4] = dy.x[0][1].words;
#pragma unroll
                    for (int j = 0; j < kTiles; j++) {
                        const uint4 b =
                            weight_words(weights + chunk * kChunk * 2, pitch, lane.g, j);
                        multiply_add<T>(acc[j], low[0], high[0], low[1], high[1], b.x, b.y);
                        multiply_add<T>(acc[j], low[2], high[2], low[3], high[3], b.z, b.w);
                    }
                    if (kChunksW > 0) turned[i].turn(dy.x[0]);
                }
                if (step == steps - 1) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        x[i] = load_row8(slot + kChunks * kDyBytes + i * kPieceBytes);
                    }
                }
                copy_next();
            }

            Row8 operand[2] = {};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (8 * i >= count) continue;
                Row8 dx;
#pragma unroll
                for (int half = 0; half < 2; half++) {  // four channels' values fit beside the rest
                    float v[4], u[4], slope[4], t[4];
                    const float* const row_table = table + column + 4 * half;
                    widen_four<T>(x[i].words + 2 * half, v);
                    load_some(row_table, t);
#pragma unroll
                    for (int e = 0; e < 4; e++) u[e] = v[e] * t[e];
                    load_some(row_table + p.columns, t);
#pragma unroll
                    for (int e = 0; e < 4; e++) u[e] += t[e];
                    apply_and_slopes<Summand<T>>(p.a.act, u, slope);
                    load_some(row_table + 2 * p.columns, t);
#pragma unroll
                    for (int e = 0; e < 4; e++) v[e] -= t[e];
                    load_some(row_table + 3 * p.columns, t);
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const int ch = 4 * half + e;
                        const float xhat = v[e] * t[e];
                        const float d = acc[ch / 2][2 * i + ch % 2], h = d * slope[e];
                        sums[0][ch] += h;
                        sums[1][ch] += slope[e];
                        sums[2][ch] = fmaf(h, xhat, sums[2][ch]);
                        sums[3][ch] = fmaf(slope[e], xhat, sums[3][ch]);
                        sums[4][ch] = fmaf(d, u[e], sums[4][ch]);
                        u[e] *= gate[ch];
                    }
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const float(&d)[4] = acc[2 * half + j];
                        dx.words[2 * half + j] = narrow_pair(d[2 * i], d[2 * i + 1], T());
                        operand[i].words[2 * half + j] = narrow_pair(u[2 * j], u[2 * j + 1], T());
                    }
                }
                const int64_t at = image * p.rows + row + lane.g + 8 * i;
                if (exists) store_row8(static_cast<T*>(p.dx) + at * p.a.channels + c, dx);
            }
            if constexpr (kChunksW > 0) {
                Turned a;
                a.turn(operand);
#pragma unroll
                for (int i = 0; i < kChunks; i++) dw[i].template add<T>(turned[i], a);
            }
        }
        // Over the lanes of other rows; the first has them.
#pragma unroll
        for (int i = 0; i < kFiveSums * kLaneChannels; i++) {
            float& sum = sums[i / kLaneChannels][i % kLaneChannels];
#pragma unroll
            for (int bit = 4; bit < 32; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
        }
        if (lane.g == 0 && exists) {
#pragma unroll
            for (int s = 0; s < kFiveSums; s++) {
                const int64_t at = (int64_t(strip) * kFiveSums + s) * p.images + image;
                float* const to = p.sums + at * p.a.channels + c;
                store_some(to, {sums[s][0], sums[s][1], sums[s][2], sums[s][3]});
                store_some(to + 4, {sums[s][4], sums[s][5], sums[s][6], sums[s][7]});
            }
        }
    }
    if constexpr (kChunksW > 0) {
        // The block's warps that share channels, in their order, and then to memory.
        float* const sums = reinterpret_cast<float*>(shared);  // [chunks][32][columns]
        for (int turn = 0; turn < p.row_warps; turn++) {
            __syncthreads();
            if (turn != row_warp) continue;
#pragma unroll
            for (int i = 0; i < kChunksW; i++) {
                float* const to = sums + i * kChunk * p.columns;
                dw[i].to_shared(to, p.columns, own, turn > 0, lane);
            }
        }
        __syncthreads();
        float* const to = p.dw + int64_t(part) * p.dy.channels * p.a.channels;
        for (int i = threadIdx.x; i < p.dy.channels * p.columns; i += blockDim.x) {
            const int k = i / p.columns, at = first + i - k * p.columns;
            if (at < p.a.channels) to[int64_t(k) * p.a.channels + at] = sums[i];
        }
    }
}

struct ProjectPlan {
    int chunks_w, threads;
    size_t shared;
};

// False: more outputs than shared memory has room for.
inline bool plan_project(ProjectParams& p, bool wants_dw, ProjectPlan* plan) {
    const int all = ceil_div(p.a.channels, kChunk), outputs = ceil_div(p.dy.channels, kChunk);
    plan->chunks_w = wants_dw && outputs <= kMostChunksW ? outputs : 0;
    const int most = project_warps(plan->chunks_w);
    const int row_bytes = weight_pitch(p.dy.channels) + 4 * int(sizeof(float));
    const int ring = kProjectStages * project_step_bytes(plan->chunks_w);
    const auto fits = [&](int columns, int warps) {
        return columns * kChunk * row_bytes + warps * ring <= kMaxSharedBytes;
    };
    int warps = most;
    while (warps > 1 && !fits(1, warps)) warps--;
    if (!fits(1, warps)) return false;
    p.column_warps = std::min(all, warps);
    while (!fits(p.column_warps, warps)) p.column_warps--;
    p.column_blocks = ceil_div(all, p.column_warps);
    p.column_warps = ceil_div(all, p.column_blocks);
    p.row_warps = warps / p.column_warps;
    warps = p.column_warps * p.row_warps;
    p.columns = p.column_warps * kChunk;
    plan->threads = 32 * warps;
    plan->shared = std::max(size_t(p.columns) * row_bytes + size_t(warps) * ring,
                            size_t(plan->chunks_w) * kChunk * p.columns * sizeof(float));
    const int by_registers = 2 * most / warps;
    const int by_memory = int(2 * kMaxSharedBytes / plan->shared);
    const int resident = std::max(1, std::min(by_registers, by_memory));
    const int64_t wanted = programs_per_share(resident, p.column_blocks);
    // Strips so short that every warp gets four, but not under 64 rows: each ends in a reduction.
    const int64_t enough = ceil_div(4 * wanted * p.row_warps, int64_t(p.images));
    const int64_t shortest = ceil_div(p.rows, int64_t(4 * kRowsPerMma));
    const int64_t strips = std::max(int64_t(1), std::min(enough, shortest));
    p.strip_rows = ceil_div(ceil_div(p.rows, strips), int64_t(kRowsPerMma)) * kRowsPerMma;
    p.strips = int(ceil_div(p.rows, p.strip_rows));
    const int64_t units = int64_t(p.images) * p.strips;
    p.parts = int(std::min(wanted, ceil_div(units, int64_t(p.row_warps))));
    return true;
}

template <class T>
cudaError_t launch_project_bwd(const ProjectParams& p, const ProjectPlan& plan,
                               cudaStream_t stream) {
    const auto kernel = plan.chunks_w == 0   ? project_bwd_kernel<T, 0>
                        : plan.chunks_w == 1 ? project_bwd_kernel<T, 1>
                                             : project_bwd_kernel<T, 2>;
    const dim3 grid(unsigned(p.column_blocks * p.parts)), block(plan.threads);
    return launch(kernel, grid, block, plan.shared, stream, p);
}

}  // namespace effnet_fast
