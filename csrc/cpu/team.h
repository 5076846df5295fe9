// A team of OpenMP's threads. torch's own, where torch is loaded: its library comes first.
#pragma once

#include <omp.h>

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#endif

namespace effnet_fast::cpu {

// What a thread did before it left a place is done for all that meet there afterwards. OpenMP makes
// it so; ThreadSanitizer, which does not see into its library, is told here.
inline void leave([[maybe_unused]] const void* place) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(const_cast<void*>(place));
#endif
}

inline void meet([[maybe_unused]] const void* place) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(const_cast<void*>(place));
#endif
}

// body(tid, team), by each of up to `threads` threads.
template <typename Body>
#if defined(__SANITIZE_THREAD__)
__attribute__((no_sanitize("thread")))  // the region's captured variables are read before meet()
#endif
void parallel(int threads, const Body& body) {
    leave(&body);
#pragma omp parallel num_threads(threads)
    {
        meet(&body);
        body(omp_get_thread_num(), omp_get_num_threads());
        leave(&body);
    }
    meet(&body);
}

// All of a team; `place` is any address of what they share.
inline void barrier(const void* place) {
    leave(place);
#pragma omp barrier
    meet(place);
}

}  // namespace effnet_fast::cpu
