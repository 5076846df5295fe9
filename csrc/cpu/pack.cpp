#include "cpu/pack.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/bf16.h"

namespace effnet_fast::cpu {

namespace {

// Threes, twos at the end: a map is read once for each, from the third-level cache if it is large.
// A tile of one block would wait for its operands.
std::vector<Range> groups_of(int blocks) {
    std::vector<Range> groups;
    for (int first = 0; first < blocks;) {
        const int left = blocks - first, count = left == 2 || left == 4 ? 2 : std::min(left, 3);
        groups.push_back({first, count});
        first += count;
    }
    return groups;
}

void put(float* to, float weight, double scale) { *to = float(weight * scale); }
void put(Bf16* to, float weight, double) { *to = to_bf16(weight); }

// [count][c], of whole blocks each, from rows `stride` apart.
template <typename T>
const T* pack_rows(Arena& arena, const float* rows, int count, int c, int stride) {
    const int width = blocks_of(c) * kBlock;
    T* packed = arena.get<T>(size_t(count) * width);
    for (int i = 0; i < count; ++i, rows += stride) {
        for (int j = 0; j < c; ++j) put(packed + size_t(i) * width + j, rows[j], 1.0);
    }
    return packed;
}

const float* pack_row(Arena& arena, const std::vector<float>& row) {
    return pack_rows<float>(arena, row.data(), 1, int(row.size()), 0);
}

const float* pack_row(Arena& arena, const std::vector<double>& row) {
    return pack_row(arena, std::vector<float>(row.begin(), row.end()));
}

// Outputs of a depthwise convolution that differ in where their pairs of columns begin.
template <typename T>
int parities_of(const Conv& d) {
    return d.stride == 1 ? kPair<T> : 1;
}

// Weights of a channel, with those that are zero to make up pairs.
template <typename T>
int taps_of(const Conv& d) {
    return d.kernel * parities_of<T>(d) * (d.kernel + d.kernel % kPair<T>);
}

// Of all that is packed for a block.
template <typename T>
size_t bytes_of(const Block& b) {
    const auto whole = [](int channels) { return size_t(blocks_of(channels)) * kBlock; };
    const Conv& d = b.depthwise;
    const size_t c = whole(d.out), out = whole(b.project.out), squeezed = whole(b.reduce.out);
    const size_t weights = c * (b.expand.in + 1 + taps_of<T>(d) + 2 * squeezed) + out * (c + 1);
    const size_t others = c * 5 + squeezed + 2 * out;
    return weights * sizeof(T) + others * sizeof(float);
}

// weight [out][k], scale and bias [out]. behind(group) packs what is read after the panels of a
// group.
template <typename T, typename Behind>
Panels<T> pack_panels(Arena& arena, const std::vector<float>& weight,
                      const std::vector<double>& scale, const std::vector<float>& bias, int k,
                      int panel_blocks, const Behind& behind) {
    constexpr int pair = kPair<T>;
    Panels<T> p;
    const int out = int(bias.size());
    p.k = k;
    p.out = out;
    const int most = panel_blocks == 1 ? 1 : kWidest;
    for (const Range& group : groups_of(blocks_of(out))) {
        for (int done = 0; done < group.count; done += most) {
            const Range panel = {group.first + done, std::min(most, group.count - done)};
            const int width = panel.count * kBlock, first = panel.first * kBlock;
            T* const packed = arena.get<T>(p.size(panel));
            p.panels.push_back({panel, packed});
            for (int n = 0; n < std::min(width, out - first); ++n) {
                const float* from = weight.data() + size_t(first + n) * k;
                T* to = packed + n * pair;
                for (int i = 0; i < k; ++i) {
                    put(to + size_t(i / pair) * width * pair + i % pair, from[i], scale[first + n]);
                }
            }
        }
        behind(group);
    }
    p.scale = pack_row(arena, scale);
    p.bias = pack_row(arena, bias);
    return p;
}

// As Depthwise::weight, block by block.
template <typename T>
const T* pack_taps(Arena& arena, const Conv& d, const Range& group) {
    constexpr int pair = kPair<T>;
    const int parities = parities_of<T>(d), pairs = (d.kernel + pair - 1) / pair;
    const int first = group.first * kBlock, count = std::min(group.count * kBlock, d.out - first);
    T* const packed = arena.get<T>(size_t(group.count) * taps_of<T>(d) * kBlock);
    for (int c = 0; c < count; ++c) {
        for (int row = 0; row < d.kernel; ++row) {
            for (int parity = 0; parity < parities; ++parity) {
                for (int x = 0; x < d.kernel; ++x) {
                    const int column = parity + x;
                    const int line = (c / kBlock * d.kernel + row) * parities + parity;
                    const long at = line * long(pairs) + column / pair;
                    put(packed + (at * kBlock + c % kBlock) * pair + column % pair,
                        d.weight[(size_t(first + c) * d.kernel + row) * d.kernel + x],
                        d.scale[first + c]);
                }
            }
        }
    }
    return packed;
}

// The stem's weights in StemRow's order, with those that are zero to make up a pair.
template <typename T>
std::vector<float> paired(const Conv& stem) {
    constexpr int pair = kPair<T>;
    const int taps = stem.kernel * stem.kernel, channels = stem.in + stem.in % pair;
    std::vector<float> weight(size_t(stem.out) * channels * taps);
    for (int out = 0; out < stem.out; ++out) {
        for (int c = 0; c < stem.in; ++c) {
            for (int t = 0; t < taps; ++t) {
                const int at = (c / pair * taps + t) * pair + c % pair;
                weight[size_t(out) * channels * taps + at] =
                    stem.weight[(size_t(out) * stem.in + c) * taps + t];
            }
        }
    }
    return weight;
}

std::vector<float> transposed(const std::vector<float>& m, int rows, int columns) {
    std::vector<float> t(m.size());
    for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < columns; ++j) t[size_t(j) * rows + i] = m[size_t(i) * columns + j];
    }
    return t;
}

