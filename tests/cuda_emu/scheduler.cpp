#include "scheduler.h"

#include "async_copies.h"
#include "stacks.h"

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// The linker's names for the bounds of the section; absent without static shared memory.
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));

namespace emulator {

std::string last_message;  // of fail(); runtime.cpp reads it

namespace {

constexpr size_t kSharedAlignment = 512;

enum class State { kReady, kAtBarrier, kAtCluster, kAtCollective, kDone };

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    State state = State::kDone;
    uint3 index{};
    int number = 0, block = 0;  // of the thread in its block, of the block in its cluster
    Site site{};         // where it waits
    unsigned mask = 0;   // of the collective it waits for
    AsyncCopies copies;
    void* fake_stack = nullptr;
};

// Two generations: the lanes of one may still read while the fastest write the next.
struct Collective {
    unsigned mask = 0, arrived = 0;
    int generation = 0;
    Lanes values[2];
};

struct Warp {
    unsigned alive = 0;
    std::vector<Collective> collectives;
};

struct Block {
    std::vector<Warp> warps;
    void* shared = nullptr;  // dynamic
    uint3 index{};
    int alive = 0, at_barrier = 0;
    Site barrier{};  // where those at_barrier wait
};

struct Device {
    std::vector<Block> blocks;  // of the running cluster
    std::vector<Fiber> fibers;  // of all its blocks
    std::vector<char*> stacks;  // of no fiber now
    std::vector<int> order;
    size_t shared_bytes = 0;
    dim3 grid, block;
    Fiber* current = nullptr;
    int threads = 0;  // of a block
    int at_cluster = 0;
    Site cluster_barrier{};
    bool failed = false;
    void (*body)(void*) = nullptr;
    void* argument = nullptr;
    std::string order_name = "forward";
    std::mt19937 random;
    void* main_stack_pointer = nullptr;
    void* main_fake_stack = nullptr;
    const void* main_stack = nullptr;
    size_t main_stack_bytes = 0;
} device;

int launch_device = -1;

Block& own_block() { return device.blocks[device.current->block]; }
Warp& own_warp() { return own_block().warps[device.current->number / 32]; }

// ---------------------------------------------------------------- fibers

void to_main(bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(last ? nullptr : &device.current->fake_stack, device.main_stack,
                                   device.main_stack_bytes);
#endif
    (void)last;
    switch_stack(&device.current->stack_pointer, device.main_stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(device.current->fake_stack, &device.main_stack,
                                    &device.main_stack_bytes);
#endif
}

void to_fiber(Fiber& fiber) {
    device.current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&device.main_fake_stack, fiber.stack, kStackBytes);
#endif
    switch_stack(&device.main_stack_pointer, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(device.main_fake_stack, nullptr, nullptr);
#endif
}

void leave_block() {
    Fiber& fiber = *device.current;
    if (own_block().at_barrier + device.at_cluster > 0) {
        for (const Fiber& other : device.fibers)
            if (other.state == State::kAtCluster ||
                (other.state == State::kAtBarrier && other.block == fiber.block))
                fail(other.site, "thread %d leaves the kernel, thread %d waits here", fiber.number,
                     other.number);
    }
    fiber.state = State::kDone;
    --own_block().alive;
    own_warp().alive &= ~(1u << (fiber.number & 31));
}

void enter_fiber() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &device.main_stack, &device.main_stack_bytes);
#endif
    device.body(device.argument);
    leave_block();
    to_main(true);
    std::abort();  // a thread that is done is not resumed
}

void prepare(Fiber& fiber, int block, int number) {
    if (fiber.stack == nullptr && !device.stacks.empty()) {
        fiber.stack = device.stacks.back();
        device.stacks.pop_back();
    }
    if (fiber.stack == nullptr) fiber.stack = new_stack();
    const unsigned n = number, x = device.block.x, y = device.block.y;
    fiber.state = State::kReady;
    fiber.number = number;
    fiber.block = block;
    fiber.index = {n % x, n / x % y, n / (x * y)};
    fiber.copies = {};
    fiber.fake_stack = nullptr;
    fiber.stack_pointer = start_of(fiber.stack, number, &enter_fiber);
}

// ---------------------------------------------------------------- blocks

bool random_order() { return device.order_name.rfind("random", 0) == 0; }

