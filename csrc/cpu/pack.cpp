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

void put(float* to, float value) { *to = value; }
void put(Bf16* to, float value) { *to = to_bf16(value); }

const float* pack_rows(Arena& arena, const float* rows, int count, int c) {
    const int width = blocks_of(c) * kBlock;
    float* packed = arena.get<float>(size_t(count) * width);
    for (int i = 0; i < count; ++i) {
        std::copy_n(rows + size_t(i) * c, c, packed + size_t(i) * width);
    }
    return packed;
}

// Of all that is packed for a block.
template <typename T>
size_t bytes_of(const Block& b) {
    const auto whole = [](int channels) { return size_t(blocks_of(channels)) * kBlock; };
    const Conv& d = b.depthwise;
    const size_t c = whole(d.out), out = whole(b.project.out), squeezed = whole(b.reduce.out);
    const size_t weights = c * (b.expand.in + 1) + out * (c + 1);
    const size_t others = c * (d.kernel * d.kernel + 2 * squeezed + 3) + squeezed + out;
    return weights * sizeof(T) + others * sizeof(float);
}

// weight [out][k], bias [out]. behind(group) packs what is read after the panels of each group.
template <typename T, typename Behind>
Panels<T> pack_panels(Arena& arena, const std::vector<float>& weight,
                      const std::vector<float>& bias, int out, int k, int panel_blocks,
                      const Behind& behind) {
    constexpr int pair = Panels<T>::pair;
    Panels<T> p;
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
                for (int i = 0; i < k; ++i)
                    put(to + size_t(i / pair) * width * pair + i % pair, from[i]);
            }
        }
        behind(group);
    }
    p.bias = pack_rows(arena, bias.data(), 1, out);
    return p;
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
        return pack_panels<T>(arena, c.weight, c.bias, c.out, c.in, panel_blocks, behind);
    };
    packed.stem = pack_panels<float>(arena, n.stem.weight, n.stem.bias, n.stem.out,
                                     int(n.stem.weight.size() / n.stem.out), panel_blocks, nothing);
    for (const Block& b : n.blocks) {
        PackedBlock<T> p;
        arena.reserve(bytes_of<T>(b));  // what is behind a panel is fetched by its product
        const int c = b.depthwise.out, taps = b.depthwise.kernel * b.depthwise.kernel;
        const int squeezed = b.reduce.out;
        const std::vector<float> reduce = transposed(b.reduce.weight, squeezed, c);
        const auto add_group = [&](const Range& group) {
            p.groups.push_back({group, nullptr});
            if (!squeezed) return;
            const int first = group.first * kBlock;
            p.groups.back().reduce =
                pack_rows(arena, reduce.data() + size_t(first) * squeezed,
                          std::min(group.count * kBlock, c - first), squeezed);
        };
        if (b.expand.out) {
            p.expand = conv(b.expand, add_group);
        } else {
            for (const Range& group : groups_of(blocks_of(c))) add_group(group);
        }
        float* to = arena.get<float>(size_t(blocks_of(c)) * taps * kBlock);
        for (int i = 0; i < c; ++i) {
            for (int t = 0; t < taps; ++t) {
                to[(size_t(i / kBlock) * taps + t) * kBlock + i % kBlock] =
                    b.depthwise.weight[size_t(i) * taps + t];
            }
        }
        p.taps = to;
        p.depthwise_bias = pack_rows(arena, b.depthwise.bias.data(), 1, c);
        if (squeezed) {
            p.reduce_bias = pack_rows(arena, b.reduce.bias.data(), 1, squeezed);
            p.widen = pack_rows(arena, transposed(b.widen.weight, c, squeezed).data(), squeezed, c);
            p.widen_bias = pack_rows(arena, b.widen.bias.data(), 1, c);
        }
        p.project = conv(b.project, nothing);
        packed.blocks.push_back(std::move(p));
    }
    packed.head = conv(n.head, nothing);
    if (n.classifier.out) {
        const Linear& l = n.classifier;
        packed.classifier =
            pack_panels<T>(arena, l.weight, l.bias, l.out, l.in, panel_blocks, nothing);
    }
    return packed;
}

template Packed<float> pack(const Network&, int);
template Packed<Bf16> pack(const Network&, int);

}  // namespace effnet_fast::cpu
