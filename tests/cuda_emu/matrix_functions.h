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
    const Lanes rows = all_gather(kWholeWarp, own, sizeof own, site);
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
    const Lanes rows = all_gather(kWholeWarp, own, sizeof own, site);
    for (int m = 0; m < 4; ++m) {
        matrices[m] = transposed([&](int r, int c) { return rows.bytes[8 * m + r] + 2 * c; });
    }
}

inline uint32_t transpose(uint32_t matrix, Site site = {__builtin_FILE(), __builtin_LINE()}) {
    const Lanes words = all_gather(kWholeWarp, &matrix, sizeof matrix, site);
    return transposed([&](int r, int c) { return words.bytes[4 * r + c / 2] + c % 2 * 2; });
}

template <class T>
float half_of(const unsigned char* word, int which) {
    T value;
    std::memcpy(&value, word + 2 * which, sizeof value);
    return float(value);
}

// The sum over k in one order, each step in fp32; the hardware's order and rounding are its own.
template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  const float (&c)[4], Site site = {__builtin_FILE(), __builtin_LINE()}) {
    const uint32_t b[2] = {b0, b1};
    const Lanes as = all_gather(kWholeWarp, a, sizeof a, site);
    const Lanes bs = all_gather(kWholeWarp, b, sizeof b, site);
    const int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; ++i) {
        const int lower = i / 2, column = 2 * t + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; ++k) {
            const int upper = k / 8, from = k % 8 / 2;
            const unsigned char* const row = as.bytes[4 * g + from] + 4 * (lower + 2 * upper);
            const unsigned char* const col = bs.bytes[4 * column + from] + 4 * upper;
            sum += half_of<T>(row, k % 2) * half_of<T>(col, k % 2);
        }
        d[i] = sum;
    }
}

}  // namespace emulator
