// Random networks through the engine: driver FIRST LAST FILE runs those of seeds FIRST up to LAST,
// with every instruction set of the machine and both types, in one thread, in teams, and from several
// callers at once. A line for what differs where nothing may; the status is 1 if there was any. FILE
// gets the logits in fp32 of the first instruction set.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "cpu/engine.h"

using namespace effnet_fast::cpu;

namespace {

class Random {
public:
    explicit Random(unsigned seed) : source_(seed) {}
    int from(int low, int high) { return std::uniform_int_distribution<int>(low, high)(source_); }
    std::vector<float> values(size_t count, float scale) {
        std::normal_distribution<float> normal(0.0f, scale);
        std::vector<float> v(count);
        for (float& x : v) x = normal(source_);
        return v;
    }

private:
    std::mt19937 source_;
};

Conv conv(Random& r, int in, int out, int per_group, int kernel, int stride, Activation act) {
    const int k = per_group * kernel * kernel;
    Conv c{r.values(size_t(out) * k, 1 / std::sqrt(float(k))), r.values(out, 0.1f), {}, in, out,
           kernel, stride, act};
    for (int i = 0; i < out; ++i) c.scale.push_back(r.from(1, 8) / 4.0);
    return c;
}

Linear linear(Random& r, int in, int out) {
    return {r.values(size_t(in) * out, 1 / std::sqrt(float(in))), r.values(out, 0.1f), in, out};
}

Network network(Random& r) {
    const Activation act = std::vector{Activation::silu, Activation::relu, Activation::relu6,
                                       Activation::identity}[r.from(0, 3)];
    Network n;
    n.same_padding = r.from(0, 1);
    int c = r.from(1, 50);
    const int image = r.from(1, 4);
    // One draw a statement: the order of arguments is the compiler's.
    const int stem_kernel = r.from(0, 1) ? 3 : 5, stem_stride = r.from(1, 2);
    n.stem = conv(r, image, c, image, stem_kernel, stem_stride, act);
    const int blocks = r.from(1, 3);
    for (int i = 0; i < blocks; ++i) {
        Block b;
        const int expansion = r.from(1, 3), more = r.from(0, 5);
        const int wide = i > 0 && r.from(0, 4) ? c * expansion + more : c;
        if (wide != c) b.expand = conv(r, c, wide, c, 1, 1, act);
        const int stride = r.from(1, 2), out = i > 0 && stride == 1 && r.from(0, 1) ? c : r.from(1, 70);
        const int kernel = r.from(0, 1) ? 3 : 5;
        b.depthwise = conv(r, wide, wide, 1, kernel, stride, act);
        if (r.from(0, 3)) {
            b.reduce = linear(r, wide, r.from(1, 20));
            b.widen = linear(r, b.reduce.out, wide);
            b.squeeze_act = act;
        }
        b.project = conv(r, wide, out, wide, 1, 1, Activation::identity);
        b.residual = i > 0 && stride == 1 && out == c;
        n.blocks.push_back(b);
        c = out;
    }
    const int features = r.from(1, 90);
    n.head = conv(r, c, features, c, 1, 1, act);
    if (r.from(0, 3)) n.classifier = linear(r, n.head.out, r.from(1, 50));
    n.scale.assign(image, 1 / 64.0f);
    n.shift.assign(image, -2.0f);
    return n;
}

struct Images {
    std::vector<float> floats;
    std::vector<uint8_t> bytes;
    Input input;
};

// In either order of axes, and exactly as long as they must be.
Images images(Random& r, int channels) {
    Images x;
    const int n = r.from(1, 5), h = r.from(1, 40), w = r.from(1, 40);
    const size_t count = size_t(n) * channels * h * w;
    const bool bytes = r.from(0, 2) == 0;
    if (bytes) {
        for (size_t i = 0; i < count; ++i) x.bytes.push_back(static_cast<uint8_t>(r.from(0, 255)));
    } else {
        x.floats = r.values(count, 1.0f);
    }
    const void* data = bytes ? static_cast<const void*>(x.bytes.data()) : x.floats.data();
    const int64_t plane = int64_t(h) * w, image = plane * channels;
    x.input = r.from(0, 1) ? Input{data, bytes, n, channels, h, w, image, plane, w, 1}
                           : Input{data, bytes, n, channels, h, w, image, 1, int64_t(w) * channels,
                                   channels};
    return x;
}

int run(unsigned seed, std::FILE* file) {
    Random r(seed);
    const Network n = network(r);
    const Images x = images(r, n.stem.in);
    const size_t each = n.classifier.out ? n.classifier.out : n.head.out;
    int wrong = 0;
    const auto differ = [&](const std::vector<float>& a, const std::vector<float>& b, Isa isa,
                            const char* what) {
        if (std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) return;
        std::printf("seed %u, %s: %s differ\n", seed, name(isa), what);
        ++wrong;
    };
    for (const Isa isa : available_isas()) {
        for (const Type type : {Type::fp32, Type::bf16}) {
            const Engine engine(n, isa, type);
            const auto call = [&](int threads) {
                std::vector<float> out(x.input.n * each);
                engine.run(x.input, threads, Result::logits, out.data(), nullptr);
                return out;
            };
            if (type == Type::fp32 && isa == available_isas().front()) {
                const std::vector<float> one = call(1);
                std::fwrite(one.data(), sizeof(float), one.size(), file);
            }
            for (const int threads : {1, 2, 3}) {
                differ(call(threads), call(threads), isa, "two runs");
            }
            std::vector<float> first, second;
            std::thread caller([&] { first = call(2); });
            second = call(2);
            caller.join();
            differ(first, second, isa, "two callers");
            const auto [h, w] = engine.feature_size(x.input.h, x.input.w);
            std::vector<float> map(size_t(x.input.n) * h * w * n.head.out);
            std::vector<double> seconds(engine.steps(x.input.h, x.input.w).size());
            engine.run(x.input, 2, Result::features, map.data(), seconds.data());
        }
    }
    return wrong;
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) return 2;
    const int first = std::atoi(words[1]), last = std::atoi(words[2]);
    std::FILE* file = std::fopen(words[3], "wb");
    if (!file) return 2;
    int wrong = 0;
    for (int seed = first; seed < last; ++seed) wrong += run(seed, file);
    std::fclose(file);
    std::printf("%d networks\n", last - first);
    return wrong != 0;
}
