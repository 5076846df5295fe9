// The stacks of the emulator's fibers, switched by hand on x86-64.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>

namespace emulator {

constexpr size_t kStackBytes = 512 * 1024;  // address sanitizer's frames are large

inline char* new_stack() {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    return static_cast<char*>(memory);
}

// Pushes the registers that a callee saves, changes stacks, pops the other fiber's.
__attribute__((naked, noinline)) inline void switch_stack(void** /*rdi: save*/,
                                                          void* /*rsi: load*/) {
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

// The pointer to a stack on which switch_stack finds six registers to pop and `entry` to return to.
// Stacks begin at different distances from a page's end: all at one would share a few lines of cache.
inline void* start_of(char* stack, int number, void (*entry)()) {
    const size_t distance = number * size_t(9 * 64) % (32 * 1024);
    void** top = reinterpret_cast<void**>(stack + kStackBytes - distance) - 2;
    *top = reinterpret_cast<void*>(entry);
    return top - 6;
}

}  // namespace emulator
