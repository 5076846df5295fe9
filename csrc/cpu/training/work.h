// How an op's work is cut and shared: chunks of pixels, workers, and the memory of each.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/memory.h"
#include "cpu/team.h"
#include "cpu/training/ops.h"

namespace effnet_fast::cpu::training {

inline int padded(int channels) { return blocks_of(channels) * kBlock; }
inline size_t bytes_of(Type type) { return type == Type::f32 ? 4 : 2; }

// Several whole images, or a range of pixels of one.
struct Chunk {
    int n0, n1;
    long p0, p1;
    int pixels() const { return int((n1 - n0) * (p1 - p0)); }
};

class Chunks {
public:
    // Of about `wanted` pixels.
    Chunks(const Shape& shape, long wanted) : n_(shape.n), pixels_(shape.pixels()) {
        parts_ = std::max<long>(1, (pixels_ + wanted - 1) / wanted);
        images_ = int(std::max<long>(1, parts_ > 1 ? 1 : wanted / std::max<long>(1, pixels_)));
    }
    long count() const { return (n_ + images_ - 1) / images_ * parts_; }
    long parts() const { return parts_; }  // of an image
    int most() const {
        return int(parts_ > 1 ? (pixels_ + parts_ - 1) / parts_ : images_ * pixels_);
    }
    Chunk at(long i) const {
        const int n = int(i / parts_) * images_;
        const long part = i % parts_;
        return {n, std::min(n + images_, n_), pixels_ * part / parts_,
                pixels_ * (part + 1) / parts_};
    }
    // Of all parts of all images.
    long slot(long i, int n) const { return n * parts_ + i % parts_; }

private:
    int n_, images_;
    long pixels_, parts_;
};

// As many pixels as keep buffers of so many floats to a pixel in the second-level cache.
inline long pixels_in_cache(long floats) {
    constexpr long kFloats = 96 * 1024;
    return std::clamp(kFloats / floats, 32L, 512L);
}

// Whether the pixels of an image lie evenly spaced.
inline bool is_flat(const Map& map, const Shape& shape) {
    return map.data == nullptr || shape.h == 1 || shape.w == 1 || map.h == shape.w * map.w;
}

inline long step_of(const Map& map, const Shape& shape) { return shape.w == 1 ? map.h : map.w; }

inline const char* at(const Map& map, const Shape& shape, int n, long pixel) {
    if (map.data == nullptr) return nullptr;
    const long element = n * map.n + pixel / shape.w * map.h + pixel % shape.w * map.w;
    return map.data + element * long(bytes_of(shape.type));
}

inline Map dense(const void* data, const Shape& shape) {
    return {static_cast<const char*>(data), shape.pixels() * shape.c, long(shape.w) * shape.c,
            shape.c};
}

// Asks for pages of 2 MB under a large result that is about to be written: of 4 kB, mapping those
// of a fresh activation takes longer than filling it. A hint: it may be ignored.
inline void expect_writes(const void* data, const Shape& shape) {
#if defined(__linux__)
    constexpr uintptr_t kPage = 2 << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t bytes = uintptr_t(shape.n) * shape.pixels() * shape.c * bytes_of(shape.type);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
    if (data && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline const float* row(const float* rows, long i, long length) {
    return rows ? rows + i * length : nullptr;
}

// f(image, first pixel, count, place in the chunk): evenly spaced pixels.
template <class F>
void for_segments(const Chunk& chunk, const Shape& shape, bool flat, F f) {
    int place = 0;
    for (int n = chunk.n0; n < chunk.n1; ++n) {
        for (long p = chunk.p0, end; p < chunk.p1; p = end) {
            end = flat ? chunk.p1 : std::min(chunk.p1, (p / shape.w + 1) * shape.w);
            f(n, p, int(end - p), place);
            place += int(end - p);
        }
    }
}

// f(item, worker) for all items, in ascending order for each worker.
template <class F>
void share(const Run& run, long items, F f) {
    const auto work = [&](int tid, int team) {
        for (int worker = tid; worker < run.threads; worker += team) {
            const long end = items * (worker + 1) / run.threads;
            for (long i = items * worker / run.threads; i < end; ++i) f(i, worker);
        }
    };
    run.threads > 1 && items > 1 ? parallel(run.threads, work) : work(0, 1);
}

// A buffer of floats for each worker, zeros at first.
class Buffers {
public:
    Buffers(const Run& run, size_t floats) {
        for (int i = 0; i < run.threads; ++i) all_.emplace_back(floats);
    }
    float* operator[](int worker) { return all_[worker].data(); }

private:
    std::vector<Floats> all_;
};

}  // namespace effnet_fast::cpu::training
