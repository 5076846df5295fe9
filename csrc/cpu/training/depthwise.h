// What depthwise convolution's two directions share: rows in rings, and groups of channels whose
// rings stay in cache.
#pragma once

#include "cpu/training/reduce.h"
#include "cpu/training/work.h"

namespace effnet_fast::cpu::training {

// Some rows of an image, blocked: [rows][blocks][width][16], row h in place h % rows.
class Ring {
public:
    Ring(const Run& run, int rows, int blocks, int width)
        : rows_(rows), blocks_(blocks), width_(width),
          buffers_(run, size_t(rows) * blocks * width * kBlock) {}
    float* row(int worker, int h) {
        return buffers_[worker] + long(h % rows_) * blocks_ * stride();
    }
    long stride() const { return long(width_) * kBlock; }

private:
    int rows_, blocks_, width_;
    Buffers buffers_;
};

// Blocks of channels [first, end).
struct Group {
    int first, end;
    int channel() const { return first * kBlock; }
    int channels(int c) const { return std::min(c, end * kBlock) - channel(); }
    int blocks() const { return end - first; }
};

// An item of work is an image and a group of its channels.
class Groups {
public:
    // `floats` of rings for each block of 16 channels.
    Groups(const Run& run, const Shape& shape, long floats) : blocks_(blocks_of(shape.c)) {
        constexpr long kFloats = 128 * 1024;
        const long most = std::clamp(kFloats / floats, 1L, long(blocks_));
        count_ = int((blocks_ + most - 1) / most);
        // A small batch feeds the threads by more groups.
        const int wanted = (run.threads + shape.n - 1) / std::max(shape.n, 1);
        count_ = std::clamp(wanted, count_, blocks_);
    }
    int count() const { return count_; }
    int most() const { return (blocks_ + count_ - 1) / count_; }
    Group at(int i) const { return {blocks_ * i / count_, blocks_ * (i + 1) / count_}; }

private:
    int blocks_, count_;
};

// weight [C,k*k] -> [C / 16][k * k][16], tap order[i] in place i.
inline Floats pack_taps(const float* weight, int c, const std::vector<int>& order) {
    const long taps = long(order.size());
    Floats packed(size_t(padded(c)) * taps);
    for (int i = 0; i < c; ++i) {
        float* to = packed.data() + i / kBlock * taps * kBlock + i % kBlock;
        for (long t = 0; t < taps; ++t) to[t * kBlock] = weight[i * taps + order[t]];
    }
    return packed;
}

}  // namespace effnet_fast::cpu::training