void require(bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument("the CPU engine cannot run this network: " + what);
}

void check_size(const std::vector<float>& values, size_t size, const std::string& what) {
    require(values.size() == size, what + " has " + std::to_string(values.size()) +
                                       " values, expected " + std::to_string(size));
}

void check_conv(const Conv& c, int in, int in_per_group, const std::string& name) {
    require(c.in == in, name + " takes " + std::to_string(c.in) + " channels, but gets " +
                            std::to_string(in));
    require(c.out >= 1, name + " has no outputs");
    check_size(c.weight, size_t(c.out) * in_per_group * c.kernel * c.kernel, name + ".weight");
    check_size(c.bias, c.out, name + ".bias");
    require(c.scale.size() == size_t(c.out), name + ".scale is not one per output");
}

void check_linear(const Linear& l, int in, int out, const std::string& name) {
    require(l.in == in && l.out == out, name + " is of another size than what is around it");
    check_size(l.weight, size_t(in) * out, name + ".weight");
    check_size(l.bias, out, name + ".bias");
}

void check_block(const Block& b, int in, const std::string& name) {
    int c = in;
    if (b.expand.out) {
        check_conv(b.expand, in, in, name + ".expand");
        require(b.expand.kernel == 1 && b.expand.stride == 1, name + ".expand is not 1x1");
        c = b.expand.out;
    }
    const Conv& d = b.depthwise;
    check_conv(d, c, 1, name + ".depthwise");
    require(d.out == c, name + ".depthwise changes the number of channels");
    require(d.kernel == 3 || d.kernel == 5, name + ".depthwise has a kernel of " +
                                                std::to_string(d.kernel) + ", expected 3 or 5");
    require(d.stride == 1 || d.stride == 2, name + ".depthwise has a stride of " +
                                                std::to_string(d.stride) + ", expected 1 or 2");
    if (b.reduce.out) {
        check_linear(b.reduce, c, b.reduce.out, name + ".reduce");
        check_linear(b.widen, b.reduce.out, c, name + ".widen");
    }
    check_conv(b.project, c, c, name + ".project");
    require(b.project.kernel == 1 && b.project.stride == 1, name + ".project is not 1x1");
    require(b.project.act == Activation::identity, name + ".project has an activation");
    require(!b.residual || (d.stride == 1 && b.project.out == in),
            name + " adds its input to an output of another shape");
}

}  // namespace

