#include "cpu/training/reduce.h"

namespace effnet_fast::cpu::training {

void sum_parts_of_images(const double* parts, int n, long t, int c, int length, double factor,
                         float* out) {
    std::vector<float> sums(length);
    const int rows = length / c;
    for (int i = 0; i < n; ++i) {
        sum_parts(parts + i * t * length, t, length, factor, sums.data());
        for (int r = 0; r < rows; ++r) {
            std::copy_n(sums.data() + long(r) * c, c, out + (long(r) * n + i) * c);
        }
    }
}

void MomentParts::add(const Kernels& kernels, long i, const Tile& tile, int c0, const float* a,
                      bool first) {
    float* shift = shifts_.data() + i * c_ + c0;
    double* sums = sums_.data() + i * 2 * c_ + c0;
    Tile rows = tile;
    rows.row = c_;
    if (first) {
        rows.pixels = std::min(tile.pixels, 16);
        kernels.moments({rows, a, nullptr, sums});
        for (int c = 0; c < tile.channels; ++c) {
            shift[c] = float(sums[c] / rows.pixels);
            sums[c] = sums[c_ + c] = 0.0;
        }
        rows.pixels = tile.pixels;
    }
    kernels.moments({rows, a, shift, sums});
    if (c0 == 0) counts_[i] += tile.pixels;
}

// With the first part's shift s for all: the sums about it are those about a part's own, moved.
void MomentParts::merge(float* stats) const {
    long count = 0;
    Sums sum(c_, 0.0), squares(c_, 0.0);
    const float* first = shifts_.data();
    for (size_t i = 0; i < counts_.size(); ++i) {
        const float* shift = first + long(i) * c_;
        const double* sums = sums_.data() + long(i) * 2 * c_;
        count += counts_[i];
        for (int c = 0; c < c_; ++c) {
            const double d = double(shift[c]) - first[c], s = sums[c];
            sum[c] += s + d * counts_[i];
            squares[c] += sums[c_ + c] + 2.0 * d * s + d * d * counts_[i];
        }
    }
    for (int c = 0; c < c_; ++c) {
        const double mean = count ? sum[c] / count : 0.0;
        stats[c] = count ? float(first[c] + mean) : 0.0f;
        stats[c_ + c] = count ? float(std::max(squares[c] / count - mean * mean, 0.0)) : 0.0f;
    }
}

}  // namespace effnet_fast::cpu::training
