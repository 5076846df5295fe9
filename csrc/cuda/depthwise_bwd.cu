// Depthwise convolution backward: input and weight gradient in one pass.
//
// Both are sums over the same products' operands. With h = S u - top + e, i = e + S m (and w, j
// likewise from v, f, l), tap (i, j) joins x[h, w] and y[u - m, v - l]:
//
//     dx[h, w] += dy[u - m, v - l] * weight[i, j]
//     dweight[i, j] += dy[u - m, v - l] * a[h, w]
//
// so that a thread that owns kCols pixels of a row of x (and so a few positions v) reads each value
// of its window of dy once and uses it for both; and each stride-2 tap has one parity (e, f), known
// at compile time.
//
// Data path. Rows of g and y come down through landing buffers by asynchronous copies; the thread
// that copied a vector rebuilds dy from it (gradient.cuh), once per element, into a ring of
// kWindow + 1 fp32 rows. Rows of x land beside them and are activated by the thread that owns the
// pixel. One barrier per position row. Weight gradients stay in registers over all of a
// program's work items; then threads -> shared memory -> one row of partials -> second stage.
#include "cuda/depthwise_bwd.cuh"
#include "cuda/gradient.cuh"
#include "cuda/reduce.cuh"

namespace effnet_fast {
namespace {

constexpr int kMaxItemRows = 64;  // position rows per item
constexpr int kStages = 2;        // landing buffers
constexpr int kChannelRows = 9;   // scale, shift, a, b, mean, c of dy; scale, shift, mean of x

template <class T, int K, int S>
struct Unroll {
    static constexpr int kWindow = (K + S - 1) / S;  // rows and columns of dy behind a position
    static constexpr int kPositions = kCols / S;     // per thread and row
    static constexpr int kColumns = kPositions + kWindow - 1;
    static constexpr int kLanes = 2;
    // Of 9 taps and their gradients 128 registers hold all but a few bytes: 16 warps on a
    // multiprocessor, in small blocks, so that few wait at a barrier. Else 168, or 255 where
    // addresses of fp32's twice as many loads come on top.
    static constexpr bool kSmall = K == 3;
    static constexpr int kThreads = kSmall ? 160 : sizeof(T) == 4 ? 128 : 192;
    static constexpr int kResidentThreads = kSmall ? 512 : 2 * kThreads;
    static constexpr int kVectors = kSmall ? 4 : kLineVectors;  // of channels per block, at most
    static constexpr int kXSlots = kCols * kLanes * int(sizeof(T)) / kVectorBytes;
    // One vector a thread, rather than two of which most threads have one while all wait for the
    // others, costs 25 taps' larger tiles more columns than it saves them time.
    static constexpr int kOwnBytes = kPositions * kLanes * int(sizeof(T));
    static constexpr int kSlots = kSmall ? std::max(kOwnBytes / kVectorBytes, 1)
                                         : kOwnBytes / kVectorBytes + 1;
    static constexpr int kOutputs = K * K + kSums;
    // Bytes from pixel to pixel: of g and y, which only the thread that copied them reads; of x, of
    // which column groups are kCols pixels apart; of dy, in fp32.
    static constexpr int kOwnPitch = kVectors * kVectorBytes;
    static constexpr int kXPitch = kOwnPitch + kVectorBytes;
    static constexpr int kWidePitch = kOwnPitch * int(sizeof(float) / sizeof(T)) + kVectorBytes;
    static_assert(kCols * kXPitch % 128 == 64, "two column groups share no bank");
    static_assert(kCols % S == 0 && kXSlots >= 1, "whole positions and vectors per thread");
};

// dy of one vector from g (in v) and y. `channel`: kChannelRows rows of kLine parameters; `image`:
// gate and dpool, kLine each.
template <class T, int kLine>
__device__ __forceinline__ void rebuild(const Act& act, const float* channel, const float* image,
                                        const float (&y)[kVector<T>], float (&v)[kVector<T>]) {
    float slopes[kVector<T>];
#pragma unroll
    for (int e = 0; e < kVector<T>; e++) slopes[e] = fmaf(y[e], channel[e], channel[kLine + e]);
    to_slopes<T>(act, slopes);
#pragma unroll
    for (int e = 0; e < kVector<T>; e++) {
        const float h = fmaf(v[e], image[e], image[kLine + e]) * slopes[e];
        v[e] = bn_input_grad(h, y[e], channel[2 * kLine + e], channel[3 * kLine + e],
                             channel[4 * kLine + e], channel[5 * kLine + e]);
    }
}

template <class T, int K, int S>
__global__ void __launch_bounds__(Unroll<T, K, S>::kResidentThreads / 2, 2)
    depthwise_bwd_kernel(const BwdParams p) {
    using U = Unroll<T, K, S>;
    constexpr int kLanes = U::kLanes, kWindow = U::kWindow;
    constexpr int kLine = U::kVectors * kVector<T>;
    constexpr int kRing = kWindow + 1;
    const DepthwiseShape& shape = p.op.shape;
    const Tile& tile = p.tile;
    Tile x_tile = tile;  // the same threads over a row of x, without halo
    x_tile.columns_in = tile.groups * kCols;
    const int row_bytes = tile.columns_in * tile.images * U::kOwnPitch;
    const int wide_bytes = tile.columns_in * tile.images * U::kWidePitch;
    const int x_bytes = x_tile.columns_in * tile.images * U::kXPitch;
    EFFNET_FAST_DYNAMIC_SHARED(unsigned char, wide);             // [kRing][images][columns_in]
    unsigned char* const g_rows = wide + kRing * wide_bytes;     // [kStages][images][columns_in]
    unsigned char* const y_rows = g_rows + kStages * row_bytes;  // the same
    unsigned char* const x_rows = y_rows + kStages * row_bytes;  // [kStages][S][images][columns]
    float* const channel_rows = reinterpret_cast<float*>(x_rows + kStages * S * x_bytes);
    float* const image_rows = channel_rows + kChannelRows * kLine;  // [images][2][kLine]

    const int part = blockIdx.x / tile.channel_blocks;
    const int channel0 = (blockIdx.x - part * tile.channel_blocks) * tile.vectors * kVector<T>;
    const int channels = shape.c - channel0;
    const int line = threadIdx.x % tile.lines;
    const int group = threadIdx.x / tile.lines % tile.groups;
    const int image = threadIdx.x / (tile.lines * tile.groups);
    const int c = channel0 + kLanes * line;
    const bool works = image < tile.images && c < shape.c;
    const int place = works ? image : 0;
    const int window = (place * tile.columns_in + group * U::kPositions) * U::kWidePitch +
                       line * kLanes * int(sizeof(float));
    const int own_x =
        (place * x_tile.columns_in + group * kCols) * U::kXPitch + line * kLanes * int(sizeof(T));

    float weight[K * K][kLanes], dweight[K * K][kLanes] = {};
    float sum_h[kLanes] = {}, sum_hx[kLanes] = {};
    const bool undo = p.op.sums != nullptr;  // in_act, on dx
#pragma unroll
    for (int l = 0; l < kLanes; l++) {
        const bool given = works && c + l < shape.c;
#pragma unroll
        for (int tap = 0; tap < K * K; tap++) {
            const T* const w = static_cast<const T*>(p.op.weight) + int64_t(c + l) * (K * K) + tap;
            weight[tap][l] = given ? to_float(*w) : 0.0f;
        }
    }
    for (int i = threadIdx.x; i < tile.vectors * kVector<T>; i += blockDim.x) {
        const bool given = i < channels, affine = given && p.op.y_affine != nullptr;
        const float* const coef = p.op.coef + channel0 + i;
        channel_rows[i] = p.y_act.factor * (affine ? p.op.y_affine[channel0 + i] : 1.0f);
        channel_rows[kLine + i] =
            affine ? p.y_act.factor * p.op.y_affine[shape.c + channel0 + i] : 0.0f;
        const bool in_affine = given && p.op.in_affine != nullptr;
        channel_rows[6 * kLine + i] =
            p.in_act.factor * (in_affine ? p.op.in_affine[channel0 + i] : 1.0f);
        channel_rows[7 * kLine + i] =
            in_affine ? p.in_act.factor * p.op.in_affine[shape.c + channel0 + i] : 0.0f;
        channel_rows[8 * kLine + i] = given && undo ? p.op.in_norm[channel0 + i] : 0.0f;
        for (int row = 0; row < 4; row++) {
            channel_rows[(2 + row) * kLine + i] = given ? coef[int64_t(row) * shape.c] : 0.0f;
        }
    }

    const Map dense = {p.op.y, int64_t(shape.p) * shape.q * shape.c, int64_t(shape.q) * shape.c,
                       shape.c};
    RowLoader<T, U::kSlots, U::kOwnPitch> y_loader;
    RowLoader<T, U::kXSlots, U::kXPitch> x_loader;
    for (int item = part; item < tile.items; item += tile.parts) {
        const int image0 = item / tile.strips * tile.images;
        const int first_u = p.u0 + (item % tile.strips) * tile.rows;
        const int end_u = min(first_u + tile.rows, p.u1 + 1);
        __syncthreads();  // everything of the item before this has been read
        for (int i = threadIdx.x; i < tile.images * tile.vectors * kVector<T>; i += blockDim.x) {
            const int image_i = i / (tile.vectors * kVector<T>);
            const int channel = i - image_i * tile.vectors * kVector<T>;
            const int64_t at = int64_t(image0 + image_i) * shape.c + channel0 + channel;
            const bool given = image0 + image_i < shape.n && channel < channels;
            float* const to = image_rows + image_i * 2 * kLine + channel;
            to[0] = given && p.op.gate != nullptr ? p.op.gate[at] : 1.0f;
            to[kLine] = given && p.op.dpool != nullptr ? p.op.dpool[at] : 0.0f;
        }
        for (int column_tile = 0; column_tile < tile.column_tiles; column_tile++) {
            const int first_v = p.v0 + column_tile * tile.groups * U::kPositions;
            const int w0 = first_v * S - shape.pad_left + group * kCols;  // this thread's first
            // Columns that exist for this thread: those of x, or none.
            const int own_w = works && image0 + image < shape.n ? shape.w : 0;
            const bool whole = w0 >= 0 && w0 + kCols <= own_w;
            // Rows: the first position row is preceded by those that complete its window.
            const int u_start = first_u - (kWindow - 1);
            __syncthreads();  // the rows of the tile before this have been read
            y_loader.template place<U::kWidePitch, float>(tile, dense, shape.n, shape.q, shape.c,
                                                          image0, u_start, first_v - (kWindow - 1),
                                                          channel0, wide, kRing, wide_bytes);
            x_loader.template place<U::kXPitch, T>(
                x_tile, p.op.x, shape.n, shape.w, shape.c, image0, u_start * S - shape.pad_top,
                first_v * S - shape.pad_left, channel0, x_rows, 0, x_bytes);
            const unsigned char* const g_source =
                opaque_global(static_cast<const unsigned char*>(p.op.g) +
                              (y_loader.source - static_cast<const unsigned char*>(p.op.y)));
            const int64_t dx0 =
                ((int64_t(image0 + image) * shape.h + u_start * S - shape.pad_top) * shape.w + w0) *
                    shape.c +
                c;
            const auto in_y = [&](int u) { return unsigned(u) < unsigned(shape.p); };
            const auto in_x = [&](int h) { return unsigned(h) < unsigned(shape.h); };
            const auto start_copies = [&](int u) {
                const int stage = (u - u_start) % kStages;
                if (u < end_u && in_y(u)) {
                    y_loader.template copy<false>(y_loader.source, u - u_start, p.y_row_bytes,
                                                  y_rows + stage * row_bytes, p.vectors, channels);
                    y_loader.template copy<false>(g_source, u - u_start, p.y_row_bytes,
                                                  g_rows + stage * row_bytes, p.vectors, channels);
                }
                if (u >= first_u && u < end_u) {
#pragma unroll
                    for (int e = 0; e < S; e++) {
                        if (!in_x(u * S - shape.pad_top + e)) continue;
                        x_loader.template copy<false>(
                            x_loader.source, (u - u_start) * S + e, p.x_row_bytes,
                            x_rows + (stage * S + e) * x_bytes, p.vectors, channels);
                    }
                }
                commit_async();
            };
#pragma unroll
            for (int stage = 0; stage < kStages - 1; stage++) start_copies(u_start + stage);
            __syncthreads();  // the images' gates, and zeros outside, are there

            int newest = 0;  // ring row of dy row u
            for (int u = u_start; u < end_u; u++, newest = newest == kRing - 1 ? 0 : newest + 1) {
                const int stage = (u - u_start) % kStages;
                wait_async<kStages - 2>();
                if (in_y(u)) {
#pragma unroll
                    for (int s = 0; s < U::kSlots; s++) {
                        if (!y_loader.inside[s]) continue;
                        const int at = opaque(y_loader.pixel) + s * y_loader.pixel_step;
                        const int from = stage * row_bytes + at * U::kOwnPitch +
                                         y_loader.channel * int(sizeof(T));
                        float y[kVector<T>], dy[kVector<T>];
                        load_some(reinterpret_cast<const T*>(y_rows + from), y);
                        load_some(reinterpret_cast<const T*>(g_rows + from), dy);
                        rebuild<T, kLine>(
                            p.y_act, channel_rows + y_loader.channel,
                            image_rows + y_loader.image[s] * 2 * kLine + y_loader.channel, y, dy);
                        float* const to = reinterpret_cast<float*>(wide + newest * wide_bytes +
                                                                   at * U::kWidePitch) +
                                          y_loader.channel;
#pragma unroll
                        for (int e = 0; e < kVector<T>; e += 4) {
                            store_some(to + e, {dy[e], dy[e + 1], dy[e + 2], dy[e + 3]});
                        }
                    }
                }
                __syncthreads();
                // The stage and the ring row that are filled next have been read by all.
                start_copies(u + kStages - 1);
                if (u < first_u) continue;
#pragma unroll
                for (int e = 0; e < S; e++) {
                    const int h = u * S - shape.pad_top + e;
                    if (!in_x(h)) continue;
                    float scale[kLanes], shift[kLanes], mean[kLanes];
                    const float* const own_rows = channel_rows + line * kLanes;
                    load_some(own_rows + 6 * kLine, scale);
                    load_some(own_rows + 7 * kLine, shift);
                    const T* const x_own =
                        reinterpret_cast<const T*>(x_rows + (stage * S + e) * x_bytes + own_x);
                    float slopes[kCols][kLanes], a[kCols][kLanes], dx[kCols][kLanes] = {};
#pragma unroll
                    for (int j = 0; j < kCols; j++) {
                        load_some(x_own + j * (U::kXPitch / int(sizeof(T))), a[j]);
#pragma unroll
                        for (int l = 0; l < kLanes; l++) {
                            a[j][l] = fmaf(a[j][l], scale[l], shift[l]);
                        }
                    }
                    apply_and_slopes<T>(p.in_act, reinterpret_cast<float (&)[kCols * kLanes]>(a),
                                        reinterpret_cast<float (&)[kCols * kLanes]>(slopes));
                    if (!whole) {
#pragma unroll
                        for (int i = 0; i < kCols * kLanes; i++) {
                            if (unsigned(w0 + i / kLanes) < unsigned(own_w)) continue;
                            a[i / kLanes][i % kLanes] = slopes[i / kLanes][i % kLanes] = 0.0f;
                        }
                    }
#pragma unroll
                    for (int m = 0; m < kWindow; m++) {
                        const int i = e + S * m;  // the tap's row
                        if (i >= K || !in_y(u - m)) continue;
                        const int ring_row = newest >= m ? newest - m : newest - m + kRing;
                        const unsigned char* const row = wide + ring_row * wide_bytes + window;
#pragma unroll
                        for (int column = 0; column < U::kColumns; column++) {
                            float dy[kLanes];
                            load_some(reinterpret_cast<const float*>(row + column * U::kWidePitch),
                                      dy);
#pragma unroll
                            for (int j = 0; j < kCols; j++) {
                                // Position j / S, parity f = j % S, l = how far dy lies behind it.
                                const int behind = j / S + kWindow - 1 - column;
                                const int tap = j % S + S * behind;
                                if (behind < 0 || behind >= kWindow || tap >= K) continue;
#pragma unroll
                                for (int l = 0; l < kLanes; l++) {
                                    float& dw = dweight[i * K + tap][l];
                                    dx[j][l] = fmaf(dy[l], weight[i * K + tap][l], dx[j][l]);
                                    dw = fmaf(dy[l], a[j][l], dw);
                                }
                            }
                        }
                    }
                    if (p.op.dx == nullptr) continue;
                    if (undo) {
                        load_some(own_rows + 8 * kLine, mean);
#pragma unroll
                        for (int j = 0; j < kCols; j++) {
                            float x[kLanes];  // again: eight registers less until here
                            load_some(x_own + j * (U::kXPitch / int(sizeof(T))), x);
                            if (unsigned(w0 + j) >= unsigned(own_w)) continue;
#pragma unroll
                            for (int l = 0; l < kLanes; l++) {
                                dx[j][l] *= slopes[j][l];
                                sum_h[l] += dx[j][l];
                                sum_hx[l] = fmaf(dx[j][l], x[l] - mean[l], sum_hx[l]);
                            }
                        }
                    }
                    const int64_t row =
                        dx0 * int64_t(sizeof(T)) + int64_t((u - u_start) * S + e) * p.dx_row_bytes;
                    unsigned char* const to = static_cast<unsigned char*>(p.op.dx) + row;
                    const auto residual = [&](int64_t at) {  // called only where there is one
                        return reinterpret_cast<const T*>(
                            static_cast<const unsigned char*>(p.op.residual_grad) + row + at);
                    };
                    const int column_bytes = opaque(p.dx_column_bytes);
                    const bool add = p.op.residual_grad != nullptr;
                    if (whole && p.lanes) {
#pragma unroll
                        for (int j = 0; add && j < kCols; j++) {
                            float r[kLanes];
                            load_some(residual(int64_t(j) * column_bytes), r);
#pragma unroll
                            for (int l = 0; l < kLanes; l++) dx[j][l] += r[l];
                        }
#pragma unroll
                        for (int j = 0; j < kCols; j++) {
                            store_some(reinterpret_cast<T*>(to + int64_t(j) * column_bytes), dx[j]);
                        }
                        continue;
                    }
#pragma unroll
                    for (int i = 0; i < kCols * kLanes; i++) {
                        const int j = i / kLanes, l = i % kLanes;
                        if (unsigned(w0 + j) >= unsigned(own_w) || c + l >= shape.c) continue;
                        const int64_t at = int64_t(j) * column_bytes + l * int64_t(sizeof(T));
                        const float r = add ? to_float(*residual(at)) : 0.0f;
                        *reinterpret_cast<T*>(to + at) = from_float<T>(dx[j][l] + r);
                    }
                }
            }
        }
    }
    // [kOutputs][kLanes][threads], over the rings.
    float* const all = reinterpret_cast<float*>(wide);
    __syncthreads();
#pragma unroll
    for (int l = 0; l < kLanes; l++) {
#pragma unroll
        for (int tap = 0; tap < K * K; tap++) {
            all[(tap * kLanes + l) * blockDim.x + threadIdx.x] = dweight[tap][l];
        }
        all[(K * K * kLanes + l) * blockDim.x + threadIdx.x] = sum_h[l];
        all[((K * K + 1) * kLanes + l) * blockDim.x + threadIdx.x] = sum_hx[l];
    }
    __syncthreads();
    const int per_output = tile.lines * kLanes;
    for (int i = threadIdx.x; i < U::kOutputs * per_output; i += blockDim.x) {
        const int output = i / per_output, channel = i - output * per_output;
        if (channel >= channels) continue;
        const float* const own =
            all + (output * kLanes + channel % kLanes) * blockDim.x + channel / kLanes;
        float sum = 0.0f;
        for (int g = 0; g < tile.groups * tile.images; g++) sum += own[g * tile.lines];
        p.partials[(int64_t(part) * U::kOutputs + output) * shape.c + channel0 + channel] = sum;
    }
}

// The parts' rows [taps + kSums][C], summed in their order, to dw [C][taps] and sums [2][C].
constexpr int kSumColumns = 32;
constexpr int kSumRows = 8;
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    depthwise_bwd_sum_kernel(const float* partials, int parts, int taps, int c, const float* norm,
                             float* dw, float* sums) {
    __shared__ float partial[kSumRows][kSumColumns];
    const int column = threadIdx.x % kSumColumns, row = threadIdx.x / kSumColumns;
    const int64_t length = int64_t(taps + kSums) * c;
    const int64_t at = int64_t(blockIdx.x) * kSumColumns + column;
    float sum = 0.0f;
    if (at < length) {
        for (int part = row; part < parts; part += kSumRows) sum += partials[part * length + at];
    }
    partial[row][column] = sum;
    __syncthreads();
    if (row != 0 || at >= length) return;
    for (int other = 1; other < kSumRows; other++) sum += partial[other][column];
    const int output = int(at / c), channel = int(at - int64_t(output) * c);
    if (output < taps) {
        if (dw != nullptr) dw[int64_t(channel) * taps + output] = sum;
    } else if (sums != nullptr) {
        sums[at - int64_t(taps) * c] = output == taps ? sum : sum * norm[c + channel];
    }
}

bool supported(const DepthwiseBwdArgs& args) {
    return sound(args.shape) &&
           (args.sums == nullptr || (args.in_affine != nullptr && args.in_norm != nullptr));
}

template <class T, int K, int S>
struct Layout {
    using U = Unroll<T, K, S>;
    // Per column of dy; x's S columns and rows per position are its neighbours.
    static constexpr int kRowBytes =
        (U::kWindow + 1) * U::kWidePitch + 2 * kStages * U::kOwnPitch;
    static constexpr int kPixelBytes = kRowBytes + kStages * S * S * U::kXPitch;
    static constexpr int kParameterBytes = kChannelRows * U::kVectors * kVector<T> * 4;
    static constexpr int kImageBytes = 2 * U::kVectors * kVector<T> * 4;

