// The weight gradient of a product in registers: dw[k, c] += sum over rows of dy[row, k] a[row, c].
//
// The sum runs over rows, which in a fragment as loaded lie in different lanes; movmatrix turns
// each 8 x 8 piece, so that a lane holds two rows of one channel. Position g of word i is channel
// channel_of(g, i).
#pragma once

#include "cuda/mma.cuh"

namespace effnet_fast {

// 16 rows of a chunk, turned: [word][rows 0 ... 7, rows 8 ... 15].
struct Turned {
    uint32_t words[4][2];

    __device__ __forceinline__ void turn(const Row8 (&rows)[2]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) words[i][half] = transpose(rows[half].words[i]);
        }
    }
};

// 32 x 32 sums: [pair of words of dy][word of a], those of dy's two words and of two channels.
struct WeightSums {
    float sums[2][4][4] = {};

    template <class T>
    __device__ __forceinline__ void add(const Turned& dy, const Turned& a) {
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const uint32_t(&even)[2] = dy.words[2 * u], (&odd)[2] = dy.words[2 * u + 1];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                multiply_add<T>(sums[u][i], even[0], odd[0], even[1], odd[1], a.words[i][0],
                                a.words[i][1]);
            }
        }
    }

    // To dw [outputs, channels] in memory, from output k0 and channel c0 on.
    __device__ __forceinline__ void store(float* dw, int outputs, int channels, int k0, int c0,
                                          const Lane& lane) const {
        const int c = c0 + kLaneChannels * lane.t;
        if (c >= channels) return;
#pragma unroll
        for (int row = 0; row < 4; row++) {
            const int k = k0 + channel_of(lane.g, row);
            if (k >= outputs) continue;
            float v[kLaneChannels];
#pragma unroll
            for (int e = 0; e < kLaneChannels; e++) v[e] = sum(row, e);
            float* const to = dw + int64_t(k) * channels + c;
            store_some(to, {v[0], v[1], v[2], v[3]});
            store_some(to + 4, {v[4], v[5], v[6], v[7]});
        }
    }

    // To [32][columns] in shared memory, from column c0 on, or added to what is there.
    __device__ __forceinline__ void to_shared(float* to, int columns, int c0, bool add,
                                              const Lane& lane) const {
#pragma unroll
        for (int row = 0; row < 4; row++) {
            float* const own =
                to + channel_of(lane.g, row) * columns + c0 + kLaneChannels * lane.t;
#pragma unroll
            for (int e = 0; e < kLaneChannels; e++) {
                own[e] = add ? own[e] + sum(row, e) : sum(row, e);
            }
        }
    }

  private:
    // Of dy's word `row` and channel e of the lane's eight.
    __device__ __forceinline__ float sum(int row, int e) const {
        return sums[row / 2][e / 2][2 * (row % 2) + e % 2];
    }
};

// Nothing of rows that do not exist goes into a sum over rows.
__device__ __forceinline__ void clear_missing(Row8 (&rows)[2], int count) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (8 * i >= count) rows[i] = {};
    }
}

}  // namespace effnet_fast
