// The gradient on load: that of a convolution's raw output y, which is never stored.
//
//     h  = (g * gate * drop_scale + dpool) * act'(affine(y))      of the batch norm's output
//     dy = a * h + b * (y - mean) + c                             coef = (a, b, mean, c)
#pragma once

#include "cuda/activation.cuh"

namespace effnet_fast {

// h of one element; scale and shift are times act.factor. `weight` is gate * drop_scale.
template <class T>
__device__ __forceinline__ float bn_output_grad(const Act& act, float g, float y, float scale,
                                                float shift, float weight, float dpool) {
    float slope;
    apply_and_slope<T>(act, fmaf(y, scale, shift), &slope);
    return fmaf(g, weight, dpool) * slope;
}

__device__ __forceinline__ float bn_input_grad(float h, float y, float a, float b, float mean,
                                               float c) {
    return fmaf(a, h, fmaf(b, y - mean, c));
}

}  // namespace effnet_fast