    static Tile tile(const DepthwiseBwdArgs& args, BwdParams* p) {
        const DepthwiseShape& s = args.shape;
        place_positions(args, p);
        TileLimits limits = {};
        limits.vector = kVector<T>, limits.lanes = U::kLanes, limits.columns = U::kPositions;
        limits.columns_in = U::kPositions, limits.halo = U::kWindow - 1;
        limits.slots = U::kSlots, limits.threads = U::kThreads;
        limits.resident = U::kResidentThreads / U::kThreads;
        limits.resident_threads = U::kResidentThreads;
        limits.max_rows = kMaxItemRows;
        limits.images =
            std::min({images_in_reach(args.x), images_in_reach(dense_map(args.y, s.p, s.q, s.c)),
                      images_in_reach(dense_map(args.dx, s.h, s.w, s.c))});
        limits.pixel_bytes = kPixelBytes + kImageBytes / 4;
        limits.shared_bytes = kMaxSharedBytes - kParameterBytes - kImageBytes;
        return make_tile(limits, s.n, s.c, p->u1 - p->u0 + 1,
                         (s.w - 1 + s.pad_left) / S - p->v0 + 1, U::kVectors);
    }

    static size_t shared(const Tile& tile) {
        const size_t columns = size_t(tile.columns_in) * tile.images;
        const size_t x_columns = size_t(tile.groups) * kCols * tile.images;
        const size_t stream = columns * kRowBytes + x_columns * (kStages * S * U::kXPitch) +
                              kParameterBytes + tile.images * kImageBytes;
        const size_t merge = size_t(U::kOutputs) * U::kLanes * tile.threads * sizeof(float);
        return stream > merge ? stream : merge;
    }
};

template <class T, int K, int S>
cudaError_t launch_depthwise_bwd(BwdParams& p, cudaStream_t stream) {
    using L = Layout<T, K, S>;
    const DepthwiseShape& s = p.op.shape;
    const Tile& tile = p.tile = L::tile(p.op, &p);
    const Map y = dense_map(p.op.y, s.p, s.q, s.c), dx = dense_map(p.op.dx, s.h, s.w, s.c);
    if (!offsets_fit(p.op.x, tile) || !offsets_fit(y, tile) || !offsets_fit(dx, tile)) {
        return cudaErrorInvalidValue;
    }
    p.vectors = whole_maps(p.op);
    p.lanes = s.c % Unroll<T, K, S>::kLanes == 0;
    p.x_row_bytes = int(p.op.x.h_stride) * int(sizeof(T));
    p.y_row_bytes = s.q * s.c * int(sizeof(T));
    p.dx_column_bytes = s.c * int(sizeof(T));
    p.dx_row_bytes = s.w * p.dx_column_bytes;
    p.partials = static_cast<float*>(p.op.workspace);
    const dim3 grid(unsigned(tile.channel_blocks * tile.parts)), block(tile.threads);
    return launch(depthwise_bwd_kernel<T, K, S>, grid, block, L::shared(tile), stream, p);
}

}  // namespace

size_t depthwise_bwd_workspace(const DepthwiseBwdArgs& args) {
    if (!supported(args) || args.shape.n == 0) return 0;
    size_t bytes = 0;
    dispatch(args.shape, [&](auto* type, auto kernel, auto stride) {
        using T = std::remove_pointer_t<decltype(type)>;
        BwdParams p = {};
        const Tile tile = Layout<T, kernel.value, stride.value>::tile(args, &p);
        bytes = size_t(kernel.value * kernel.value + kSums) * args.shape.c * tile.parts * 4;
        return cudaSuccess;
    });
    return bytes;
}

cudaError_t depthwise_bwd(const DepthwiseBwdArgs& args, cudaStream_t stream) {
    BwdParams p = {};
    p.op = args;
    if (!supported(args) || !make_act(args.y_act, &p.y_act) || !make_act(args.in_act, &p.in_act)) {
        return cudaErrorInvalidValue;
    }
    const DepthwiseShape& shape = args.shape;
    if (shape.n == 0) {
        const int64_t taps = int64_t(shape.kernel) * shape.kernel;
        const cudaError_t status = launch_zero(args.dw, taps * shape.c, stream);
        return status != cudaSuccess ? status
                                     : launch_zero(args.sums, int64_t(2) * shape.c, stream);
    }
    const cudaError_t status = dispatch(shape, [&](auto* type, auto kernel, auto stride) {
        using T = std::remove_pointer_t<decltype(type)>;
        return launch_depthwise_bwd<T, kernel.value, stride.value>(p, stream);
    });
    if (status != cudaSuccess || (args.dw == nullptr && args.sums == nullptr)) return status;
    const int taps = shape.kernel * shape.kernel;
    const int64_t length = int64_t(taps + kSums) * shape.c;
    return launch(depthwise_bwd_sum_kernel, dim3(unsigned(ceil_div(length, int64_t(kSumColumns)))),
                  dim3(kSumColumns * kSumRows), 0, stream, p.partials, p.tile.parts, taps, shape.c,
                  args.in_norm, args.dw, args.sums);
}

}  // namespace effnet_fast
