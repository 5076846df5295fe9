// 1x1 convolution forward.
#include "cuda/pointwise.cuh"

namespace effnet_fast {
namespace {

bool finishes(const PointwiseArgs& args) {
    return args.out_bn.mean.data != nullptr || args.out_act != Activation::kIdentity ||
           args.residual.data != nullptr;
}

bool supported(const PointwiseArgs& args) {
    const PointwiseShape& s = args.shape;
    return s.n >= 0 && s.hw >= 0 && s.c > 0 && s.k > 0 && s.c % 8 == 0 && s.k % 8 == 0 &&
           s.dtype != DType::kFloat32 && whole_pixels(args.x) && whole_pixels(args.residual) &&
           !(finishes(args) && args.stats != nullptr);
}

// The same for <op>_workspace and <op>.
bool make_params(const PointwiseArgs& args, PointwiseParams* p, PointwisePlan* plan) {
    const PointwiseShape& s = args.shape;
    *p = {};
    if (!make_act(args.in_act, &p->in.act) || !make_act(args.out_act, &p->out_act)) return false;
    p->in.x = args.x.data, p->in.x_step = args.x.step, p->in.channels = s.c;
    p->in.affine = args.in_affine, p->in.gate = args.in_gate;
    p->weight = args.weight;
    p->out_bn = args.out_bn;
    p->residual = args.residual.data, p->residual_step = args.residual.step;
    p->y = args.y;
    p->outputs = s.k;
    // Only a gate ties a row to its image.
    const bool by_image = args.in_gate != nullptr;
    p->rows = by_image ? s.hw : s.n * s.hw;
    const int64_t groups = by_image ? s.n : 1;
    return args.stats != nullptr ? plan_pointwise<Prologue::kNone, true>(*p, groups, plan)
                                 : plan_pointwise<Prologue::kNone, false>(*p, groups, plan);
}

bool scaled(const PointwiseArgs& args) {
    return args.in_affine != nullptr || args.in_gate != nullptr ||
           args.in_act != Activation::kIdentity;
}

bool empty(const PointwiseShape& s) { return s.n == 0 || s.hw == 0; }

}  // namespace

size_t pointwise_workspace(const PointwiseArgs& args) {
    PointwiseParams p;
    PointwisePlan plan;
    if (args.stats == nullptr || !supported(args) || empty(args.shape)) return 0;
    if (!make_params(args, &p, &plan)) return 0;
    return (size_t(2) * p.outputs + 1) * p.parts * sizeof(float);
}

cudaError_t pointwise(const PointwiseArgs& args, cudaStream_t stream) {
    PointwiseParams p;
    PointwisePlan plan;
    if (!supported(args)) return cudaErrorInvalidValue;
    if (empty(args.shape)) return launch_zero(args.stats, 2 * int64_t(args.shape.k), stream);
    if (!make_params(args, &p, &plan)) return cudaErrorInvalidValue;
    const bool stats = args.stats != nullptr;
    if (stats) {
        p.partials = static_cast<float*>(args.workspace);
        p.counts = p.partials + size_t(2) * p.outputs * p.parts;
    }
    const cudaError_t status = with_half_type(args.shape.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (scaled(args)) {
            return stats ? launch_pointwise<T, Prologue::kScaled, true>(p, plan, stream)
                         : launch_pointwise<T, Prologue::kScaled, false>(p, plan, stream);
        }
        return stats ? launch_pointwise<T, Prologue::kNone, true>(p, plan, stream)
                     : launch_pointwise<T, Prologue::kNone, false>(p, plan, stream);
    });
    if (status != cudaSuccess || !stats) return status;
    return launch_merge_moments(p.partials, p.counts, p.parts, p.outputs, args.stats, stream);
}

}  // namespace effnet_fast