void check(const Network& n) {
    check_conv(n.stem, n.stem.in, n.stem.in, "stem");
    require(n.stem.kernel % 2 == 1, "stem has an even kernel");
    require(n.stem.stride == 1 || n.stem.stride == 2, "stem has a stride of " +
                                                          std::to_string(n.stem.stride) +
                                                          ", expected 1 or 2");
    require(!n.blocks.empty(), "it has no blocks");
    require(!n.blocks[0].expand.out && !n.blocks[0].residual,
            "its first block has an expansion or a residual connection");
    int c = n.stem.out;
    for (size_t i = 0; i < n.blocks.size(); ++i) {
        check_block(n.blocks[i], c, "blocks." + std::to_string(i));
        c = n.blocks[i].project.out;
    }
    check_conv(n.head, c, c, "head");
    require(n.head.kernel == 1 && n.head.stride == 1, "head is not 1x1");
    if (n.classifier.out) check_linear(n.classifier, n.head.out, n.classifier.out, "classifier");
    require(n.scale.size() == n.shift.size() &&
                (n.scale.empty() || int(n.scale.size()) == n.stem.in),
            "scale and shift are not one per channel of the image");
}

template <typename T>
Packed<T> pack(const Network& n, int panel_blocks) {
    Packed<T> packed;
    Arena& arena = packed.arena;
    const auto nothing = [](const Range&) {};
    const auto conv = [&](const Conv& c, const auto& behind) {
        return pack_panels<T>(arena, c.weight, c.scale, c.bias, c.in, panel_blocks, behind);
    };
    const std::vector<float> stem = paired<T>(n.stem);
    packed.stem = pack_panels<T>(arena, stem, n.stem.scale, n.stem.bias,
                                 int(stem.size() / n.stem.out), panel_blocks, nothing);
    for (const Block& b : n.blocks) {
        PackedBlock<T> p;
        arena.reserve(bytes_of<T>(b));  // what is behind a panel is fetched by its product
        const int c = b.depthwise.out;
        const int squeezed = b.reduce.out;
        const std::vector<float> reduce = transposed(b.reduce.weight, squeezed, c);
        const std::vector<float> widen = transposed(b.widen.weight, c, squeezed);
        const auto add_group = [&](const Range& group) {
            p.groups.push_back({group, pack_taps<T>(arena, b.depthwise, group)});
            if (!squeezed) return;
            const int first = group.first * kBlock;
            const int count = std::min(group.count * kBlock, c - first);
            p.groups.back().reduce = pack_rows<T>(
                arena, reduce.data() + size_t(first) * squeezed, count, squeezed, squeezed);
            p.groups.back().widen = pack_rows<T>(arena, widen.data() + first, squeezed, count, c);
        };
        if (b.expand.out) {
            p.expand = conv(b.expand, add_group);
        } else {
            for (const Range& group : groups_of(blocks_of(c))) add_group(group);
        }
        p.taps = long(taps_of<T>(b.depthwise)) * kBlock;
        p.depthwise_scale = pack_row(arena, b.depthwise.scale);
        p.depthwise_bias = pack_row(arena, b.depthwise.bias);
        if (squeezed) {
            p.reduce_bias = pack_row(arena, b.reduce.bias);
            p.widen_bias = pack_row(arena, b.widen.bias);
        }
        p.project = conv(b.project, nothing);
        packed.blocks.push_back(std::move(p));
    }
    packed.head = conv(n.head, nothing);
    if (n.classifier.out) {
        const Linear& l = n.classifier;
        packed.classifier =
            pack_panels<T>(arena, l.weight, std::vector<double>(l.out, 1.0), l.bias, l.in,
                           panel_blocks, nothing);
    }
    return packed;
}

template Packed<float> pack(const Network&, int);
template Packed<Bf16> pack(const Network&, int);

}  // namespace effnet_fast::cpu
