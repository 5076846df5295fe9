// Memory that lasts as long as its arena, aligned for the widest registers, and zero at first.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace effnet_fast::cpu {

// Arrays side by side in the order in which they are asked for, in chunks of huge pages where the
// system has them: weights are read once per image, and half of the pages would miss the TLB.
class Arena {
public:
    template <typename T>
    T* get(size_t count) {
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (bytes > left_ || kApart) grow(bytes);
        T* found = reinterpret_cast<T*>(next_);
        next_ += bytes;
        left_ -= bytes;
        used_ += bytes;
        return found;
    }
    // The next arrays, of so many bytes in all, are to lie in one chunk.
    void reserve(size_t bytes) {
        if (bytes > left_ && !kApart) grow(bytes);
    }
    size_t bytes() const { return used_; }

private:
    static constexpr size_t kPage = size_t(2) << 20;
#if defined(__SANITIZE_ADDRESS__)
    static constexpr bool kApart = true;  // so that the sanitizer sees where each array ends
#else
    static constexpr bool kApart = false;
#endif

    void grow(size_t bytes) {
        // Small ones are not worth a huge page.
        const size_t unit = kApart                                      ? 64
                            : bytes < kPage / 8 && chunks_.empty() ? kPage / 8
                                                                   : kPage;
        const size_t size = (bytes + unit - 1) / unit * unit;
        chunks_.emplace_back(static_cast<char*>(std::aligned_alloc(unit, size)));
        next_ = chunks_.back().get();
        if (!next_) throw std::bad_alloc();
#if defined(__linux__)
        if (unit == kPage) madvise(next_, size, MADV_HUGEPAGE);  // advice: it may be refused
#endif
        std::memset(next_, 0, size);
        left_ = size;
    }

    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::vector<std::unique_ptr<char, Free>> chunks_;
    char* next_ = nullptr;
    size_t left_ = 0, used_ = 0;
};

// A buffer by itself, of floats that start as zero.
class Floats {
public:
    Floats() = default;
    explicit Floats(size_t count) : size_(count) {
        const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
        data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes ? bytes : 64)));
        if (!data_) throw std::bad_alloc();
        std::memset(data_.get(), 0, bytes);
    }
    float* data() { return data_.get(); }
    const float* data() const { return data_.get(); }
    size_t size() const { return size_; }

private:
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    std::unique_ptr<float, Free> data_;
    size_t size_ = 0;
};

}  // namespace effnet_fast::cpu
