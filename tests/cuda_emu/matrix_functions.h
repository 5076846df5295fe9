// ldmatrix and mma.sync for the emulator: what csrc/cuda/tensor_core.cuh asks for.
#pragma once

#include <array>

namespace emulator {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Every lane's row of 16 bytes; matrix m's row r is that of lane 8 m + r.
inline void load_matrices(const void* row, uint32_t (&matrices)[4],
                          Site site = {__builtin_FILE(), __builtin_LINE()}) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail(site, "a misaligned row of a matrix");
    unsigned char own[16];
    std::memcpy(own, row, sizeof own);
    const Lanes& rows = all_gather(kWholeWarp, own, sizeof own, site);
    const int g = lane() / 4, t = lane() % 4;
    for (int m = 0; m < 4; ++m) std::memcpy(&matrices[m], rows.bytes[8 * m + g] + 4 * t, 4);
}

// Register of an 8 x 8 matrix whose row r is at row(r): of its columns 2 t and 2 t + 1, row g is
// element g of rows 2 t and 2 t + 1.
template <class Row>
uint32_t transposed(Row row) {
    uint16_t pair[2];
    const int g = lane() / 4, t = lane() % 4;
    for (int e = 0; e < 2; ++e) std::memcpy(&pair[e], row(2 * t + e, g), 2);
    return bit_cast<uint32_t>(std::array<uint16_t, 2>{pair[0], pair[1]});
}

inline void load_transposed(const void* row, uint32_t (&matrices)[4],
                            Site site = {__builtin_FILE(), __builtin_LINE()}) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail(site, "a misaligned row of a matrix");
    unsigned char own[16];
    std::memcpy(own, row, sizeof own);
    const Lanes& rows = all_gather(kWholeWarp, own, sizeof own, site);
    for (int m = 0; m < 4; ++m) {
        matrices[m] = transposed([&](int r, int c) { return rows.bytes[8 * m + r] + 2 * c; });
    }
}

inline uint32_t transpose(uint32_t matrix, Site site = {__builtin_FILE(), __builtin_LINE()}) {
    const Lanes& words = all_gather(kWholeWarp, &matrix, sizeof matrix, site);
    return transposed([&](int r, int c) { return words.bytes[4 * r + c / 2] + c % 2 * 2; });
}

// The sum over k in one order, each step in fp32; the hardware's order and rounding are its own.
template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  const float (&c)[4], Site site = {__builtin_FILE(), __builtin_LINE()}) {
    const uint32_t own[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const Lanes& lanes = all_gather(kWholeWarp, own, sizeof own, site);
    const int g = lane() / 4, t = lane() % 4;
    // Register `word` of the four lanes that hold a row: its 8 elements.
    const auto elements = [&](int row, int word, float* to) {
        for (int from = 0; from < 4; ++from) {
            T pair[2];
            std::memcpy(pair, lanes.bytes[4 * row + from] + 4 * word, sizeof pair);
            to[2 * from] = float(pair[0]), to[2 * from + 1] = float(pair[1]);
        }
    };
    float rows[2][16], columns[2][16];
    for (int i = 0; i < 2; ++i) {
        for (int half = 0; half < 2; ++half) {
            elements(g, i + 2 * half, rows[i] + 8 * half);
            elements(2 * t + i, 4 + half, columns[i] + 8 * half);
        }
    }
    for (int i = 0; i < 4; ++i) {
        float sum = c[i];
        for (int k = 0; k < 16; ++k) sum += rows[i / 2][k] * columns[i % 2][k];
        d[i] = sum;
    }
}

}  // namespace emulator
