// Depthwise convolution backward on tensor cores, for bf16, stride 1 and aligned vectors: input and
// weight gradient in one pass.
//
// With u = h + top, v = w + left:
//
//     dx[h, w] += dy[u - i, v - j] * weight[i, j]
//     dweight[i, j] += dy[u - i, v - j] * x[h, w]          x after its affine and activation
//
// The first is a forward convolution of dy with the taps turned around, as depthwise_tensor.cu has
// it. The second is, per tap, the diagonal of a product (8 channels x pixels) (pixels x 8
// channels). fp32 operands are split into high and low halves: high high + low high + high low.
//
// Data path. Rows of g, y and x come down by asynchronous copies, kStages of them. A block owns
// kOctets octets of columns, and a warp one vector of channels. At step s it rebuilds row s + 1 of
// dy (gradient.cuh), into a ring of K + 1 split rows; activates its own pixels of row s of x, whose
// halves stay in registers for K steps; adds row s of dy to the K rows of dx that it belongs to, of
// which one is then complete; and multiplies row s - K + 1 of dy with the K rows of x that its taps
// join it to. One barrier per step.
#include "cuda/depthwise_tensor_bwd.cuh"

namespace effnet_fast {
namespace {

using T = __nv_bfloat16;

template <int K>
__global__ void __launch_bounds__(TensorBwd<K>::kThreads, TensorBwd<K>::kResident)
    depthwise_tensor_bwd_kernel(const BwdParams p) {
    using U = TensorBwd<K>;
    constexpr int kLine = kTensorLine;
    const DepthwiseShape& shape = p.op.shape;
    const Tile& tile = p.tile;
    Tile x_tile = tile;  // a row of x, without halo
    x_tile.columns_in = tile.groups * kOctet;
    const int octets = tile.groups * tile.images;
    const int row_bytes = tile.columns_in * tile.images * kTensorPitch;
    const int x_bytes = U::x_row_bytes(octets);
    EFFNET_FAST_DYNAMIC_SHARED(unsigned char, split);                  // [kSplits][high, low][row]
    unsigned char* const g_rows = split + 2 * U::kSplits * row_bytes;  // [kStages][row]
    unsigned char* const y_rows = g_rows + U::kStages * row_bytes;     // the same
    unsigned char* const x_rows = y_rows + U::kStages * row_bytes;     // [kStages][row of x]
    float* const channel_rows = reinterpret_cast<float*>(x_rows + U::kStages * x_bytes);
    float* const image_rows = channel_rows + U::kChannelRows * kLine;  // [images][kImageRows]

    const int part = blockIdx.x / tile.channel_blocks;
    const int channel0 = (blockIdx.x - part * tile.channel_blocks) * tile.vectors * kVector<T>;
    const int lane = threadIdx.x % 32, vector = threadIdx.x / 32;  // a warp's
    const int g = lane / 4, t = lane % 4;
    const int channel = vector * kVector<T> + 2 * t;  // the lane's first of two
    const int own = vector * kVectorBytes + 4 * t;    // their place in a pixel
    const int own_x = own + g * kTensorPitch;         // in a row of x
    const bool given = channel0 + channel < shape.c;
    const bool undo = p.op.sums != nullptr;  // in_act, on dx
    const auto first_channel = [&] {
        return opaque(int(blockIdx.x)) % tile.channel_blocks * tile.vectors * kVector<T>;
    };
    // Where the window of octet o begins in a split row; those that do not exist: of octet 0.
    const auto begin = [&](int o) {
        const int real = o < octets ? o : 0;
        return (real / tile.groups * tile.columns_in + real % tile.groups * kOctet) * kTensorPitch;
    };
    // This lane's row of the matrices that products read; m is which.
    const int m = lane / 8;
    const int row_place = lane % 8 * kTensorPitch + vector * kVectorBytes;
    int pairs_place[U::kTiles], turned_place[U::kTiles];
#pragma unroll
    for (int i = 0; i < U::kTiles; i++) {
        pairs_place[i] = row_place + begin(2 * i + m % 2) + m / 2 * kTensorPitch;
        turned_place[i] = row_place + begin(2 * i + m / 2);
    }
    // Of one column: both tiles, or both halves of one.
    const int singles_place =
        U::kTiles == 2 ? row_place + begin(m) : row_place + begin(m % 2) + m / 2 * row_bytes;

    // Taps turned around, on diagonals.
    uint32_t taps[K][K];
#pragma unroll
    for (int tap = 0; tap < K * K; tap++) {
        const int c = channel0 + vector * kVector<T> + g;
        const uint16_t* const w =
            static_cast<const uint16_t*>(p.op.weight) + int64_t(c) * (K * K) + tap;
        taps[K - 1 - tap / K][K - 1 - tap % K] =
            g / 2 == t && c < shape.c ? uint32_t(*w) << 16 * (g % 2) : 0;
    }
    // Of tap row i: two columns each, then one column's high and low halves.
    float dw[K][U::kPairs + 1][4] = {};
    float sum_h[2] = {}, sum_hx[2] = {};
    for (int i = threadIdx.x; i < tile.vectors * kVector<T>; i += blockDim.x) {
        const int c = channel0 + i;
        const bool real = c < shape.c, affine = real && p.op.y_affine != nullptr;
        const bool in_affine = real && p.op.in_affine != nullptr;
        channel_rows[i] = p.y_act.factor * (affine ? p.op.y_affine[c] : 1.0f);
        channel_rows[kLine + i] = affine ? p.y_act.factor * p.op.y_affine[shape.c + c] : 0.0f;
        for (int row = 1; row < 4; row++) {
            channel_rows[(1 + row) * kLine + i] =
                real ? p.op.coef[int64_t(row) * shape.c + c] : 0.0f;
        }
        channel_rows[5 * kLine + i] = p.in_act.factor * (in_affine ? p.op.in_affine[c] : 1.0f);
        channel_rows[6 * kLine + i] =
            in_affine ? p.in_act.factor * p.op.in_affine[shape.c + c] : 0.0f;
        channel_rows[7 * kLine + i] = real && undo ? p.op.in_norm[c] : 0.0f;
    }

    const Map dense = {p.op.y, int64_t(shape.p) * shape.q * shape.c, int64_t(shape.q) * shape.c,
                       shape.c};
    TensorLoader<T, 1, U::kSlots> y_loader;
    TensorLoader<T, 1, 1> x_loader;
    for (int item = part; item < tile.items; item += tile.parts) {
        const int image0 = item / tile.strips * tile.images;
        const int first_u = p.u0 + (item % tile.strips) * tile.rows;
        // Steps: K - 1 rows of dy precede the first row of dx, K - 1 rows of taps follow the last.
        const int u_start = first_u - (K - 1);
        const int last = min(first_u + tile.rows, p.u1 + 1) - u_start, steps = last + K - 1;
        __syncthreads();  // everything of the item before this has been read
        for (int i = threadIdx.x; i < tile.images * tile.vectors * kVector<T>; i += blockDim.x) {
            const int image = i / (tile.vectors * kVector<T>);
            const int at = i - image * tile.vectors * kVector<T>, c = channel0 + at;
            const bool real = image0 + image < shape.n && c < shape.c;
            const float a = real ? p.op.coef[c] : 0.0f;
            const int64_t from = int64_t(image0 + image) * shape.c + c;
            float* const to = image_rows + image * U::kImageRows * kLine + at;
            to[0] = a * (real && p.op.gate != nullptr ? p.op.gate[from] : 1.0f);
            to[kLine] = a * (real && p.op.dpool != nullptr ? p.op.dpool[from] : 0.0f);
        }
        for (int column_tile = 0; column_tile < tile.column_tiles; column_tile++) {
            const int first_v = p.v0 + column_tile * tile.groups * kOctet;
            __syncthreads();  // the rows of the tile before this have been read
            y_loader.place(tile, dense, shape.n, shape.q, shape.c, image0, u_start,
                           first_v - (K - 1), first_channel(), split, 2 * U::kSplits, row_bytes);
            // A row of x is needed a step before the row of dy of its number.
            x_loader.place(x_tile, p.op.x, shape.n, shape.w, shape.c, image0,
                           u_start - 1 - shape.pad_top, first_v - shape.pad_left, first_channel(),
                           x_rows, 0, x_bytes);
            // The pixels of dy that this lane rebuilds: whether they exist, and of which image.
            unsigned inside = 0, image_of = 0;
#pragma unroll
            for (int i = 0; i < U::kRebuilds; i++) {
                const int pixel = i * kOctet + g;
                const int image = pixel / tile.columns_in;
                const int column = first_v - (K - 1) + pixel - image * tile.columns_in;
                if (image >= tile.images || image0 + image >= shape.n || !given) continue;
                if (unsigned(column) < unsigned(shape.q)) inside |= 1u << i;
                image_of |= unsigned(image) << 4 * i;
            }
            // The pixels of x that this lane owns, and their place in dx.
            unsigned there = 0;
            int place[U::kOctets];
#pragma unroll
            for (int o = 0; o < U::kOctets; o++) {
                const int image = o / tile.groups;
                const int column = (o - image * tile.groups) * kOctet + g;
                const int w = first_v - shape.pad_left + column;
                if (image < tile.images && image0 + image < shape.n && given &&
                    unsigned(w) < unsigned(shape.w)) {
                    there |= 1u << o;
                }
                place[o] = (image * shape.h * shape.w + column) * shape.c * int(sizeof(T));
            }
            const auto exists = [&](int o) { return (there >> o & 1) != 0; };
            // Of the first row of dx.
            unsigned char* dx =
                opaque_global(static_cast<unsigned char*>(p.op.dx) +
                              (((int64_t(image0) * shape.h + first_u - shape.pad_top) * shape.w +
                                first_v - shape.pad_left) *
                                   shape.c +
                               first_channel() + channel) *
                                  int64_t(sizeof(T)));
            const auto in_y = [&](int step) {
                return unsigned(u_start + step) < unsigned(shape.p) && step < last;
            };
            const auto in_x = [&](int step) { return step >= K - 1 && step < last; };
            const auto start_copies = [&](int step) {
                if (in_y(step)) {
                    const int to = step % U::kStages * row_bytes;
                    y_loader.start(y_rows + to);
                    y_loader.start(g_rows + to, p.to_g);
                }
                if (in_x(step - 1)) x_loader.start(x_rows + (step - 1) % U::kStages * x_bytes);
                y_loader.advance(p.y_row_bytes);
                x_loader.advance(p.x_row_bytes);
                commit_async();
            };
            const auto rebuild = [&](int step, unsigned char* to) {
                if (!in_y(step)) return;
                float scale[2], shift[2], b[2], mean[2], c[2];
                load_some(channel_rows + channel, scale);
                load_some(channel_rows + kLine + channel, shift);
                load_some(channel_rows + 2 * kLine + channel, b);
                load_some(channel_rows + 3 * kLine + channel, mean);
                load_some(channel_rows + 4 * kLine + channel, c);
                const int stage = step % U::kStages * row_bytes;
                float gate[2], dpool[2];
                load_some(image_rows + channel, gate);
                load_some(image_rows + kLine + channel, dpool);
#pragma unroll
                for (int i = 0; i < U::kRebuilds; i++) {
                    // No branch: what does not exist is computed of the row's first pixel.
                    const bool real = (inside >> i & 1) != 0;
                    const int at = own + (real ? (i * kOctet + g) * kTensorPitch : 0);
                    if (tile.images > 1) {
                        const float* const image =
                            image_rows + (image_of >> 4 * i & 15) * U::kImageRows * kLine + channel;
                        load_some(image, gate);
                        load_some(image + kLine, dpool);
                    }
                    float gs[2], ys[2], slopes[2], dy[2];
                    load_some(reinterpret_cast<const T*>(y_rows + stage + at), ys);
                    load_some(reinterpret_cast<const T*>(g_rows + stage + at), gs);
#pragma unroll
                    for (int e = 0; e < 2; e++) slopes[e] = fmaf(ys[e], scale[e], shift[e]);
                    to_slopes<T>(p.y_act, slopes);
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        dy[e] = fmaf(fmaf(gs[e], gate[e], dpool[e]), slopes[e],
                                     fmaf(b[e], ys[e] - mean[e], c[e]));
                    }
                    uint32_t high, low;
                    split_pair(dy[0], dy[1], &high, &low);
                    if (real) {
                        *reinterpret_cast<uint32_t*>(to + at) = high;
                        *reinterpret_cast<uint32_t*>(to + row_bytes + at) = low;
                    }
                }
            };
#pragma unroll 1
            for (int step = 0; step < U::kStages; step++) start_copies(step);
            wait_async<U::kStages - 1>();
            __syncthreads();  // row 0, the images' gates, and zeros outside are there
            rebuild(0, split);

            float acc[K][U::kTiles][4] = {};
            uint32_t x_high[K][U::kOctets] = {}, x_low[K][U::kOctets] = {};
            const int split_bytes = 2 * row_bytes;
            int newest = 0, next = split_bytes, oldest = 2 * split_bytes;
            for (int step0 = 0; step0 < steps; step0 += K) {
#pragma unroll
                for (int phase = 0; phase < K; phase++) {
                    const int step = step0 + phase;
                    if (step >= steps) break;
                    wait_async<U::kStages - 2>();
                    __syncthreads();
                    // What the step before this one read last, takes what is copied next.
                    start_copies(step + U::kStages);
                    rebuild(step + 1, split + next);

                    // x: its halves transposed, for the weights; its slopes, for dx. What does not
                    // exist is 0.
                    uint32_t x_words[U::kOctets];
                    float slopes[U::kOctets][2];
                    if (in_x(step)) {
                        const unsigned char* const row =
                            x_rows + step % U::kStages * x_bytes + own_x;
                        float scale[2], shift[2], a[U::kOctets][2];
                        load_some(channel_rows + 5 * kLine + channel, scale);
                        load_some(channel_rows + 6 * kLine + channel, shift);
#pragma unroll
                        for (int o = 0; o < U::kOctets; o++) {
                            const uint32_t word =
                                *reinterpret_cast<const uint32_t*>(row + o * kOctet * kTensorPitch);
                            x_words[o] = exists(o) ? word : 0;
                            widen_pair(x_words[o], a[o], T());
#pragma unroll
                            for (int e = 0; e < 2; e++) a[o][e] = fmaf(a[o][e], scale[e], shift[e]);
                        }
                        apply_and_slopes<T>(p.in_act,
                                            reinterpret_cast<float (&)[2 * U::kOctets]>(a),
                                            reinterpret_cast<float (&)[2 * U::kOctets]>(slopes));
#pragma unroll
                        for (int o = 0; o < U::kOctets; o++) {
                            uint32_t high, low;
                            split_pair(a[o][0], a[o][1], &high, &low);
                            x_high[phase][o] = transpose(exists(o) ? high : 0);
                            x_low[phase][o] = transpose(exists(o) ? low : 0);
                        }
                    } else {
#pragma unroll
                        for (int o = 0; o < U::kOctets; o++) x_high[phase][o] = x_low[phase][o] = 0;
                    }

                    // At turned tap row i this row of dy adds to the row of dx begun i rows ago.
                    if (in_y(step)) {
                        constexpr float kZeros[4] = {};
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            const unsigned char* const row = split + newest + half * row_bytes;
#pragma unroll
                            for (int j = 0; j + 1 < K; j += 2) {
#pragma unroll
                                for (int i = 0; i < U::kTiles; i++) {
                                    uint32_t a[4];
                                    load_matrices(row + pairs_place[i] + j * kTensorPitch, a);
#pragma unroll
                                    for (int tap = 0; tap < K; tap++) {
                                        float (&sum)[4] = acc[(phase - tap + K) % K][i];
                                        if (half + j + tap == 0) {
                                            multiply_add<T>(sum, a, taps[tap][j], taps[tap][j + 1],
                                                            kZeros);
                                        } else {
                                            multiply_add<T>(sum, a, taps[tap][j], taps[tap][j + 1],
                                                            sum);
                                        }
                                    }
                                }
                            }
                            if (U::kTiles == 1 && half > 0) continue;
                            uint32_t a[4];
                            load_matrices(row + singles_place + (K - 1) * kTensorPitch, a);
#pragma unroll
                            for (int tap = 0; tap < K; tap++) {
                                // Of the second tile; or of the first, the low half.
                                float (&sum)[U::kTiles][4] = acc[(phase - tap + K) % K];
                                multiply_add<T>(sum[0], a[0], a[1], taps[tap][K - 1], sum[0]);
                                float (&other)[4] = sum[U::kTiles - 1];
                                multiply_add<T>(other, a[2], a[3], taps[tap][K - 1], other);
                            }
                        }
                    } else {
#pragma unroll
                        for (int i = 0; i < 4 * U::kTiles; i++) acc[phase][i / 4][i % 4] = 0.0f;
                    }

                    // Row i of the taps joins the oldest row of dy with the row of x i rows later.
                    if (step >= K - 1 && in_y(step - (K - 1))) {
#pragma unroll
                        for (int i = 0; i < U::kTiles; i++) {
                            const unsigned char* const row = split + oldest + turned_place[i];
#pragma unroll
                            for (int pair = 0; pair <= U::kPairs; pair++) {
                                // Rows of the product: two columns, or both halves of the last.
                                uint32_t high[4], low[4];
                                const unsigned char* const at = row + 2 * pair * kTensorPitch;
                                load_transposed(
                                    at + m % 2 * (pair < U::kPairs ? kTensorPitch : row_bytes),
                                    high);
                                if (pair < U::kPairs) {
                                    load_transposed(at + m % 2 * kTensorPitch + row_bytes, low);
                                }
#pragma unroll
                                for (int tap = 0; tap < K; tap++) {
                                    const int x = (phase + 1 + tap) % K;
                                    float (&sum)[4] = dw[tap][pair];
                                    const uint32_t (&h)[U::kOctets] = x_high[x];
                                    const uint32_t (&l)[U::kOctets] = x_low[x];
                                    multiply_add<T>(sum, high, h[2 * i], h[2 * i + 1], sum);
                                    multiply_add<T>(sum, high, l[2 * i], l[2 * i + 1], sum);
                                    if (pair == U::kPairs) continue;
                                    multiply_add<T>(sum, low, h[2 * i], h[2 * i + 1], sum);
                                }
                            }
                        }
                    }
                    newest = next, next = oldest;
                    oldest =
                        oldest == U::kSplits * split_bytes - split_bytes ? 0 : oldest + split_bytes;
                    if (p.op.dx == nullptr || !in_x(step)) continue;

                    // That was the last row of dy for the row of dx that began K - 1 rows ago.
                    float (&done)[U::kTiles][4] = acc[(phase + 1) % K];
                    const auto of = [&](int o, int e) -> float& {
                        return done[o / 2][o % 2 * 2 + e];
                    };
                    float any = 0.0f;
#pragma unroll
                    for (int o = 0; o < U::kOctets; o++) any = o == 0 ? of(0, 0) : any + of(o, 0);
                    if (any_nan(any)) {  // as in depthwise_tensor.cu
#pragma unroll 1
                        for (int i = 0; i < 2 * U::kOctets; i++) {
                            const int o = i / 2, groups = opaque(tile.groups);
                            const int image = o / groups;
                            const int column = (o - image * groups) * kOctet + g;
                            const int at = opaque(channel) + i % 2;
                            const float exact =
                                exists(o) ? sum_of_taps<K>(
                                                p, image0 + image, first_channel() + at,
                                                u_start + step, first_v + column, channel_rows + at,
                                                image_rows + image * U::kImageRows * kLine + at)
                                          : 0.0f;
#pragma unroll
                            for (int k = 0; k < 2 * U::kOctets; k++) {
                                if (k == i) of(k / 2, k % 2) = exact;
                            }
                        }
                    }
                    float mean[2];
                    load_some(channel_rows + 7 * kLine + channel, mean);
                    const bool add = p.op.residual_grad != nullptr;
                    if (undo) {
#pragma unroll
                        for (int o = 0; o < U::kOctets; o++) {
                            float x[2];
                            widen_pair(x_words[o], x, T());
#pragma unroll
                            for (int e = 0; e < 2; e++) {
                                float& d = of(o, e);
                                d = exists(o) ? d * slopes[o][e] : 0.0f;
                                sum_h[e] += d;
                                sum_hx[e] = fmaf(d, x[e] - mean[e], sum_hx[e]);
                            }
                        }
                    }
                    if (add) {
#pragma unroll
                        for (int o = 0; o < U::kOctets; o++) {
                            float r[2] = {};
                            if (exists(o)) {
                                load_some(reinterpret_cast<const T*>(dx + p.to_residual + place[o]),
                                          r);
                            }
                            of(o, 0) += r[0], of(o, 1) += r[1];
                        }
                    }
#pragma unroll
                    for (int o = 0; o < U::kOctets; o++) {
                        const uint32_t word = narrow_pair(of(o, 0), of(o, 1), T());
                        if (exists(o)) *reinterpret_cast<uint32_t*>(dx + place[o]) = word;
                    }
                    dx += p.dx_row_bytes;
                }
            }
        }
    }
    __syncthreads();  // the rings have been read
    store_sums<K>(p, part, channel0, dw, sum_h, sum_hx, reinterpret_cast<float*>(split));
}

