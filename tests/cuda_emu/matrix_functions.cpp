// A warp's products of matrices for the emulator, and its look at their operands. Compiled once, with
// optimisation, though most kernels are not: half of a product's time is here.
#include <algorithm>

#include "scheduler.h"

namespace emulator {

namespace {
bool nan_expected = false;
}

void multiply_matrices(float (&c)[4], const float (&own)[6][2], Site site) {
    double mine[6][2];
    std::copy(&own[0][0], &own[0][0] + 12, &mine[0][0]);
    const Lanes& lanes = all_gather(0xffffffffu, mine, sizeof mine, site);
    const auto word = [&](int lane, int i) {
        return reinterpret_cast<const double*>(lanes.bytes[lane]) + 2 * i;
    };
    const int g = lane() / 4, t = lane() % 4;
    using Columns = double __attribute__((vector_size(16)));  // 2 t and 2 t + 1
    Columns upper = {}, lower = {};                           // of rows g and g + 8
    for (int late = 0; late < 2; late++) {
        for (int owner = 0; owner < 4; owner++) {
            const double* const a0 = word(4 * g + owner, 2 * late);
            const double* const a1 = word(4 * g + owner, 2 * late + 1);
            const double* const b0 = word(8 * t + owner, 4 + late);
            const double* const b1 = word(8 * t + 4 + owner, 4 + late);
            for (int e = 0; e < 2; e++) {
                const Columns b = {b0[e], b1[e]};
                upper += a0[e] * b;
                lower += a1[e] * b;
            }
        }
    }
    const double sums[4] = {upper[0], upper[1], lower[0], lower[1]};
    for (int i = 0; i < 4; i++) c[i] = float(c[i] + sums[i]);
}

bool any_nan(float value, Site site) {
    const unsigned char mine = value != value;
    if (mine && !nan_expected) fail(site, "NaN in a sum of finite operands: something not written?");
    const Lanes& lanes = all_gather(0xffffffffu, &mine, 1, site);
    return std::any_of(lanes.bytes, lanes.bytes + 32, [](const auto& lane) { return lane[0] != 0; });
}

}  // namespace emulator

// Whether operands may be infinite or NaN, so that sums may be NaN.
extern "C" __attribute__((visibility("default"))) void emulator_expect_nan(int expected) {
    emulator::nan_expected = expected != 0;
}
