// Depthwise convolution forward: y = act(bn(conv(act(affine(x))))), its moments or its pool sums.
//
// Data path. Rows of x come down H through a ring in shared memory, filled kRing - 1 rows ahead by
// asynchronous 16-byte copies. A thread reads a row of its window once, (kCols - 1) * S + K columns
// of kLanes channels, and adds each value to all of the up to K / S output rows it belongs to: the
// K rows of the window live as accumulators in registers, and no row is read a second time. The
// loop is unrolled over the ring so that accumulators, taps and ring rows are compile-time.
//
// Two kernels. For inference (kGeneral = false) the window is read from the ring itself and
// converted on the way. Otherwise the thread that copied a vector first widens it to fp32, with its
// affine and activation, into one of two further rows: once per element, not per tap, unrounded,
// and without a barrier more, as a thread's wait covers its own copies. Either way one barrier per
// row hands the row to everybody.
#include "cuda/depthwise_fwd.cuh"

namespace effnet_fast {
namespace {

template <class T, int K, int S, bool kGeneral>
__global__ void __launch_bounds__(FwdUnroll<T, K, S, kGeneral>::kThreads, kFwdResident)
    depthwise_fwd_kernel(const FwdParams p) {
    using U = FwdUnroll<T, K, S, kGeneral>;
    using Operand = std::conditional_t<kGeneral, float, T>;  // what the window is made of
    constexpr int kLanes = U::kLanes;
    constexpr int kLine = U::kLine;
    constexpr int kOperandPitch = kGeneral ? kWidePitch<T> : kPitch;
    const DepthwiseShape& shape = p.op.shape;
    const Tile& tile = p.tile;
    const int row_bytes = tile.columns_in * tile.images * kPitch;
    const int wide_bytes = kGeneral ? tile.columns_in * tile.images * kWidePitch<T> : 0;
    EFFNET_FAST_DYNAMIC_SHARED(unsigned char, ring);          // [kRing][images][columns_in][kPitch]
    unsigned char* const wide = ring + U::kRing * row_bytes;  // [2][images][columns_in][kWidePitch]
    float* const affine = reinterpret_cast<float*>(wide + 2 * wide_bytes);  // [kLineRows][kLine]
    // Summed again at every use: not kept in a register meanwhile.
    const auto own_moments = [&] {
        return affine + U::kLineRows * kLine + opaque(int(threadIdx.x));
    };
    // [rows / kPoolRows][threads][kLanes]
    float* const cells = affine + U::kLineRows * kLine + U::kMomentRows * blockDim.x;

    const int part = blockIdx.x / tile.channel_blocks;
    const int channel0 = (blockIdx.x - part * tile.channel_blocks) * tile.vectors * kVector<T>;
    const int channels = shape.c - channel0;  // from here to the end of C
    // The same where it is rarely wanted: not kept in a register meanwhile.
    const auto first_channel = [&] {
        return opaque(int(blockIdx.x)) % tile.channel_blocks * tile.vectors * kVector<T>;
    };
    const int line = threadIdx.x % tile.lines;
    const int group = threadIdx.x / tile.lines % tile.groups;
    const int image = threadIdx.x / (tile.lines * tile.groups);
    const int c = channel0 + kLanes * line;
    const bool works = image < tile.images && c < shape.c;
    const int window = ((works ? image : 0) * tile.columns_in + group * kCols * S) * kOperandPitch +
                       line * kLanes * int(sizeof(Operand));

    // Batch norm's scale goes into the weights, and its shift is where accumulators begin.
    float weight[K * K][kLanes], shift[kLanes];  // kGeneral: shift is read from shared memory
#pragma unroll
    for (int l = 0; l < kLanes; l++) {
        const bool given = works && c + l < shape.c;
        float scale = p.out_act.factor;
        shift[l] = 0.0f;
        if (given && p.op.out_bn.mean.data != nullptr) {
            fold(p.op.out_bn, p.out_act.factor, c + l, &scale, &shift[l]);
        }
#pragma unroll
        for (int tap = 0; tap < K * K; tap++) {
            const T* const w = static_cast<const T*>(p.op.weight) + int64_t(c + l) * (K * K) + tap;
            weight[tap][l] = given ? scale * to_float(*w) : 0.0f;
        }
    }
    if (kGeneral) {
        for (int i = threadIdx.x; i < tile.vectors * kVector<T>; i += blockDim.x) {
            const bool given = p.op.in_affine != nullptr && i < channels;
            affine[i] = p.in_act.factor * (given ? p.op.in_affine[channel0 + i] : 1.0f);
            affine[kLine + i] =
                given ? p.in_act.factor * p.op.in_affine[shape.c + channel0 + i] : 0.0f;
        }
    }
    if (kGeneral) {
        RunningMoments<kLanes>{}.store(own_moments());
        // Of one line; its other threads store the same.
        for (int l = 0; works && l < kLanes; l++) {
            affine[2 * kLine + line * kLanes + l] = shift[l];
        }
    }
    const bool pools = p.op.reduce == Reduce::kPool;

    RowLoader<T, U::kSlots> loader;
    for (int item = part; item < tile.items; item += tile.parts) {
        for (int column_tile = 0; column_tile < tile.column_tiles; column_tile++) {
            // Here rather than outside: registers are dearer than a division per tile.
            const int image0 = item / tile.strips * tile.images;
            const int p0 = (item % tile.strips) * tile.rows;
            const int rows = min(tile.rows, shape.p - p0);
            const int steps = (rows - 1) * S + K;
            const int h0 = p0 * S - shape.pad_top;
            const int q0 = column_tile * tile.groups * kCols;
            const int q = q0 + group * kCols;
            // Columns of y behind this thread's accumulators; none for a thread without work.
            const int columns = works && image0 + image < shape.n ? shape.q - q : 0;
            const bool whole = !kGeneral || p.lanes;  // all of its channels exist
            // Of the row that ends at step 0, were there one.
            const int64_t y0 =
                ((int64_t(image0 + image) * shape.p + p0 - (K - 1) / S) * shape.q + q) * shape.c +
                c;
            unsigned char* const y =
                opaque_global(static_cast<unsigned char*>(p.op.y) + y0 * int64_t(sizeof(T)));
            __syncthreads();  // the ring's last rows have been read; the affine is there
            loader.template place<kOperandPitch, Operand>(
                tile, p.op.x, shape.n, shape.w, shape.c, image0, h0, q0 * S - shape.pad_left,
                first_channel(), kGeneral ? wide : ring, kGeneral ? 2 : U::kRing,
                kGeneral ? wide_bytes : row_bytes);
            // Steps first ... last - 1 read rows that are in x.
            const int first = max(0, -h0), last = min(steps, shape.h - h0);
            const auto in_x = [&](int step) {
                return unsigned(step - first) < unsigned(last - first);
            };
            const auto start_copies = [&](const unsigned char* base, int step, int ring_offset) {
                loader.template copy<!kGeneral>(base, step, p.x_row_bytes, ring + ring_offset,
                                                p.vectors, channels);
            };
#pragma unroll
            for (int step = 0; step < U::kRing - 1; step++) {
                if (in_x(step)) start_copies(loader.source, step, step * row_bytes);
                commit_async();
            }
            const unsigned char* const ahead =
                opaque_global(loader.source + int64_t(U::kRing - 1) * p.x_row_bytes);

            float strip_pool[kLanes] = {};
            // Output rows that begin above x find their accumulators as they are set here.
            float acc[U::kAccumulators][kCols][kLanes];
#pragma unroll
            for (int i = 0; i < U::kAccumulators * kCols * kLanes; i++) {
                acc[i / (kCols * kLanes)][i / kLanes % kCols][i % kLanes] = shift[i % kLanes];
            }
            // The step that ends a strip of kPoolRows rows, and with it the sums in `pool`.
            int flush = pools ? min((kPoolRows - 1) * S + K - 1, steps - 1) : steps;
            for (int step0 = 0; step0 < steps; step0 += U::kRing) {
#pragma unroll
                for (int phase = 0; phase < U::kRing; phase++) {
                    const int step = step0 + phase;
                    if (step >= steps) break;
                    // General: no address per phase in a register of its own.
                    const int bytes = kGeneral ? opaque(row_bytes) : row_bytes;
                    const unsigned char* row = ring + phase * bytes + window;
                    wait_async<U::kRing - 2>();
                    if constexpr (kGeneral) {
                        unsigned char* const wide_row = wide + step % 2 * opaque(wide_bytes);
                        row = wide_row + window;
                        if (in_x(step)) {
                            const float* const a = affine + loader.channel;
                            loader.widen(ring + phase * bytes, wide_row,
                                         [&](float (&v)[kVector<T>]) {
#pragma unroll
                                             for (int e = 0; e < kVector<T>; e++) {
                                                 v[e] = fmaf(v[e], a[e], a[kLine + e]);
                                             }
                                             apply<T>(p.in_act, v);
                                         });
                        }
                    }
                    __syncthreads();
                    // The row before this one has been read by all: its place takes the next row.
                    if (step < last - (U::kRing - 1)) {
                        start_copies(ahead, step, (phase + U::kRing - 1) % U::kRing * bytes);
                    }
                    commit_async();
                    // At tap row i this row adds to the output row that began i rows ago.
                    const auto accumulator = [&](int i) {
                        return (phase - i + U::kRing * K) / S % U::kAccumulators;
                    };
                    float start[kLanes];  // of a new output row
#pragma unroll
                    for (int l = 0; l < kLanes; l++) {
                        start[l] = kGeneral ? affine[2 * kLine + line * kLanes + l] : shift[l];
                    }
                    if (in_x(step)) {
#pragma unroll
                        for (int column = 0; column < U::kColumns; column++) {
                            float v[kLanes];
                            load_some(
                                reinterpret_cast<const Operand*>(row + column * kOperandPitch), v);
#pragma unroll
                            for (int i = phase % S; i < K; i += S) {
#pragma unroll
                                for (int j = 0; j < kCols; j++) {
                                    const int tap = column - j * S;
                                    if (tap < 0 || tap >= K) continue;
                                    float (&sum)[kLanes] = acc[accumulator(i)][j];
#pragma unroll
                                    for (int l = 0; l < kLanes; l++) {
                                        sum[l] = fmaf(v[l], weight[i * K + tap][l],
                                                      i + tap == 0 ? start[l] : sum[l]);
                                    }
                                }
                            }
                        }
                    }
                    if ((phase - (K - 1) + U::kRing * S) % S != 0 || step < K - 1) continue;
                    // That was the last tap row of the output row that began K - 1 rows ago.
                    float (&done)[kCols][kLanes] = acc[accumulator(K - 1)];
                    if (kGeneral && p.op.reduce == Reduce::kStats && columns > 0) {
                        const bool fresh = item < tile.parts && column_tile == 0;
                        RunningMoments<kLanes> moments;
                        moments.load(own_moments());
                        if (fresh && step == K - 1) {
#pragma unroll
                            for (int l = 0; l < kLanes; l++) moments.shift[l] = done[0][l];
                        }
#pragma unroll
                        for (int j = 0; j < kCols; j++) {
                            if (j < columns) moments.add(done[j]);
                        }
                        const int seen = (step - (K - 1)) / S + 1;
                        if (fresh && (seen == 2 || seen == 8)) {
                            moments.rebase(float(seen * min(columns, kCols)));
                        }
                        moments.store(own_moments());
                    }
                    if (!kGeneral || p.finish) {
                        apply<T>(p.out_act, reinterpret_cast<float (&)[kCols * kLanes]>(done));
                    }
                    unsigned char* const y_row =
                        opaque_global(y + int64_t(step / S) * p.y_row_bytes);
                    float row_pool[kLanes] = {};  // kGeneral: added to the thread's shared column
                    float (&pool)[kLanes] = kGeneral ? row_pool : strip_pool;
                    const int column_bytes = opaque(p.y_column_bytes);
                    const auto finish_column = [&](int j) {
                        store_some(reinterpret_cast<T*>(y_row + int64_t(j) * column_bytes),
                                   done[j]);
#pragma unroll
                        for (int l = 0; l < kLanes; l++) {
                            pool[l] += done[j][l];
                        }
                    };
                    if (columns >= kCols && whole) {
#pragma unroll
                        for (int j = 0; j < kCols; j++) finish_column(j);
                    } else if (whole) {
#pragma unroll
                        for (int j = 0; j < kCols; j++) {
                            if (j < columns) finish_column(j);
                        }
                    } else {
#pragma unroll
                        for (int i = 0; i < kCols * kLanes; i++) {
                            const int j = i / kLanes, l = i % kLanes;
                            if (j >= columns || c + l >= shape.c) continue;
                            pool[l] += done[j][l];
                            reinterpret_cast<T*>(y_row + int64_t(j) * column_bytes)[l] =
                                from_float<T>(done[j][l]);
                        }
                    }
                    if (kGeneral && pools) {
#pragma unroll
                        for (int l = 0; l < kLanes; l++) {
                            own_moments()[(3 * l + 1) * blockDim.x] += row_pool[l];
                        }
                    }
                    if (step == flush) {
                        // A thread's own cells, so without a barrier; column tiles add up.
                        float* const cell =
                            cells +
                            ((step - (K - 1)) / S / kPoolRows * blockDim.x + threadIdx.x) * kLanes;
#pragma unroll
                        for (int l = 0; l < kLanes; l++) {
                            float& sum =
                                kGeneral ? own_moments()[(3 * l + 1) * blockDim.x] : strip_pool[l];
                            cell[l] = column_tile > 0 ? cell[l] + sum : sum;
                            sum = 0.0f;
                        }
                        flush = min(flush + kPoolRows * S, steps - 1);
                    }
                }
            }
        }
        if (pools) {
            __syncthreads();
            store_pool<kLanes>(cells, p, item, first_channel());
        }
    }
    if (kGeneral && p.op.reduce == Reduce::kStats) {
        // A thread that is idle in its first tile is so in all.
        const int own_part = opaque(int(blockIdx.x)) / tile.channel_blocks;
        int count = 0;
        for (int item = own_part; works && item < tile.items; item += tile.parts) {
            const bool exists = item / tile.strips * tile.images + image < shape.n;
            const int rows = min(tile.rows, shape.p - item % tile.strips * tile.rows);
            for (int q = group * kCols; exists && q < shape.q; q += tile.groups * kCols) {
                count += rows * min(kCols, shape.q - q);
            }
        }
        RunningMoments<kLanes> moments;
        moments.load(own_moments());
        __syncthreads();
        store_moments(
            moments, count, p, own_part, first_channel(), reinterpret_cast<float*>(ring),
            kLanes * tile.lines, tile.groups * tile.images, [](int i) { return i % kLanes; },
            [&](int i, int s) { return s * tile.lines + i / kLanes; });
    }
}

bool finishes(const DepthwiseArgs& args) {
    return args.out_bn.mean.data != nullptr || args.out_act != Activation::kIdentity;
}

// fp32 as inference has it, in whole vectors, has a kernel of its own; 16-bit types of whole
// vectors are taken by depthwise_tensor.cu.
bool general(const DepthwiseArgs& args) {
    return prologue(args) || args.shape.dtype != DType::kFloat32 ||
           !whole_vectors(args.x, args.shape.dtype, args.shape.c);
}

bool supported(const DepthwiseArgs& args) {
    const DepthwiseShape& s = args.shape;
    return sound(s) && !(finishes(args) && args.reduce == Reduce::kStats);
}

// The same for <op>_workspace and <op>.
template <class T, int K, int S, bool kGeneral>
Tile tile_of(const DepthwiseArgs& args) {
    using U = FwdUnroll<T, K, S, kGeneral>;
    const DepthwiseShape& s = args.shape;
    TileLimits limits = {};
    limits.vector = kVector<T>, limits.lanes = U::kLanes;
    limits.columns = kCols, limits.columns_in = kCols * S, limits.halo = K - S;
    limits.slots = U::kSlots, limits.threads = U::kThreads, limits.resident = kFwdResident;
    limits.max_rows = kMaxFwdRows;
    limits.images =
        std::min(images_in_reach(args.x), images_in_reach(dense_map(args.y, s.p, s.q, s.c)));
    limits.pixel_bytes = U::kPixelBytes;
    const int cells = kMaxFwdRows / kPoolRows * U::kLanes;  // per thread
    limits.shared_bytes =
        kMaxSharedBytes -
        int(sizeof(float)) * (U::kLineRows * U::kLine + (U::kMomentRows + cells) * U::kThreads);
    return make_tile(limits, s.n, s.c, s.p, s.q, kLineVectors);
}

template <class T, int K, int S, bool kGeneral>
cudaError_t launch_depthwise_fwd(FwdParams& p, cudaStream_t stream) {
    using U = FwdUnroll<T, K, S, kGeneral>;
    const DepthwiseShape& shape = p.op.shape;
    const Tile& tile = p.tile = tile_of<T, K, S, kGeneral>(p.op);
    const Map y = dense_map(p.op.y, shape.p, shape.q, shape.c);
    if (!offsets_fit(p.op.x, tile) || !offsets_fit(y, tile)) return cudaErrorInvalidValue;
    const int cells = p.op.reduce == Reduce::kPool ? tile.rows / kPoolRows * U::kLanes : 0;
    const size_t floats = U::kLineRows * U::kLine + (U::kMomentRows + cells) * tile.threads;
    const size_t stream_bytes =
        size_t(tile.columns_in) * tile.images * U::kPixelBytes + floats * sizeof(float);
    const size_t merge_bytes = (2 * U::kLanes + 1) * tile.threads * sizeof(float);
    const size_t shared = stream_bytes > merge_bytes ? stream_bytes : merge_bytes;
    p.lanes = shape.c % U::kLanes == 0;
    p.x_row_bytes = int(p.op.x.h_stride) * int(sizeof(T));
    p.y_column_bytes = shape.c * int(sizeof(T));
    p.y_row_bytes = shape.q * p.y_column_bytes;
    p.partials = static_cast<float*>(p.op.workspace);
    p.counts = p.partials == nullptr ? nullptr : p.partials + size_t(2) * shape.c * tile.parts;
    const dim3 grid(unsigned(tile.channel_blocks * tile.parts)), block(tile.threads);
    const cudaError_t status =
        launch(depthwise_fwd_kernel<T, K, S, kGeneral>, grid, block, shared, stream, p);
    if (status != cudaSuccess || p.op.reduce != Reduce::kStats) return status;
    return launch_merge_moments(p.partials, p.counts, tile.parts, shape.c, p.op.reduced, stream);
}

}  // namespace

size_t depthwise_workspace(const DepthwiseArgs& args) {
    if (!supported(args) || args.shape.n == 0 || args.reduce != Reduce::kStats) return 0;
    size_t bytes = 0;
    dispatch(args.shape, [&](auto* type, auto kernel, auto stride) {
        using T = std::remove_pointer_t<decltype(type)>;
        const Tile tile = tile_of<T, kernel.value, stride.value, true>(args);
        // Which kernel it will be depends on pointers too.
        const int parts = std::max(tile.parts, tensor_parts(args));
        bytes = (size_t(2) * args.shape.c + 1) * parts * sizeof(float);
        return cudaSuccess;
    });
    return bytes;
}

cudaError_t depthwise(const DepthwiseArgs& args, cudaStream_t stream) {
    FwdParams p = {};
    p.op = args;
    const DepthwiseShape& shape = args.shape;
    if (!supported(args) || !make_act(args.in_act, &p.in_act) ||
        !make_act(args.out_act, &p.out_act)) {
        return cudaErrorInvalidValue;
    }
    if (shape.n == 0) {
        return args.reduce == Reduce::kStats
                   ? launch_zero(args.reduced, 2 * int64_t(shape.c), stream)
                   : cudaSuccess;
    }
    p.finish = finishes(args);
    if (tensor_takes(args)) return depthwise_tensor(p, stream);
    p.vectors = whole_vectors(args.x, shape.dtype, shape.c);
    return dispatch(shape, [&](auto* type, auto kernel, auto stride) {
        using T = std::remove_pointer_t<decltype(type)>;
        if constexpr (sizeof(T) == 4) {
            if (!general(p.op)) {
                return launch_depthwise_fwd<T, kernel.value, stride.value, false>(p, stream);
            }
        }
        return launch_depthwise_fwd<T, kernel.value, stride.value, true>(p, stream);
    });
}

}  // namespace effnet_fast
