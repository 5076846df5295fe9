// The weight gradient of a 1x1 convolution alone: dw[k, c] = sum over rows of dy[row, k] a[row, c].
//
// A warp holds kDy x kA chunks of 32 x 32 sums and goes through a part's tiles of 16 rows, the next
// one's copies under way (Ring): of whichever of dy and a is wide it takes one chunk, which is so
// loaded and changed once, of the narrow one up to three. Warps of a block take the same rows.
#pragma once

#include <algorithm>

#include "cuda/operand.cuh"
#include "cuda/outer.cuh"

namespace effnet_fast {

constexpr int kWgradWarps = 6;  // per block, at most; two blocks leave 168 registers a thread
constexpr int kMostChunks = 3;  // of the narrow side: 96 registers of sums

struct WgradParams {
    Operand dy, a;
    float* dw;  // [parts, K, C]
    int groups;
    int64_t rows;  // per group
    int64_t tiles_per_group, tiles;
    int dy_tasks, tasks;  // pieces of dw; the first along dy
    int warps, task_blocks, parts;
    int64_t part_tiles;  // per part
};

constexpr int kWgradStages = 2;
template <Prologue kPrologue>
__host__ __device__ constexpr int wgrad_tile_bytes(int dy, int a) {
    return dy * ChunkRows<Prologue::kGradient, 1>::kBytes + a * ChunkRows<kPrologue, 1>::kBytes;
}

template <class T, Prologue kPrologue, int kDy, int kA>
__global__ void __launch_bounds__(32 * kWgradWarps, 2) wgrad_kernel(const WgradParams p) {
    constexpr int kDyBytes = ChunkRows<Prologue::kGradient, 1>::kBytes;
    constexpr int kABytes = ChunkRows<kPrologue, 1>::kBytes;
    EFFNET_FAST_DYNAMIC_SHARED(unsigned char, shared);
    const Lane lane;
    const int part = blockIdx.x / p.task_blocks, warp = threadIdx.x / 32;
    const int task = (blockIdx.x - part * p.task_blocks) * p.warps + warp;
    if (task >= p.tasks) return;
    const int dy_chunk = task % p.dy_tasks * kDy, a_chunk = task / p.dy_tasks * kA;
    WeightSums dw[kDy][kA];
    Ring<kWgradStages, wgrad_tile_bytes<kPrologue>(kDy, kA)> ring(shared, warp);
    const int64_t end = min((part + 1) * p.part_tiles, p.tiles);
    int64_t ahead = part * p.part_tiles;
    const auto copy_next = [&] {
        if (ahead < end) {
            const int group = int(ahead / p.tiles_per_group);
            const int64_t row = (ahead - group * p.tiles_per_group) * kRowsPerMma;
            TileRows<T, Prologue::kGradient> dy_rows;
            TileRows<T, kPrologue> a_rows;
            dy_rows.place(p.dy, group, p.rows, row, kRowsPerMma, lane);
            a_rows.place(p.a, group, p.rows, row, kRowsPerMma, lane);
            unsigned char* const slot = ring.to_copy();
#pragma unroll
            for (int i = 0; i < kDy; i++) {
                dy_rows.template copy<1>(p.dy, dy_chunk + i, lane.t, slot + i * kDyBytes);
            }
#pragma unroll
            for (int i = 0; i < kA; i++) {
                a_rows.template copy<1>(p.a, a_chunk + i, lane.t,
                                        slot + kDy * kDyBytes + i * kABytes);
            }
            ahead++;
        }
        commit_async();
    };
    copy_next();
    for (int64_t tile = part * p.part_tiles; tile < end; tile++) {
        copy_next();
        wait_async<kWgradStages - 1>();
        const int group = int(tile / p.tiles_per_group);
        const int64_t row = (tile - group * p.tiles_per_group) * kRowsPerMma;
        const int count = int(min(int64_t(kRowsPerMma), p.rows - row)) - lane.g;
        const unsigned char* const slot = ring.to_read();
        Turned a[kA];
#pragma unroll
        for (int i = 0; i < kA; i++) {
            ChunkRows<kPrologue, 1> rows;
            rows.read(slot + kDy * kDyBytes + i * kABytes);
            apply_prologue<T>(p.a, group, a_chunk + i, lane.t, rows);
            a[i].turn(rows.x[0]);
        }
#pragma unroll
        for (int k = 0; k < kDy; k++) {
            ChunkRows<Prologue::kGradient, 1> rows;
            rows.read(slot + k * kDyBytes);
            apply_prologue<T>(p.dy, group, dy_chunk + k, lane.t, rows);
            clear_missing(rows.x[0], count);
            Turned dy;
            dy.turn(rows.x[0]);
#pragma unroll
            for (int i = 0; i < kA; i++) dw[k][i].template add<T>(dy, a[i]);
        }
    }
    float* const to = p.dw + int64_t(part) * p.dy.channels * p.a.channels;
#pragma unroll
    for (int i = 0; i < kDy * kA; i++) {
        dw[i / kA][i % kA].store(to, p.dy.channels, p.a.channels, (dy_chunk + i / kA) * kChunk,
                                 (a_chunk + i % kA) * kChunk, lane);
    }
}

struct WgradPlan {
    int dy, a;  // chunks per warp
};

inline void plan_wgrad(WgradParams& p, WgradPlan* plan) {
    const int dy = ceil_div(p.dy.channels, kChunk), a = ceil_div(p.a.channels, kChunk);
    const int narrow = std::min(dy, a), pieces = ceil_div(narrow, kMostChunks);
    *plan = {1, 1};
    (dy > a ? plan->a : plan->dy) = ceil_div(narrow, pieces);
    p.dy_tasks = ceil_div(dy, plan->dy);
    p.tasks = p.dy_tasks * ceil_div(a, plan->a);
    p.task_blocks = ceil_div(p.tasks, kWgradWarps);
    p.warps = ceil_div(p.tasks, p.task_blocks);
    p.tiles_per_group = ceil_div(p.rows, int64_t(kRowsPerMma));
    p.tiles = p.groups * p.tiles_per_group;
    const int resident = 2 * kWgradWarps / p.warps;
    const int64_t wanted = programs_per_share(resident, p.task_blocks);
    // A part costs a copy of dw to write and to read again: eight tiles' rows at least.
    const int64_t parts = std::min(wanted, ceil_div(p.tiles, int64_t(8)));
    p.part_tiles = ceil_div(p.tiles, parts);
    p.parts = int(ceil_div(p.tiles, p.part_tiles));
}

template <class T, Prologue kPrologue>
auto wgrad_instance(const WgradPlan& plan) {
    if (plan.dy == 3) return wgrad_kernel<T, kPrologue, 3, 1>;
    if (plan.dy == 2) return wgrad_kernel<T, kPrologue, 2, 1>;
    if (plan.a == 3) return wgrad_kernel<T, kPrologue, 1, 3>;
    if (plan.a == 2) return wgrad_kernel<T, kPrologue, 1, 2>;
    return wgrad_kernel<T, kPrologue, 1, 1>;
}

template <class T>
cudaError_t launch_wgrad(const WgradParams& p, const WgradPlan& plan, cudaStream_t stream) {
    const bool scaled = p.a.affine != nullptr || p.a.gate != nullptr || p.a.act.factor != 1.0f ||
                        p.a.act.low > -INFINITY || p.a.act.high < INFINITY;
    const dim3 grid(unsigned(p.task_blocks * p.parts)), block(32 * p.warps);
    const size_t tile = wgrad_tile_bytes<Prologue::kNone>(plan.dy, plan.a);
    return launch(scaled ? wgrad_instance<T, Prologue::kScaled>(plan)
                         : wgrad_instance<T, Prologue::kNone>(plan),
                  grid, block, kWgradStages * tile * p.warps, stream, p);
}

}  // namespace effnet_fast
