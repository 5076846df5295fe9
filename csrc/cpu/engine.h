// Inference on a CPU: an EfficientNet whose batch norms are folded and whose weights are packed
// once in the order in which they are read, with a static plan per size of image.
//
//     const Engine engine(network, choose_isa(""));
//     engine.run(input, threads, Result::logits, out);  // from as many threads as one likes
//
// No torch, no Python here. An Engine never changes after its construction but for the plans and
// workspaces that it keeps for the next call of the same size, behind a mutex; a second call at the
// same time gets a workspace of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace effnet_fast::cpu {

// A convolution times scale plus bias, its batch norm: weight [out][in / groups][kernel][kernel],
// scale and bias [out]. Weights of fp32 are multiplied by their scale in fp64; of bf16 they keep it
// apart, since those that are exact would be rounded again, the same way in every pixel.
struct Conv {
    std::vector<float> weight, bias;
    std::vector<double> scale;
    int in = 0, out = 0, kernel = 1, stride = 1;
    Activation act = Activation::identity;
};

// weight [out][in], bias [out]. `out` is 0 where a network has no such layer.
struct Linear {
    std::vector<float> weight, bias;
    int in = 0, out = 0;
};

// An MBConv; without expansion `expand.out` is 0, without squeeze-and-excitation `reduce.out`.
struct Block {
    Conv expand, depthwise, project;
    Linear reduce, widen;
    Activation squeeze_act = Activation::silu;
    bool residual = false;
};

// stem (dense), blocks, head (1x1), mean over the map, classifier. The first block has no expansion
// and no residual: the stem's map is never written.
struct Network {
    Conv stem, head;
    std::vector<Block> blocks;
    Linear classifier;
    bool same_padding = false;  // as TensorFlow pads; else (kernel - 1) / 2 on every side
    // uint8 images become scale[c] * value + shift[c]; empty if they are not taken.
    std::vector<float> scale, shift;
};

// Images of any strides, in elements; float, or uint8 to be normalised as the network says.
struct Input {
    const void* data;
    bool is_uint8;
    int n, c, h, w;
    int64_t stride_n, stride_c, stride_h, stride_w;
};

// How maps and weights lie in memory. Results are fp32 in any case.
enum class Type { fp32, bf16 };

// What run() writes.
enum class Result {
    logits,    // [n][classes]; without a classifier [n][features]
    features,  // the head's activated map [n][h][w][features]
};

// One line of a summary.
struct Step {
    std::string name, shape;
    double multiply_adds;  // per image
    double weight_bytes;
};

class Engine {
public:
    // std::invalid_argument names what in `network` the engine does not know.
    Engine(const Network& network, Isa isa, Type type);
    ~Engine();

    // n >= 0, h and w >= 1, c the stem's. `seconds`: where the time of each of steps() is added, as
    // the first thread sees it; or null.
    void run(const Input& x, int threads, Result result, float* out, double* seconds) const;

    // Height and width of the head's map.
    std::pair<int, int> feature_size(int h, int w) const;
    std::vector<Step> steps(int h, int w) const;
    // Of one image's workspace.
    size_t workspace_bytes(int h, int w, int threads) const;

private:
    struct State;
    template <typename T>
    struct StateOf;
    std::unique_ptr<State> state_;
};

}  // namespace effnet_fast::cpu