void arrange(std::vector<int>& order) {
    if (device.order_name == "reverse") std::reverse(order.begin(), order.end());
    if (random_order())
        std::shuffle(order.begin(), order.end(), device.random);
}

void report_deadlock() {
    for (Fiber& fiber : device.fibers) {
        const char* what = nullptr;
        if (fiber.state == State::kAtBarrier) what = "a barrier";
        if (fiber.state == State::kAtCluster) what = "a barrier of the cluster";
        if (fiber.state == State::kAtCollective) what = "a warp collective";
        if (what == nullptr) continue;
        device.current = &fiber;
        const uint3 b = own_block().index;
        char text[256];
        std::snprintf(text, sizeof text, "%s:%d: deadlock: thread %d of block (%u,%u,%u) waits at %s",
                      fiber.site.file, fiber.site.line, fiber.number, b.x, b.y, b.z, what);
        last_message = text;
        device.failed = true;
        return;
    }
}

bool run_if_ready(int thread) {
    if (device.fibers[thread].state != State::kReady) return false;
    to_fiber(device.fibers[thread]);
    return true;
}

// The static shared memory of the blocks of a cluster is one: none of them may use it.
bool static_shared_used() {
    return std::any_of(__start_emulated_shared, __stop_emulated_shared,
                       [](char byte) { return static_cast<unsigned char>(byte) != kPoison; });
}

// Lets a warp of a fixed order run on until all of its threads wait for other warps.
void run_warp(int first, int lanes) {
    const bool reverse = device.order_name == "reverse";
    for (bool ran = true; ran;) {
        ran = false;
        for (int i = 0; i < lanes; ++i) {
            ran |= run_if_ready(first + (reverse ? lanes - 1 - i : i));
            if (device.failed) return;
        }
    }
}

// Lets the threads of a block run to their next stop; false: none could, or the launch has failed.
bool run_threads(int block) {
    const int first = block * device.threads;
    std::iota(device.order.begin(), device.order.end(), first);
    arrange(device.order);
    const bool random = random_order();
    bool any = false;
    for (const int i : device.order) {
        // In the fixed orders a warp runs on while one of its threads can: as far ahead of the
        // others as barriers let it. In the random one all warps keep step.
        const bool ran = run_if_ready(i);
        any |= ran;
        if (ran && !random) {
            const int lane0 = (i - first) / 32 * 32;
            run_warp(first + lane0, std::min(32, device.threads - lane0));
        }
        if (device.failed) return false;
    }
    return any;
}

void run_cluster() {
    if (__start_emulated_shared)
        std::memset(__start_emulated_shared, kPoison,
                    __stop_emulated_shared - __start_emulated_shared);
    device.at_cluster = 0;
    for (size_t b = 0; b < device.blocks.size(); ++b) {
        Block& block = device.blocks[b];
        std::memset(block.shared, kPoison, device.shared_bytes);
        block.warps.assign((device.threads + 31) / 32, Warp{});
        block.alive = device.threads;
        block.at_barrier = 0;
        for (int i = 0; i < device.threads; ++i) {
            prepare(device.fibers[b * device.threads + i], static_cast<int>(b), i);
            block.warps[i / 32].alive |= 1u << (i & 31);
        }
    }
    const auto alive = [](const Block& block) { return block.alive > 0; };
    std::vector<int> blocks(device.blocks.size());
    while (std::any_of(device.blocks.begin(), device.blocks.end(), alive)) {
        std::iota(blocks.begin(), blocks.end(), 0);
        arrange(blocks);
        bool any = false;
        // Each block as far as it gets: what then waits for another one must say so.
        for (const int block : blocks) {
            while (run_threads(block)) any = true;
            if (device.failed) return;
        }
        if (!any) return report_deadlock();
    }
    if (device.blocks.size() > 1 && static_shared_used()) {
        last_message = "a kernel that is launched in clusters uses static shared memory";
        device.failed = true;
    }
}

cudaError_t refuse(const char* what) {
    last_message = what;
    return cudaErrorInvalidConfiguration;
}

}  // namespace

// ---------------------------------------------------------------- the running thread

const uint3& thread_index() { return device.current->index; }
const uint3& block_index() { return own_block().index; }
const dim3& block_size() { return device.block; }
const dim3& grid_size() { return device.grid; }
int lane() { return device.current->number & 31; }
unsigned alive_lanes() { return own_warp().alive; }
void* dynamic_shared_bytes() { return own_block().shared; }
size_t dynamic_shared_size() { return device.shared_bytes; }

