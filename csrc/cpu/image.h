// The rows of an image that the stem reads, of which those of its kernel are kept.
#pragma once

#include <algorithm>

#include "cpu/forward.h"

namespace effnet_fast::cpu {

template <typename T>
class ImageRows {
public:
    ImageRows(const Job<T>& job, typename Workspace<T>::PerThread& own, int image)
        : job_(job), stem_(job.network.stem), own_(own), image_(image) {}

    // Rows from `y` on are to be read: none is kept.
    void restart(int y) { next_ = y; }

    // Those of StemRow.
    int count() const { return (stem_.in + kPair<T> - 1) / kPair<T> * stem_.kernel; }

    // From row `above` on, which may be padding.
    const T* const* rows(int above) {
        const int groups = count() / stem_.kernel;
        next_ = std::max(next_, above);
        for (; next_ < above + stem_.kernel; ++next_) {
            for (int g = 0; g < groups; ++g) load(g, next_);
        }
        for (int g = 0; g < groups; ++g) {
            for (int r = 0; r < stem_.kernel; ++r) {
                own_.rows[g * stem_.kernel + r] = row(g, above + r);
            }
        }
        return own_.rows;
    }

private:
    // Row `y` of kPair<T> channels.
    T* row(int group, int y) {
        const int kernel = stem_.kernel, slot = (y % kernel + kernel) % kernel;
        return own_.image + (long(group) * kernel + slot) * job_.plan.image_width * kPair<T>;
    }

    void load(int group, int y) {
        const float* lines[kPair<T>];
        for (int i = 0; i < kPair<T>; ++i) {
            lines[i] = line(own_.lines[i], group * kPair<T> + i, y);
        }
        T* const to = row(group, y) + job_.plan.stem_columns.before * kPair<T>;
        job_.kernels.image_row(to, lines, job_.input.w);
    }

    // Row `y` of channel `c`: where it lies if it can be read there, else at `to`.
    const float* line(float* to, int c, int y) const {
        const Input& x = job_.input;
        if (c >= x.c || y < 0 || y >= x.h) return own_.no_line;
        const int64_t at = image_ * x.stride_n + c * x.stride_c + y * x.stride_h;
        if (x.is_uint8) {
            const float scale = job_.network.scale[c], shift = job_.network.shift[c];
            const uint8_t* from = static_cast<const uint8_t*>(x.data) + at;
            for (int i = 0; i < x.w; ++i) to[i] = scale * float(from[i * x.stride_w]) + shift;
            return to;
        }
        const float* from = static_cast<const float*>(x.data) + at;
        if (x.stride_w == 1) {
            // What the next row of the map reads: an image seldom is in the second-level cache.
            const float* ahead = from + stem_.stride * x.stride_h;
            for (int i = 0; i < x.w; i += 16) __builtin_prefetch(ahead + i);
            return from;
        }
        for (int i = 0; i < x.w; ++i) to[i] = from[i * x.stride_w];
        return to;
    }

    const Job<T>& job_;
    const Conv& stem_;
    typename Workspace<T>::PerThread& own_;
    const int image_;
    int next_ = 0;
};

}  // namespace effnet_fast::cpu
