// Depthwise convolution forward on tensor cores, for 16-bit types and aligned vectors:
// y = act(bn(conv(act(affine(x))))), its moments or its pool sums.
//
// A product of 16 pixels x (2 taps x 8 channels) and (2 taps x 8 channels) x 8 channels whose
// second operand is two diagonals of weights adds two taps of 128 outputs in one instruction, where
// FFMA takes eight. 15 of its 16 terms are zeros, but there is matrix rate to spare and no issue
// slots, and the rows of NHWC are such matrices as they lie: ldmatrix reads any 8 neighbouring
// pixels.
//
// Data path. Rows of x come down H through a ring in shared memory, kRing - 1 of them on their way,
// by asynchronous copies. A warp owns 16 columns and 16 channels; it reads a row once per tap and
// adds it to all of the up to K / S output rows it belongs to, which live as accumulators. The loop
// is unrolled over their pattern. One barrier per row hands it to everybody.
//
// kBoxes: one thread asks for all of a row (box_copy.cuh), of which each thread otherwise copies
// some 16-byte vectors (async_copy.cuh). What is summed, and in which order, is the same.
//
// kPrologue: the thread that copied a vector first applies affine and activation in fp32 and splits
// the result into two rows of 16 bits, high and low, whose products are both added: 17 bits of it.
//
// Zeros of the diagonal times an infinity or NaN of another channel are NaN. Wherever a sum is NaN
// it is therefore taken again tap by tap: what is NaN then, is so in its own channel.
#include "cuda/depthwise_tensor.cuh"