void fail(Site site, const char* format, ...) {
    char what[384], where[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    const uint3 b = own_block().index;
    std::snprintf(where, sizeof where, "%s:%d: block (%u,%u,%u) thread %d: ", site.file, site.line,
                  b.x, b.y, b.z, device.current->number);
    last_message = std::string(where) + what;
    device.failed = true;
    for (;;) to_main();
}

namespace {

bool same(Site a, Site b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

[[noreturn]] void fail_divergent(State state, bool any_block, Site site) {
    for (const Fiber& other : device.fibers)
        if (other.state == state && (any_block || other.block == device.current->block) &&
            &other != device.current)
            fail(site, "divergent barrier: thread %d waits at %s:%d", other.number, other.site.file,
                 other.site.line);
    std::abort();  // somebody waits there
}

}  // namespace

void sync_threads(Site site) {
    Fiber& fiber = *device.current;
    Block& block = own_block();
    if (block.alive < device.threads)
        fail(site, "a barrier, but %d threads have left the kernel", device.threads - block.alive);
    fiber.site = site;
    fiber.state = State::kAtBarrier;
    if (block.at_barrier == 0) block.barrier = site;
    if (!same(block.barrier, site)) fail_divergent(State::kAtBarrier, false, site);
    if (++block.at_barrier == device.threads) {
        for (Fiber& other : device.fibers)
            if (other.state == State::kAtBarrier && other.block == fiber.block)
                other.state = State::kReady;
        block.at_barrier = 0;
        return;
    }
    to_main();
}

void sync_cluster(Site site) {
    Fiber& fiber = *device.current;
    for (const Block& block : device.blocks)
        if (block.alive < device.threads)
            fail(site, "a barrier of the cluster, but threads have left the kernel");
    fiber.site = site;
    fiber.state = State::kAtCluster;
    if (device.at_cluster == 0) device.cluster_barrier = site;
    if (!same(device.cluster_barrier, site)) fail_divergent(State::kAtCluster, true, site);
    if (++device.at_cluster == device.threads * static_cast<int>(device.blocks.size())) {
        for (Fiber& other : device.fibers)
            if (other.state == State::kAtCluster) other.state = State::kReady;
        device.at_cluster = 0;
        return;
    }
    to_main();
}

void* shared_bytes_of(void* own, int rank, Site site) {
    if (rank < 0 || rank >= static_cast<int>(device.blocks.size()))
        fail(site, "block %d of a cluster of %zu", rank, device.blocks.size());
    const ptrdiff_t offset = static_cast<char*>(own) - static_cast<char*>(own_block().shared);
    if (offset < 0 || offset >= static_cast<ptrdiff_t>(device.shared_bytes))
        fail(site, "the address is not in dynamic shared memory");
    const Block& other = device.blocks[rank];
    if (other.alive < device.threads)
        fail(site, "shared memory of block %d of the cluster, whose threads leave", rank);
    return static_cast<char*>(other.shared) + offset;
}

const Lanes& all_gather(unsigned mask, const void* value, size_t bytes, Site site) {
    Fiber& fiber = *device.current;
    Warp& warp = own_warp();
    const int lane = fiber.number & 31;
    if (!(mask >> lane & 1u)) fail(site, "collective with mask %08x by lane %d", mask, lane);
    if (mask & ~warp.alive)
        fail(site, "mask %08x names lanes that have left or never were (%08x)", mask, warp.alive);
    size_t which = 0;
    while (which < warp.collectives.size() && warp.collectives[which].mask != mask) ++which;
    if (which == warp.collectives.size()) warp.collectives.emplace_back().mask = mask;

    Collective& mine = warp.collectives[which];
    const int generation = mine.generation;
    if (bytes > 0) std::memcpy(mine.values[generation & 1].bytes[lane], value, bytes);
    mine.arrived |= 1u << lane;
    fiber.site = site;
    fiber.mask = mask;
    fiber.state = State::kAtCollective;
    if (mine.arrived == mask) {
        mine.arrived = 0;
        ++mine.generation;
        const int first = fiber.number - lane, base = fiber.block * device.threads;
        for (int i = 0; i < 32 && first + i < device.threads; ++i) {
            Fiber& other = device.fibers[base + first + i];
            if (other.state == State::kAtCollective && other.mask == mask)
                other.state = State::kReady;
        }
    } else {
        to_main();
    }
    // By index: another lane's new mask may have moved the vector.
    return own_warp().collectives[which].values[generation & 1];
}

// ---------------------------------------------------------------- asynchronous copies

void copy_async(void* shared, const void* global, int bytes, bool inside, Site site) {
    const auto at = reinterpret_cast<uintptr_t>(shared), from = reinterpret_cast<uintptr_t>(global);
    const auto dynamic = reinterpret_cast<uintptr_t>(own_block().shared);
    const auto fixed = reinterpret_cast<uintptr_t>(__start_emulated_shared);
    const auto fixed_end = reinterpret_cast<uintptr_t>(__stop_emulated_shared);
    const bool in_dynamic = at >= dynamic && at + bytes <= dynamic + device.shared_bytes;
    const bool in_fixed = fixed != 0 && at >= fixed && at + bytes <= fixed_end;
    if (!in_dynamic && !in_fixed) fail(site, "an asynchronous copy to no shared memory");
    if (at % bytes != 0) fail(site, "an asynchronous copy of %d bytes to a misaligned target", bytes);
    if (inside && from % bytes != 0)
        fail(site, "an asynchronous copy of %d bytes from a misaligned source", bytes);
    device.current->copies.start(shared, global, bytes, inside);
}

void commit_async() { device.current->copies.commit(); }
void wait_async(int pending) { device.current->copies.wait(pending); }

// ---------------------------------------------------------------- launches

cudaError_t run_grid(dim3 grid, dim3 block, int cluster, size_t shared_bytes, void (*body)(void*),
                     void* argument) {
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads < 1 || threads > 1024) return refuse("a block has 1 to 1024 threads");
    if (shared_bytes > kMaxSharedBytes) return refuse("more shared memory than 99 KB");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return refuse("an empty grid");
    if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return refuse("too large a grid");
    if (cluster < 1 || cluster > kMaxCluster) return refuse("a cluster has 1 to 8 blocks");
    if (grid.x % cluster != 0) return refuse("a grid of whole clusters");

    cudaGetDevice(&launch_device);
    device.body = body;
    device.argument = argument;
    device.grid = grid;
    device.block = block;
    device.threads = static_cast<int>(threads);
    device.failed = false;
    if (device.fibers.size() != threads * cluster) {
        for (Fiber& fiber : device.fibers)
            if (fiber.stack != nullptr) device.stacks.push_back(fiber.stack);
        device.fibers.assign(threads * cluster, Fiber{});
    }
    device.order.resize(threads);
    device.shared_bytes = shared_bytes;
    device.blocks.assign(cluster, Block{});
    for (Block& b : device.blocks)
        b.shared = ::operator new(shared_bytes, std::align_val_t(kSharedAlignment));
    if (random_order()) {
        const size_t colon = device.order_name.find(':');
        const char* seed = colon == std::string::npos ? "0" : device.order_name.c_str() + colon + 1;
        device.random.seed(static_cast<unsigned>(std::atoi(seed)));
    }
    const uint64_t per_layer = uint64_t(grid.x) * grid.y;
    std::vector<int> clusters(per_layer * grid.z / cluster);
    std::iota(clusters.begin(), clusters.end(), 0);
    arrange(clusters);
    for (const unsigned first : clusters) {
        for (int rank = 0; rank < cluster; ++rank) {
            const unsigned i = first * cluster + rank;
            device.blocks[rank].index = {i % grid.x, i / grid.x % grid.y, unsigned(i / per_layer)};
        }
        run_cluster();
        if (device.failed) break;
    }
#if defined(__SANITIZE_ADDRESS__)
    // A thread that returned left its stack as it found it; the others' frames stay poisoned.
    for (const Fiber& fiber : device.fibers)
        if (fiber.state != State::kDone)
            __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
    for (Block& b : device.blocks)
        ::operator delete(b.shared, std::align_val_t(kSharedAlignment));
    return check_boxes(device.failed ? cudaErrorLaunchFailure : cudaSuccess);
}

}  // namespace emulator

extern "C" {

__attribute__((visibility("default"))) void emulator_set_order(const char* name) {
    emulator::device.order_name = name;
}

// The device that was current at the last launch.
__attribute__((visibility("default"))) int emulator_launch_device() {
    return emulator::launch_device;
}

}  // extern "C"
