// The asynchronous copies of one emulated thread. A copy takes place in the wait for its group, and
// its target holds NaN until then.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace emulator {

constexpr int kPoison = 0xff;  // NaN in every float type, -1 in every int

class AsyncCopies {
  public:
    // `inside`: otherwise zeros arrive.
    void start(void* shared, const void* global, int bytes, bool inside) {
        std::memset(shared, kPoison, bytes);
        open_.push_back({shared, global, bytes, inside});
    }

    void commit() {
        groups_.push_back(std::move(open_));
        open_.clear();
    }

    // Completes all groups but the last `pending`.
    void wait(int pending) {
        const int ready = std::max(0, static_cast<int>(groups_.size()) - pending);
        for (int i = 0; i < ready; ++i) {
            for (const Copy& copy : groups_[i]) {
                if (copy.inside) {
                    std::memcpy(copy.shared, copy.global, copy.bytes);
                } else {
                    std::memset(copy.shared, 0, copy.bytes);
                }
            }
        }
        groups_.erase(groups_.begin(), groups_.begin() + ready);
    }

  private:
    struct Copy {
        void* shared;
        const void* global;
        int bytes;
        bool inside;
    };
    std::vector<Copy> open_;
    std::vector<std::vector<Copy>> groups_;  // committed, oldest first
};

}  // namespace emulator
