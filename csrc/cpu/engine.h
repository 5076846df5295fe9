// Inference on a CPU: an EfficientNet with its batch norms folded, its weights packed once in the
// order in which they are read, and a static plan per input shape.
//
//     const Engine engine(spec, Storage::f32, choose_isa(""));
//     engine.run(input, threads, Result::logits, out);      // from as many threads as one likes
//
// No torch, no Python here. An Engine never changes after its construction, but for the plans and
// arenas that it keeps for the next call of the same shape (behind a mutex); a second call at the
// same time gets an arena of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace effnet_fast::cpu {

// Of weights and activations between the passes; arithmetic is fp32, the products of bf16 too.
enum class Storage { f32, bf16 };
enum class Activation { identity, relu, relu6, silu };

// A convolution with its batch norm folded: weight [out][in / groups][kernel][kernel], bias [out].
struct Conv {
    std::vector<float> weight;
    std::vector<float> bias;
    int in = 0, out = 0, kernel = 1, stride = 1;
    Activation act = Activation::identity;
};

// weight [out][in], bias [out].
struct Linear {
    std::vector<float> weight;
    std::vector<float> bias;
    int in = 0, out = 0;
};

// An MBConv. `expand.out` is 0 where the block has none, `reduce.out` where it has no
// squeeze-and-excitation, whose activation between both layers is `squeeze_act`.
struct Block {
    Conv expand, depthwise, project;
    Linear reduce, widen;
    Activation squeeze_act = Activation::silu;
    bool residual = false;
};

// stem (dense), blocks, head (1x1), mean over the map, classifier (out is 0: none).
struct Network {
    Conv stem, head;
    std::vector<Block> blocks;
    Linear classifier;
    bool same_padding = false;  // as TensorFlow pads; else (kernel - 1) / 2 on every side
    // uint8 images become scale[c] * value + shift[c]: [stem.in] each.
    std::vector<float> scale, shift;
};

// Images of any strides, in elements; float, or uint8 to be normalised as the network says.
struct Input {
    const void* data;
    bool is_uint8;
    int n, c, h, w;
    int64_t stride_n, stride_c, stride_h, stride_w;
};

// What run() writes, in fp32:
enum class Result {
    logits,    // [n][classes]; without a classifier [n][features]
    features,  // the head's activated map [n][h][w][features]
};

// One line of a summary.
struct Step {
    std::string name;     // "blocks.3.expand+depthwise"
    std::string what;     // the shapes, the tiles and how threads share it
    double multiply_adds;  // per image
    double bytes;          // of weights and of maps in and out, per image
};

class Engine {
public:
    // std::invalid_argument names what in `network` the engine does not know.
    Engine(const Network& network, Storage storage, Isa isa);
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // Any size from 1x1, any n >= 0. std::invalid_argument for channels that are not the network's.
    void run(const Input& x, int threads, Result result, float* out) const;

    // The head's map for images of h x w: its height and width.
    void feature_size(int h, int w, int* feature_h, int* feature_w) const;

    std::vector<Step> steps(int n, int h, int w, int threads) const;
    size_t weight_bytes() const;
    size_t arena_bytes(int n, int h, int w, int threads) const;
    // Seconds of each step() of one run on one image, one thread: what the roofline picture is of.
    std::vector<double> profile(const Input& x, int threads, int rounds) const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace effnet_fast::cpu
