// One image through the network, by one thread of a team.
#pragma once

#include "cpu/pack.h"
#include "cpu/plan.h"

namespace effnet_fast::cpu {

// What a call hands to all its threads.
template <typename T>
struct Job {
    const Network& network;
    const Packed<T>& packed;
    const Plan& plan;
    const Kernels<T>& kernels;
    const Input& input;
    Result result;
    double* seconds;  // by steps of Engine::steps, to which each is added; or null
};

// Runs image `image` of the job and writes its part of the result at `out`. All `team` threads of
// an OpenMP team call it with their `tid`; a team of one needs no parallel region.
template <typename T>
void forward(const Job<T>& job, Workspace<T>& workspace, int image, float* out, int tid, int team);

}  // namespace effnet_fast::cpu