template <int K>
Tile tile_of(const DepthwiseBwdArgs& args, BwdParams* p) {
    using U = TensorBwd<K>;
    const DepthwiseShape& s = args.shape;
    place_positions(args, p);
    TileLimits limits = {};
    limits.vector = kVector<T>, limits.columns = limits.columns_in = kOctet;
    limits.halo = U::kHalo, limits.slots = U::kSlots;
    limits.threads = U::kThreads, limits.resident = U::kResident;
    limits.unit = 32, limits.unit_groups = U::kOctets;
    limits.max_rows = 64;
    limits.images =
        std::min({images_in_reach(args.x), images_in_reach(dense_map(args.y, s.p, s.q, s.c)),
                  images_in_reach(dense_map(args.dx, s.h, s.w, s.c))});
    limits.pixel_bytes = U::kPixelBytes;
    limits.shared_bytes = kMaxSharedBytes - U::kFixedBytes;
    return make_tile(limits, s.n, s.c, p->u1 - p->u0 + 1, s.w - 1 + s.pad_left - p->v0 + 1,
                     kTensorVectors);
}

template <int K>
cudaError_t launch_depthwise_tensor_bwd(BwdParams& p, cudaStream_t stream) {
    using U = TensorBwd<K>;
    const DepthwiseShape& s = p.op.shape;
    const Tile& tile = p.tile = tile_of<K>(p.op, &p);
    const Map y = dense_map(p.op.y, s.p, s.q, s.c), dx = dense_map(p.op.dx, s.h, s.w, s.c);
    if (!offsets_fit(p.op.x, tile) || !offsets_fit(y, tile) || !offsets_fit(dx, tile)) {
        return cudaErrorInvalidValue;
    }
    p.x_row_bytes = int(p.op.x.h_stride) * int(sizeof(T));
    p.y_row_bytes = s.q * s.c * int(sizeof(T));
    p.dx_row_bytes = s.w * s.c * int(sizeof(T));
    const auto bytes = [](const void* from, const void* to) {
        return static_cast<const char*>(to) - static_cast<const char*>(from);
    };
    p.to_g = bytes(p.op.y, p.op.g), p.to_residual = bytes(p.op.dx, p.op.residual_grad);
    p.partials = static_cast<float*>(p.op.workspace);
    const size_t columns = size_t(tile.columns_in) * tile.images * kTensorPitch;
    const size_t stream_bytes =
        columns * (2 * U::kSplits + 2 * U::kStages) +
        size_t(U::x_row_bytes(tile.groups * tile.images)) * U::kStages +
        4 * kTensorLine * size_t(U::kChannelRows + U::kImageRows * tile.images);
    const size_t merge_bytes = size_t(tile.threads / 32) * U::kOutputs * kVector<T> * 4;
    return launch(depthwise_tensor_bwd_kernel<K>, dim3(unsigned(tile.channel_blocks * tile.parts)),
                  dim3(tile.threads), std::max(stream_bytes, merge_bytes), stream, p);
}

}  // namespace

bool bwd_tensor_takes(const DepthwiseBwdArgs& args) {
    const DepthwiseShape& s = args.shape;
    return s.dtype == DType::kBFloat16 && s.stride == 1 && whole_maps(args) &&
           whole_vectors(dense_map(args.dx, s.h, s.w, s.c), s.dtype, s.c) &&
           whole_vectors(dense_map(args.residual_grad, s.h, s.w, s.c), s.dtype, s.c);
}

int bwd_tensor_parts(const DepthwiseBwdArgs& args) {
    if (args.shape.dtype != DType::kBFloat16 || args.shape.stride != 1) return 0;
    BwdParams p = {};
    return args.shape.kernel == 3 ? tile_of<3>(args, &p).parts : tile_of<5>(args, &p).parts;
}

cudaError_t depthwise_bwd_tensor(BwdParams& p, cudaStream_t stream) {
    return p.op.shape.kernel == 3 ? launch_depthwise_tensor_bwd<3>(p, stream)
                                  : launch_depthwise_tensor_bwd<5>(p, stream);
}

}  // namespace effnet_fast
