#include "box_copies.h"

#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace emulator {

extern std::string last_message;  // of scheduler.cpp

namespace {

constexpr int kPoison = 0xff;  // async_copies.h's
constexpr uint64_t kBarrierMark = 0xb0c5'ba44'1e40'0001;
constexpr uint64_t kMapMark = 0xb0c5'4a90'0000'0001;
constexpr int kVector = 16;
constexpr int kSpan = 64;  // bytes within which vectors change places

struct Copy {
    unsigned char* target;
    BoxTensor tensor;
    BoxPlace place;
};

struct Barrier {
    unsigned phase = 0;  // that of now, which is not complete
    bool armed = false;
    int64_t expected = 0;
    std::vector<Copy> copies;
};

bool device_has_boxes = true;
std::map<void*, Barrier> barriers;  // of the running launch
std::vector<BoxTensor> tensors;     // for it: a map holds the place of its own

bool in_shared(const void* p, int64_t bytes) {
    const auto* const at = static_cast<const char*>(p);
    const auto* const first = static_cast<const char*>(dynamic_shared_bytes());
    return at >= first && at + bytes <= first + dynamic_shared_size();
}

int64_t bytes_of(const BoxTensor& t) {
    return t.box[0] * t.box[1] * t.box[2] * t.box[3] * t.strides[0];
}

// Byte `offset` of a box: vectors of 16 bytes change places as bits of their own address say.
unsigned char* swizzled(unsigned char* target, int64_t offset) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(target) + offset;
    return reinterpret_cast<unsigned char*>(at ^ ((at >> 7 & 3) << 4));
}

bool within(int64_t at, int64_t length) { return at >= 0 && at < length; }

void perform(const Copy& copy) {
    const BoxTensor& t = copy.tensor;
    const int64_t element = t.strides[0], vector = kVector / element;
    int64_t offset = 0;
    for (int64_t i = 0; i < t.box[1] * t.box[2] * t.box[3]; ++i) {
        const int64_t w = copy.place.at[1] + i % t.box[1];
        const int64_t h = copy.place.at[2] + i / t.box[1] % t.box[2];
        const int64_t n = copy.place.at[3] + i / (t.box[1] * t.box[2]);
        const bool pixel = within(w, t.lengths[1]) && within(h, t.lengths[2]) &&
                           within(n, t.lengths[3]);
        const char* const from = static_cast<const char*>(t.data) + w * t.strides[1] +
                                 h * t.strides[2] + n * t.strides[3];
        for (int64_t first = 0; first < t.box[0]; first += vector, offset += kVector) {
            unsigned char* const to = swizzled(copy.target, offset);
            std::memset(to, 0, kVector);
            for (int64_t e = 0; pixel && e < vector; ++e) {
                const int64_t c = copy.place.at[0] + first + e;
                if (within(c, t.lengths[0]))
                    std::memcpy(to + e * element, from + c * element, element);
            }
        }
    }
}

Barrier& find(void* barrier, Site site) {
    uint64_t mark;
    const auto found = barriers.find(barrier);
    if (found == barriers.end()) fail(site, "a barrier of boxes that was not made");
    std::memcpy(&mark, barrier, sizeof mark);
    if (mark != kBarrierMark) fail(site, "a barrier of boxes that was overwritten");
    return found->second;
}

}  // namespace

bool has_box_copies() { return device_has_boxes; }

cudaError_t make_boxes(const BoxTensor& t, void* map) {
    bool fits = reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
                reinterpret_cast<uintptr_t>(map) % 64 == 0 && t.data != nullptr;
    for (int i = 0; i < 4; ++i) {
        fits = fits && t.lengths[i] >= 1 && t.lengths[i] <= int64_t(1) << 32;
        fits = fits && t.box[i] >= 1 && t.box[i] <= 256;
        fits = fits && (i == 0 || (t.strides[i] % 16 == 0 && t.strides[i] > 0 &&
                                   t.strides[i] < int64_t(1) << 40));
    }
    const int64_t inner = t.box[0] * t.strides[0];
    if (!fits || inner % 16 != 0 || inner > kSpan) return cudaErrorInvalidValue;
    const uint64_t held[2] = {kMapMark, tensors.size()};
    tensors.push_back(t);
    std::memcpy(map, held, sizeof held);
    return cudaSuccess;
}

void make_box_barrier(void* barrier, Site site) {
    if (!in_shared(barrier, 8) || reinterpret_cast<uintptr_t>(barrier) % 8 != 0)
        fail(site, "a barrier of boxes that is not 8 aligned bytes of dynamic shared memory");
    Barrier& made = barriers[barrier];
    if (made.armed) fail(site, "a barrier is made while boxes are on their way to it");
    made = {};
    std::memcpy(barrier, &kBarrierMark, sizeof kBarrierMark);
}

void expect_boxes(void* barrier, int bytes, Site site) {
    Barrier& b = find(barrier, site);
    if (b.armed) fail(site, "a barrier armed again before anybody waited for its boxes");
    if (bytes <= 0 || bytes >= 1 << 20) fail(site, "a barrier counts less than 2^20 bytes");
    b.armed = true;
    b.expected = bytes;
}

void copy_box(void* shared, const void* map, BoxPlace place, void* barrier, Site site) {
    Barrier& b = find(barrier, site);
    if (!b.armed) fail(site, "a box for a barrier that expects none");
    uint64_t held[2];
    std::memcpy(held, map, sizeof held);
    if (held[0] != kMapMark) fail(site, "a box of a map that was not made");
    const BoxTensor& tensor = tensors[held[1]];
    const int64_t bytes = bytes_of(tensor);
    if (reinterpret_cast<uintptr_t>(shared) % 128 != 0)
        fail(site, "a box to an address that is no multiple of 128 bytes");
    if (!in_shared(shared, bytes)) fail(site, "a box that leaves dynamic shared memory");
    auto* const target = static_cast<unsigned char*>(shared);
    std::memset(target, kPoison, bytes);
    b.copies.push_back({target, tensor, place});
}

void wait_boxes(void* barrier, int parity, Site site) {
    Barrier& b = find(barrier, site);
    // Complete is the phase before that of now, as far as a parity can tell.
    if (static_cast<int>(b.phase & 1) != parity) return;
    if (!b.armed) fail(site, "a wait for boxes that no thread has asked for");
    int64_t bytes = 0;
    for (const Copy& copy : b.copies) bytes += bytes_of(copy.tensor);
    if (bytes != b.expected)
        fail(site, "a barrier expects %lld bytes, its boxes have %lld",
             static_cast<long long>(b.expected), static_cast<long long>(bytes));
    for (const Copy& copy : b.copies) perform(copy);
    b.copies.clear();
    b.armed = false;
    ++b.phase;
}

cudaError_t check_boxes(cudaError_t status) {
    bool left = false;
    for (const auto& [address, barrier] : barriers) left = left || barrier.armed;
    barriers.clear();
    tensors.clear();
    if (status != cudaSuccess || !left) return status;
    last_message = "a block has left while boxes were on their way to it";
    return cudaErrorLaunchFailure;
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void emulator_set_boxes(bool has) {
    emulator::device_has_boxes = has;
}
