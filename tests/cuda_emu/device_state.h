// What the scheduler keeps of a running cluster: its blocks, their warps, and a fiber per thread.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "scheduler.h"

namespace emulator {

enum class State { kReady, kAtBarrier, kAtCluster, kAtCollective, kDone };

struct Copy {
    void* shared;
    const void* global;
    int bytes;
    bool inside;
};

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    State state = State::kDone;
    uint3 index{};
    int number = 0, block = 0;  // of the thread in its block, of the block in its cluster
    Site site{};         // where it waits
    unsigned mask = 0;   // of the collective it waits for
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;  // committed, oldest first
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
    bool failed = false;
    void (*body)(void*) = nullptr;
    void* argument = nullptr;
    std::string order_name = "forward";
    std::mt19937 random;
    void* main_stack_pointer = nullptr;
    void* main_fake_stack = nullptr;
    const void* main_stack = nullptr;
    size_t main_stack_bytes = 0;
};

}  // namespace emulator
