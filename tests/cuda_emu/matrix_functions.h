// ldmatrix for the emulator: what csrc/cuda/tensor_core.cuh asks for beside mma_m16n8k16.
#pragma once

namespace emulator {

// Every lane's row of 16 bytes; matrix m's row r is that of lane 8 m + r.
inline const Lanes& gather_rows(const void* row, Site site) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail(site, "a misaligned row of a matrix");
    unsigned char own[16];
    std::memcpy(own, row, sizeof own);
    return all_gather(0xffffffffu, own, sizeof own, site);
}

inline void load_matrices(const void* row, uint32_t (&matrices)[4],
                          Site site = {__builtin_FILE(), __builtin_LINE()}) {
    const Lanes& rows = gather_rows(row, site);
    const int g = lane() / 4, t = lane() % 4;
    for (int m = 0; m < 4; ++m) std::memcpy(&matrices[m], rows.bytes[8 * m + g] + 4 * t, 4);
}

}  // namespace emulator