namespace effnet_fast {
namespace {

template <class T, int K, int S, bool kPrologue, bool kBoxes>
__global__ void __launch_bounds__(TensorUnroll<T, K, S, kPrologue, kBoxes>::kThreads,
                                  TensorUnroll<T, K, S, kPrologue, kBoxes>::kResident)
    depthwise_tensor_kernel(const FwdParams p, const __grid_constant__ RowMaps<S> maps) {
    if (kBoxes && !kBoxCopies) return;
    using U = TensorUnroll<T, K, S, kPrologue, kBoxes>;
    constexpr int kSums = 2 * kVectorsPerWarp;  // channels of a lane: 2 of each vector
    const DepthwiseShape& shape = p.op.shape;
    const Tile& tile = p.tile;
    const int octets = tile.groups * tile.images;
    const RowLayout<S, kBoxes> layout(tile);
    const int row_bytes = layout.bytes;
    EFFNET_FAST_DYNAMIC_SHARED(unsigned char, ring);                // [kRing][row]
    unsigned char* const split_rows = ring + U::kRing * row_bytes;  // [2][high, low][row]
    // [vectors * 4][scale, scale, shift, shift] of y, then [scale, shift][kTensorLine] of x
    float* const finishing = reinterpret_cast<float*>(split_rows + U::kSplitRows * row_bytes);
    float* const affine = finishing + 2 * kTensorLine;
    float* const shifts = finishing + U::kLineRows * kTensorLine + kSums * threadIdx.x;
    // [rows / kPoolRows][cell_octets][kTensorLine]
    const int cell_octets = cells_of(octets);
    float* const cells =
        finishing + U::kLineRows * kTensorLine + U::kThreadFloats * int(blockDim.x);

    const int part = blockIdx.x / tile.channel_blocks;
    const int channel0 = (blockIdx.x - part * tile.channel_blocks) * tile.vectors * kVector<T>;
    // The same where it is rarely wanted: not kept in a register meanwhile.
    const auto first_channel = [&] {
        return opaque(int(blockIdx.x)) % tile.channel_blocks * tile.vectors * kVector<T>;
    };
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int pair = warp % (tile.vectors / kVectorsPerWarp);
    const int octet = warp / (tile.vectors / kVectorsPerWarp) * kOctetsPerWarp;  // the warp's first
    const int g = lane / 4, t = lane % 4;
    const int channel = (pair * kVectorsPerWarp) * kVector<T> + 2 * t;  // the lane's first
    const auto channel_of = [&](int k) { return channel + k / 2 * kVector<T> + k % 2; };
    // This lane's row of the matrices of two octets x (two columns or two vectors).
    const int of_row = octet + lane / 8 % 2 < octets ? octet + lane / 8 % 2 : 0;
    const LanePlaces<K, S, kBoxes> places(
        layout, of_row / tile.groups * layout.columns + of_row % tile.groups * kOctet + lane % 8,
        pair * kVectorsPerWarp);

    uint32_t taps[kVectorsPerWarp][K][K];
#pragma unroll
    for (int v = 0; v < kVectorsPerWarp; v++) {
        const int c = channel0 + (pair * kVectorsPerWarp + v) * kVector<T> + g;
        const bool diagonal = g / 2 == t && c < shape.c;
#pragma unroll
        for (int tap = 0; tap < K * K; tap++) {
            const uint16_t* const w =
                static_cast<const uint16_t*>(p.op.weight) + int64_t(c) * (K * K) + tap;
            taps[v][tap / K][tap % K] = diagonal ? uint32_t(*w) << 16 * (g % 2) : 0;
        }
    }
    for (int i = threadIdx.x; i < tile.vectors * kVector<T>; i += blockDim.x) {
        const int c = channel0 + i;
        float scale = p.out_act.factor, shift = 0.0f;
        if (c < shape.c && p.op.out_bn.mean.data != nullptr) {
            fold(p.op.out_bn, p.out_act.factor, c, &scale, &shift);
        }
        finishing[i / 2 * 4 + i % 2] = scale, finishing[i / 2 * 4 + 2 + i % 2] = shift;
        if (kPrologue) {
            const bool given = p.op.in_affine != nullptr && c < shape.c;
            affine[i] = p.in_act.factor * (given ? p.op.in_affine[c] : 1.0f);
            affine[kTensorLine + i] = given ? p.in_act.factor * p.op.in_affine[shape.c + c] : 0.0f;
        }
    }
    if (kPrologue) store_some(shifts, {0.0f, 0.0f, 0.0f, 0.0f});
    if (kBoxes && threadIdx.x == 0) {
        make_box_barriers(ring + row_bytes - int(sizeof(BoxBarrier)), U::kRing, row_bytes);
    }
    const bool stats = kPrologue && p.op.reduce == Reduce::kStats;
    const bool pools = p.op.reduce == Reduce::kPool;
    // Of channel k over all items: its sum and, kSums further on, squares, both about `shifts`; or
    // [octet][channel] over a strip of kPoolRows rows.
    float sums[2 * kSums] = {};

    std::conditional_t<kBoxes, BoxLoader<S>, TensorLoader<T, S, U::kSlots>> loader;
    const auto next = [&](int at) { return at == (U::kRing - 1) * row_bytes ? 0 : at + row_bytes; };
    int slot = 0, parity = 0;  // of the row that is read next: its place, its barrier's phase
    for (int item = part; item < tile.items; item += tile.parts) {
        const int image0 = item / tile.strips * tile.images;
        const int p0 = (item % tile.strips) * tile.rows;
        const int rows = min(tile.rows, shape.p - p0);
        const int steps = (rows - 1) * S + K;
        const int h0 = p0 * S - shape.pad_top;
        for (int column_tile = 0; column_tile < tile.column_tiles; column_tile++) {
            const int q0 = column_tile * tile.groups * kOctet;
            __syncthreads();  // the ring's last rows have been read; the affine is there
            loader.place(tile, layout, p.op.x, shape.n, shape.w, shape.c, image0, h0,
                         q0 * S - shape.pad_left, first_channel(), kPrologue ? split_rows : ring,
                         kPrologue ? U::kSplitRows : U::kRing);
            // This lane's pixel of either octet: the 8 of its 32 bytes that this lane stores, in
            // the next row of y; whether it exists, and whether those do.
            unsigned char* y[kOctetsPerWarp];
            unsigned there = 0;  // bit o, and 2 + o
            const auto exists = [&](int o) { return (there >> o & 1) != 0; };
            const int own_c = first_channel() + channel + (t % 2 == 0 ? 0 : kVector<T> - 2);
#pragma unroll
            for (int o = 0; o < kOctetsPerWarp; o++) {
                const int image = (opaque(octet) + o) / opaque(tile.groups);
                const int q = (octet + o - image * tile.groups) * kOctet + g;
                if (image < tile.images && image0 + image < shape.n && q0 + q < shape.q) {
                    there |= (own_c < shape.c ? 5 : 1) << o;
                }
                const int64_t row = int64_t(image0 + image) * shape.p + p0;
                y[o] = opaque_global(static_cast<unsigned char*>(p.op.y) +
                                     ((row * shape.q + q0 + q) * shape.c + own_c) *
                                         int64_t(sizeof(T)));
            }
            // Whether the warp has anything to do but to copy.
            const bool works = __any_sync(0xffffffffu, there >> kOctetsPerWarp) != 0;
            // Steps first ... last - 1 read rows that are in x.
            const int first = max(0, -h0), last = min(steps, shape.h - h0);
            const auto in_x = [&](int step) {
                return unsigned(step - first) < unsigned(last - first);
            };
            // Boxes bring the others too, as zeros, which are multiplied like any row.
            const int copied = kBoxes ? steps : last;
            int free_slot = slot;
#pragma unroll 1
            for (int step = 0; step < U::kRing - 1; step++) {
                if (kBoxes ? step < steps : in_x(step)) {
                    loader.start(ring + free_slot, layout, maps);
                }
                loader.advance(p.x_row_bytes);
                free_slot = next(free_slot);
            }
            // Output rows that begin above x find their accumulators as they are set here.
            float acc[U::kAccumulators][kVectorsPerWarp][4] = {};
            int flush = pools ? min((kPoolRows - 1) * S + K - 1, steps - 1) : steps;
            for (int step0 = 0; step0 < steps; step0 += U::kPeriod) {
#pragma unroll
                for (int phase = 0; phase < U::kPeriod; phase++) {
                    const int step = step0 + phase;
                    if (step >= steps) break;
                    loader.template wait_for_own<U::kRing - 2>();
                    const unsigned char* row = ring + slot;
                    if constexpr (kPrologue) {
                        unsigned char* const high = split_rows + step % 2 * 2 * row_bytes;
                        if (in_x(step)) {
                            const float* const a = affine + threadIdx.x % tile.vectors * kVector<T>;
                            loader.split(row, high, row_bytes, [&](float (&v)[kVector<T>]) {
#pragma unroll
                                for (int e = 0; e < kVector<T>; e++) {
                                    v[e] = fmaf(v[e], a[e], a[kTensorLine + e]);
                                }
                                apply<T>(p.in_act, v);
                            });
                        }
                        row = high;
                    }
                    __syncthreads();
                    // The row before this one has been read by all: its place takes the next row.
                    if (step < copied - (U::kRing - 1)) {
                        loader.start(ring + free_slot, layout, maps);
                    }
                    loader.advance(p.x_row_bytes);
                    loader.wait_for_row(ring + slot, layout, parity);
                    free_slot = slot;
                    slot = next(slot);
                    if (slot < free_slot) parity ^= 1;
                    if (!works) continue;
                    if (kBoxes || in_x(step)) {
                        multiply_row<T, K, S>(acc, taps, row, places, phase, true);
                        if constexpr (kPrologue) {
                            multiply_row<T, K, S>(acc, taps, row + row_bytes, places, phase, false);
                        }
                    }
                    if ((phase - (K - 1) + U::kPeriod * K) % S != 0 || step < K - 1) continue;
                    // That was the last tap row of the output row that began K - 1 rows ago.
                    float (&done)[kVectorsPerWarp][4] =
                        acc[(phase - (K - 1) + U::kPeriod * K) / S % U::kAccumulators];
                    // Of octet o, channel k.
                    const auto of = [&](int o, int k) -> float& {
                        return done[k / 2][2 * o + k % 2];
                    };
                    float finish[kVectorsPerWarp][4] = {};  // on its way meanwhile
                    if (p.finish) {
#pragma unroll
                        for (int v = 0; v < kVectorsPerWarp; v++) {
                            load_some(finishing + (channel + v * kVector<T>)*2, finish[v]);
                        }
                    }
                    // An infinity or NaN makes the other seven channels of its vector NaN, so that
                    // of two neighbours one shows, in one lane or another.
                    const float any = (of(0, 0) + of(0, 2)) + (of(1, 0) + of(1, 2));
                    if (any_nan(any)) {
                        // One at a time, and nothing of it kept in registers meanwhile.
#pragma unroll 1
                        for (int i = 0; i < 2 * kSums; i++) {
                            const int o = i / kSums, block_c = first_channel();
                            const int groups = opaque(tile.groups);
                            const int own = opaque(octet) + o, image = own / groups;
                            const int q = q0 + (own - image * groups) * kOctet + g;
                            const int c = block_c + channel_of(i % kSums);
                            float exact = 0.0f;
                            if (exists(o) && c < shape.c) {
                                exact = sum_of_taps<T, K, S, kPrologue>(
                                    p, image0 + image, c, opaque(h0) + step - (K - 1),
                                    q * S - shape.pad_left, affine + c - block_c);
                            }
#pragma unroll
                            for (int at = 0; at < 2 * kSums; at++) {
                                if (at == i) of(at / kSums, at % kSums) = exact;
                            }
                        }
                    }
                    if (stats && (exists(0) || exists(1))) {
                        const bool fresh = item < tile.parts && column_tile == 0;
                        RunningMoments<kSums> moments;
                        load_some(shifts, moments.shift);
#pragma unroll
                        for (int k = 0; k < kSums; k++) {
                            moments.sum[k] = sums[k], moments.squares[k] = sums[kSums + k];
                            if (fresh && step == K - 1) {
                                moments.shift[k] = exists(0) ? of(0, k) : of(1, k);
                            }
                        }
#pragma unroll
                        for (int o = 0; o < kOctetsPerWarp; o++) {
                            if (exists(o)) {
                                moments.add({of(o, 0), of(o, 1), of(o, 2), of(o, 3)});
                            }
                        }
                        const int seen = (step - (K - 1)) / S + 1;
                        if (fresh && (seen == 1 || seen == 2 || seen == 8)) {
                            if (seen > 1) {
                                moments.rebase(float(seen * (int(exists(0)) + int(exists(1)))));
                            }
                            store_some(shifts, moments.shift);
                        }
#pragma unroll
                        for (int k = 0; k < kSums; k++) {
                            sums[k] = moments.sum[k], sums[kSums + k] = moments.squares[k];
                        }
                    }
                    if (p.finish) {
#pragma unroll
                        for (int v = 0; v < kVectorsPerWarp; v++) {
                            const float (&f)[4] = finish[v];
#pragma unroll
                            for (int i = 0; i < 4; i++) {
                                done[v][i] = fmaf(done[v][i], f[i % 2], f[2 + i % 2]);
                            }
                        }
                        apply<T>(p.out_act, reinterpret_cast<float (&)[4 * kVectorsPerWarp]>(done));
                    }
#pragma unroll
                    for (int o = 0; o < kOctetsPerWarp; o++) {
                        // Lanes exchange halves: of a pixel's 32 bytes a lane has four neighbouring
                        // channels, of the first vector or, where t is odd, of the second.
                        const uint32_t low = narrow_pair(of(o, 0), of(o, 1), T());
                        const uint32_t high = narrow_pair(of(o, 2), of(o, 3), T());
                        const bool odd = t % 2 != 0;
                        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
                        if (there >> o & 4) {
                            *reinterpret_cast<uint2*>(y[o]) =
                                odd ? uint2{other, high} : uint2{low, other};
                        }
                        y[o] += p.y_row_bytes;
                        if (pools && exists(o)) {
#pragma unroll
                            for (int k = 0; k < kSums; k++) sums[o * kSums + k] += of(o, k);
                        }
                    }
                    if (step == flush) {
                        const int strip = (step - (K - 1)) / S / kPoolRows;
                        float* const cell =
                            cells + (strip * cell_octets + octet + g / kSums) * kTensorLine +
                            channel_of(g % kSums);
                        const float before = column_tile > 0 ? *cell : 0.0f;
                        *cell = before + sum_across(sums);
#pragma unroll
                        for (int i = 0; i < 2 * kSums; i++) sums[i] = 0.0f;
                        flush = min(flush + kPoolRows * S, steps - 1);
                    }
                }
            }
        }
        if (pools) {
            __syncthreads();
            store_octets(cells, p, item, first_channel());
        }
    }
    if (stats) {
        int count = 0;
        for (int item = part; item < tile.items; item += tile.parts) {
            const int rows = min(tile.rows, shape.p - item % tile.strips * tile.rows);
            for (int o = 0; o < kOctetsPerWarp; o++) {
                const int image = (octet + o) / tile.groups;
                const bool exists =
                    image < tile.images && item / tile.strips * tile.images + image < shape.n;
                for (int q = (octet + o - image * tile.groups) * kOctet + g; exists && q < shape.q;
                     q += tile.groups * kOctet) {
                    count += rows;
                }
            }
        }
        RunningMoments<kSums> moments;
        load_some(shifts, moments.shift);
#pragma unroll
        for (int k = 0; k < kSums; k++)
            moments.sum[k] = sums[k], moments.squares[k] = sums[kSums + k];
        __syncthreads();
        const int warp_pairs = tile.vectors / kVectorsPerWarp;
        store_moments(
            moments, count, p, part, first_channel(), reinterpret_cast<float*>(ring),
            tile.vectors * kVector<T>, int(blockDim.x) / 32 / warp_pairs * 8,
            [](int i) { return i / kVector<T> % kVectorsPerWarp * 2 + i % 2; },
            [&](int i, int s) {
                const int own = i / (kVector<T> * kVectorsPerWarp);
                return (s / 8 * warp_pairs + own) * 32 + s % 8 * 4 + i % kVector<T> / 2;
            });
    }
}

// The same for <op>_workspace and <op>.
template <class T, int K, int S, bool kPrologue, bool kBoxes>
Tile tile_of(const DepthwiseArgs& args) {
    using U = TensorUnroll<T, K, S, kPrologue, kBoxes>;
    const DepthwiseShape& s = args.shape;
    TileLimits limits = {};
    limits.vector = kVector<T>;
    limits.columns = kOctet, limits.columns_in = kOctet * S, limits.halo = U::kHalo;
    limits.slots = U::kSlots, limits.threads = U::kThreads, limits.resident = U::kResident;
    limits.unit = 32 / kVectorsPerWarp, limits.unit_groups = kOctetsPerWarp;
    limits.max_rows = U::kMaxRows;
    limits.images =
        std::min(images_in_reach(args.x), images_in_reach(dense_map(args.y, s.p, s.q, s.c)));
    limits.pixel_bytes = U::kPixelBytes;
    limits.shared_bytes = kMaxSharedBytes - U::kFixedBytes;
    return make_tile(limits, s.n, s.c, s.p, s.q, kTensorVectors);
}

template <class T, int K, int S, bool kPrologue, bool kBoxes>
cudaError_t launch_depthwise_tensor(FwdParams& p, const RowMaps<S>& maps, cudaStream_t stream) {
    using U = TensorUnroll<T, K, S, kPrologue, kBoxes>;
    const DepthwiseShape& shape = p.op.shape;
    const Tile& tile = p.tile = tile_of<T, K, S, kPrologue, kBoxes>(p.op);
    const Map y = dense_map(p.op.y, shape.p, shape.q, shape.c);
    if (!offsets_fit(p.op.x, tile) || !offsets_fit(y, tile)) return cudaErrorInvalidValue;
    const int strips = p.op.reduce == Reduce::kPool ? tile.rows / kPoolRows : 0;
    const size_t floats = size_t(U::kLineRows) * kTensorLine + U::kThreadFloats * tile.threads +
                          size_t(strips) * cells_of(tile.groups * tile.images) * kTensorLine;
    const size_t rows = size_t(U::kRing) + U::kSplitRows;
    const size_t stream_bytes = rows * RowLayout<S, kBoxes>(tile).bytes + floats * sizeof(float);
    const size_t merge_bytes = kPrologue ? size_t(9) * tile.threads * sizeof(float) : 0;
    p.x_row_bytes = int(p.op.x.h_stride) * int(sizeof(T));
    p.y_row_bytes = shape.q * shape.c * int(sizeof(T));
    p.partials = static_cast<float*>(p.op.workspace);
    p.counts = p.partials == nullptr ? nullptr : p.partials + size_t(2) * shape.c * tile.parts;
    const cudaError_t status =
        launch(depthwise_tensor_kernel<T, K, S, kPrologue, kBoxes>,
               dim3(unsigned(tile.channel_blocks * tile.parts)), dim3(tile.threads),
               std::max(stream_bytes, merge_bytes), stream, p, maps);
    if (status != cudaSuccess || p.op.reduce != Reduce::kStats) return status;
    return launch_merge_moments(p.partials, p.counts, tile.parts, shape.c, p.op.reduced, stream);
}

// x as the kernel with boxes has it; none where it has to take the other.
template <class T, int K, int S>
cudaError_t make_row_maps(const DepthwiseArgs& args, RowMaps<S>* maps, bool* boxes) {
    cudaError_t status = has_box_copies(depthwise_tensor_kernel<T, K, S, false, true>, boxes);
    if (status != cudaSuccess || !*boxes) return status;
    const DepthwiseShape& s = args.shape;
    const Tile tile = tile_of<T, K, S, false, true>(args);
    BoxSource sources[S];
    *boxes = tile.vectors == kTensorVectors;
    for (int plane = 0; plane < S; plane++) {
        BoxSource& x = sources[plane];
        x = {args.x, s.n, s.h, ceil_div(s.w - plane, S), s.c, tile.images, tile.columns_in / S};
        x.map.data = static_cast<const T*>(args.x.data) + plane * args.x.w_stride;
        x.map.w_stride *= S;
        *boxes = *boxes && boxes_fit(x);
    }
    for (int plane = 0; plane < S && *boxes && status == cudaSuccess; plane++) {
        status = make_boxes(sources[plane], &maps->of[plane]);
    }
    return status;
}

// fp16 has no high half for a value beyond its range. At stride 2 splitting x costs more than its
// few products save: on an H200, B0's two layers of 3 x 3 at batch 128, 0.318 ms against 0.301,
// and of 5 x 5 taps the addresses of half as many copies again come on top of a thread's
// registers.
template <class T>
constexpr bool has_prologue_kernel(int stride) {
    return std::is_same_v<T, __nv_bfloat16> && stride == 1;
}

// f(T*, kernel size, stride, prologue) of the kernel for these arguments.
template <class F>
cudaError_t dispatch_tensor(const DepthwiseArgs& args, F f) {
    return dispatch(args.shape, [&](auto* type, auto kernel, auto stride) {
        using T = std::remove_pointer_t<decltype(type)>;
        if constexpr (has_prologue_kernel<T>(stride.value)) {
            if (prologue(args)) return f(type, kernel, stride, std::true_type());
        }
        if constexpr (sizeof(T) == 2) return f(type, kernel, stride, std::false_type());
        return cudaErrorInvalidValue;
    });
}

}  // namespace

bool tensor_takes(const DepthwiseArgs& args) {
    const DepthwiseShape& s = args.shape;
    const bool kernel = prologue(args) ? s.dtype == DType::kBFloat16 &&
                                             has_prologue_kernel<__nv_bfloat16>(s.stride)
                                       : s.dtype != DType::kFloat32;
    return kernel && whole_vectors(args.x, s.dtype, s.c) &&
           whole_vectors(dense_map(args.y, s.p, s.q, s.c), s.dtype, s.c);
}

int tensor_parts(const DepthwiseArgs& args) {
    int parts = 0;
    dispatch_tensor(args, [&](auto* type, auto kernel, auto stride, auto has_prologue) {
        using T = std::remove_pointer_t<decltype(type)>;
        constexpr bool kPrologue = has_prologue.value;
        parts = tile_of<T, kernel.value, stride.value, kPrologue, false>(args).parts;
        return cudaSuccess;
    });
    return parts;
}

cudaError_t depthwise_tensor(FwdParams& p, cudaStream_t stream) {
    return dispatch_tensor(p.op, [&](auto* type, auto kernel, auto stride, auto has_prologue) {
        using T = std::remove_pointer_t<decltype(type)>;
        constexpr int K = kernel.value, S = stride.value;
        constexpr bool kPrologue = has_prologue.value;
        RowMaps<S> maps = {};
        if constexpr (!kPrologue) {
            bool boxes = false;
            const cudaError_t status = make_row_maps<T, K, S>(p.op, &maps, &boxes);
            if (status != cudaSuccess) return status;
            if (boxes) return launch_depthwise_tensor<T, K, S, false, true>(p, maps, stream);
        }
        return launch_depthwise_tensor<T, K, S, kPrologue, false>(p, maps, stream);
    });
}

}  // namespace effnet_fast
