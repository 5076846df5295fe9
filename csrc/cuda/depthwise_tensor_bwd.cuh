// What the depthwise backward kernel for tensor cores is made of, less its loop.
#pragma once

#include "cuda/depthwise_bwd.cuh"
#include "cuda/depthwise_tensor.cuh"
#include "cuda/gradient.cuh"

namespace effnet_fast {

template <int K>
struct TensorBwd {
    static constexpr int kTiles = K == 3 ? 2 : 1;  // of 16 columns per block
    static constexpr int kOctets = 2 * kTiles;
    static constexpr int kStages = 4;
    static constexpr int kSplits = K + 1;
    static constexpr int kThreads = 32 * kTensorVectors, kResident = 3;
    static constexpr int kHalo = K - 1;
    static constexpr int kSlots = kTiles;  // vectors of a row of y that a thread copies
    static constexpr int kRebuilds = ceil_div(kOctets * (kOctet + kHalo), kOctet);  // octets of dy
    static constexpr int kPairs = K / 2;
    static constexpr int kOutputs = K * K + kSums;
    static constexpr int kPixelBytes = (2 * kSplits + 3 * kStages) * kTensorPitch;
    // Scale, shift, b, mean, c of dy; scale, shift, mean of x. Of each image: a gate, a dpool.
    static constexpr int kChannelRows = 8, kImageRows = 2;
    static constexpr int kFixedBytes = 4 * kTensorLine * (kChannelRows + kImageRows * kOctets);
    // Of a row of x: also of the octets beyond the last that its warp reads.
    static constexpr __host__ __device__ int x_row_bytes(int octets) {
        return ceil_div(octets, kOctets) * kOctets * kOctet * kTensorPitch;
    }
};

// The two halves of a pair: high + low = (a, b) to 16 bits.
__device__ __forceinline__ void split_pair(float a, float b, uint32_t* high, uint32_t* low) {
    float rounded[2];
    *high = narrow_pair(a, b, __nv_bfloat16());
    widen_pair(*high, rounded, __nv_bfloat16());
    *low = narrow_pair(a - rounded[0], b - rounded[1], __nv_bfloat16());
}

// One element of dx before the activation is undone, tap by tap, at position (u, v). `channel` and
// `image`: this channel's column of those rows.
template <int K>
__device__ __forceinline__ float sum_of_taps(const BwdParams& p, int n, int c, int u, int v,
                                             const float* channel, const float* image) {
    using T = __nv_bfloat16;
    constexpr int kLine = kTensorLine;
    const DepthwiseShape& shape = p.op.shape;
    const T* const taps = static_cast<const T*>(p.op.weight) + int64_t(c) * (K * K);
    float sum = 0.0f;
#pragma unroll 1
    for (int tap = 0; tap < K * K; tap++) {
        const int row = u - tap / K, column = v - tap % K;
        if (unsigned(row) >= unsigned(shape.p) || unsigned(column) >= unsigned(shape.q)) continue;
        const int64_t at = ((int64_t(n) * shape.p + row) * shape.q + column) * shape.c + c;
        const float y = to_float(static_cast<const T*>(p.op.y)[at]);
        const float g = to_float(static_cast<const T*>(p.op.g)[at]);
        float slope[1] = {fmaf(y, channel[0], channel[kLine])};
        to_slopes<__nv_bfloat16>(p.y_act, slope);
        const float rest = fmaf(channel[2 * kLine], y - channel[3 * kLine], channel[4 * kLine]);
        const float dy = fmaf(fmaf(g, image[0], image[kLine]), slope[0], rest);
        sum = fmaf(dy, to_float(taps[tap]), sum);
    }
    return sum;
}

// This program's row of partials: of the weights, the diagonals of its lanes' products. `all`:
// [vectors][kOutputs][8].
template <int K>
__device__ __forceinline__ void store_sums(const BwdParams& p, int part, int channel0,
                                           const float (&dw)[K][TensorBwd<K>::kPairs + 1][4],
                                           float (&sum_h)[2], float (&sum_hx)[2], float* all) {
    using U = TensorBwd<K>;
    constexpr int kChannels = kVector<__nv_bfloat16>;
    const Tile& tile = p.tile;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    float* const mine = all + warp * U::kOutputs * kChannels;
    if (g / 2 == t) {
#pragma unroll
        for (int i = 0; i < K; i++) {
#pragma unroll
            for (int pair = 0; pair <= U::kPairs; pair++) {
                // Turned columns 2 pair and the next are taps K - 1 - 2 pair and the one before.
                const float (&d)[4] = dw[i][pair];
                const float first = g % 2 == 0 ? d[0] : d[1], second = g % 2 == 0 ? d[2] : d[3];
                float* const to = mine + (i * K + K - 1 - 2 * pair) * kChannels + g;
                if (pair < U::kPairs) {
                    to[0] = first, to[-kChannels] = second;
                } else {
                    to[0] = first + second;
                }
            }
        }
    }
#pragma unroll
    for (int e = 0; e < 2; e++) {
#pragma unroll
        for (int bit = 16; bit >= 4; bit /= 2) {
            sum_h[e] += __shfl_xor_sync(0xffffffffu, sum_h[e], bit);
            sum_hx[e] += __shfl_xor_sync(0xffffffffu, sum_hx[e], bit);
        }
        if (g == 0) {
            mine[K * K * kChannels + 2 * t + e] = sum_h[e];
            mine[(K * K + 1) * kChannels + 2 * t + e] = sum_hx[e];
        }
    }
    __syncthreads();
    const int channels = tile.vectors * kChannels;
    for (int i = threadIdx.x; i < U::kOutputs * channels; i += blockDim.x) {
        const int output = i / channels, at = i - output * channels;
        if (channel0 + at >= p.op.shape.c) continue;
        p.partials[(int64_t(part) * U::kOutputs + output) * p.op.shape.c + channel0 + at] =
            all[(at / kChannels * U::kOutputs + output) * kChannels + at % kChannels];
    }
}

}  // namespace effnet_fast
