#include "cpu/training/reduce.h"

namespace effnet_fast::cpu::training {

void sum_parts(const float* parts, long count, long length, double factor, float* out) {
    std::vector<double> total(length, 0.0);
    for (long i = 0; i < count; ++i) {
        for (long l = 0; l < length; ++l) total[l] += parts[i * length + l];
    }
    for (long l = 0; l < length; ++l) out[l] = float(total[l] * factor);
}

void sum_parts_of_images(const float* parts, int n, long t, int c, int length, double factor,
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
    float* shift = values_.data() + i * 3 * c_ + c0;
    float* sums = shift + c_;
    Tile rows = tile;
    rows.row = c_;
    if (first) {
        rows.pixels = std::min(tile.pixels, 16);
        kernels.moments({rows, a, nullptr, sums});
        for (int c = 0; c < tile.channels; ++c) {
            shift[c] = sums[c] / float(rows.pixels);
            sums[c] = sums[c_ + c] = 0.0f;
        }
        rows.pixels = tile.pixels;
    }
    kernels.moments({rows, a, shift, sums});
    if (c0 == 0) counts_[i] += tile.pixels;
}

// With the first part's shift s for all: the sums about it are those about a part's own, moved.
void MomentParts::merge(float* stats) const {
    long count = 0;
    std::vector<double> sum(c_, 0.0), squares(c_, 0.0);
    const float* first = values_.data();
    for (size_t i = 0; i < counts_.size(); ++i) {
        const float* part = values_.data() + long(i) * 3 * c_;
        count += counts_[i];
        for (int c = 0; c < c_; ++c) {
            const double d = double(part[c]) - first[c], s = part[c_ + c];
            sum[c] += s + d * counts_[i];
            squares[c] += part[2 * c_ + c] + 2.0 * d * s + d * d * counts_[i];
        }
    }
    for (int c = 0; c < c_; ++c) {
        const double mean = count ? sum[c] / count : 0.0;
        stats[c] = count ? float(first[c] + mean) : 0.0f;
        stats[c_ + c] = count ? float(std::max(squares[c] / count - mean * mean, 0.0)) : 0.0f;
    }
}

}  // namespace effnet_fast::cpu::training
