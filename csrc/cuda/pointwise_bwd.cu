// 1x1 convolution backward: which kernels form dx, dw and the sums, and in what they leave
// partials.
//
// Behind a batch norm and an activation (a projection) project_bwd_kernel forms dx and the sums,
// and dw too where a warp's registers hold it. Else dx is a product like the forward one, and dw
// has a kernel of its own.
#include <initializer_list>

#include "cuda/pointwise.cuh"
#include "cuda/project_bwd.cuh"
#include "cuda/wgrad.cuh"

namespace effnet_fast {
namespace {

bool empty(const PointwiseShape& s) { return s.n == 0 || s.hw == 0; }

struct Plan {
    bool by_image;      // rows are tied to their images
    PointwiseParams product;  // of dx without sums
    PointwisePlan product_plan;
    ProjectParams project;
    ProjectPlan project_plan;
    WgradParams wgrad;
    WgradPlan wgrad_plan;
    bool wants_product, wants_project, wants_wgrad;
    size_t sums_floats, dw_floats;  // of partials
};

bool make_plan(const PointwiseBwdArgs& args, Plan* plan) {
    const PointwiseShape& s = args.shape;
    *plan = {};
    Operand dy = {}, a = {};
    if (s.n < 0 || s.hw < 0 || s.c <= 0 || s.k <= 0 || s.c % 8 != 0 || s.k % 8 != 0 ||
        s.dtype == DType::kFloat32 || !make_act(args.in_act, &a.act) || !whole_pixels(args.x)) {
        return false;
    }
    for (const void* dense :
         {args.g, args.y, args.residual_grad, static_cast<const void*>(args.dx)}) {
        if (reinterpret_cast<uintptr_t>(dense) % kVectorBytes != 0) return false;
    }
    const bool sums = args.sums != nullptr;
    if (sums && (args.dx == nullptr || args.residual_grad != nullptr)) return false;
    dy.x = args.y, dy.g = args.g, dy.x_step = s.k, dy.channels = s.k;
    dy.coef = args.coef, dy.drop_scale = args.drop_scale;
    a.x = args.x.data, a.x_step = args.x.step, a.channels = s.c;
    a.affine = args.in_affine, a.gate = args.in_gate;
    if (empty(s)) return true;
    plan->by_image = sums || args.drop_scale != nullptr || args.in_gate != nullptr;
    const int groups = plan->by_image ? s.n : 1;
    const int64_t rows = plan->by_image ? s.hw : s.n * s.hw;

    plan->wants_project = sums;
    if (sums) {
        ProjectParams& p = plan->project;
        p.dy = dy, p.a = a;
        p.weight = args.weight, p.norm = args.in_norm, p.dx = args.dx;
        p.images = s.n, p.rows = s.hw;
        if (!plan_project(p, args.dw != nullptr, &plan->project_plan)) return false;
        if (p.strips > 1) plan->sums_floats = size_t(5) * p.strips * s.n * s.c;
        if (plan->project_plan.chunks_w > 0) {
            plan->dw_floats = size_t(s.k) * s.c * p.parts;
        }
    }
    plan->wants_product = args.dx != nullptr && !sums;
    if (plan->wants_product) {
        PointwiseParams& p = plan->product;
        p.in = dy;
        make_act(Activation::kIdentity, &p.out_act);
        p.weight = args.weight;
        p.residual = args.residual_grad, p.residual_step = s.c;
        p.y = args.dx;
        p.outputs = s.c, p.rows = rows;
        if (!plan_pointwise<Prologue::kGradient, false>(p, groups, &plan->product_plan)) {
            return false;
        }
    }
    plan->wants_wgrad = args.dw != nullptr && plan->project_plan.chunks_w == 0;
    if (plan->wants_wgrad) {
        WgradParams& p = plan->wgrad;
        p.dy = dy, p.a = a;
        p.rows = rows, p.groups = groups;
        plan_wgrad(p, &plan->wgrad_plan);
        plan->dw_floats = size_t(s.k) * s.c * p.parts;
    }
    return true;
}

}  // namespace

size_t pointwise_bwd_workspace(const PointwiseBwdArgs& args) {
    Plan plan;
    if (!make_plan(args, &plan)) return 0;
    return (plan.sums_floats + plan.dw_floats) * sizeof(float);
}

cudaError_t pointwise_bwd(const PointwiseBwdArgs& args, cudaStream_t stream) {
    Plan plan;
    if (!make_plan(args, &plan)) return cudaErrorInvalidValue;
    const PointwiseShape& s = args.shape;
    const int64_t weights = int64_t(s.k) * s.c;
    if (empty(s)) return launch_zero(args.dw, weights, stream);
    float* const sums_partials = static_cast<float*>(args.workspace);
    float* const dw_partials = sums_partials + plan.sums_floats;
    return with_half_type(s.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        cudaError_t status = cudaSuccess;
        const auto then = [&](auto f) {
            if (status == cudaSuccess) status = f();
        };
        if (plan.wants_project) {
            ProjectParams& p = plan.project;
            p.sums = p.strips > 1 ? sums_partials : args.sums;
            p.dw = dw_partials;
            then([&] { return launch_project_bwd<T>(p, plan.project_plan, stream); });
            if (p.strips > 1) {
                const int64_t length = int64_t(5) * s.n * s.c;
                then([&] {
                    return launch_sum(sums_partials, p.strips, length, 1.0f, args.sums, stream);
                });
            }
            if (plan.project_plan.chunks_w > 0) {
                then([&] {
                    return launch_sum(dw_partials, p.parts, weights, 1.0f, args.dw, stream);
                });
            }
        }
        if (plan.wants_product) {
            then([&] {
                return launch_pointwise<T, Prologue::kGradient, false>(plan.product,
                                                                       plan.product_plan, stream);
            });
        }
        if (plan.wants_wgrad) {
            plan.wgrad.dw = dw_partials;
            then([&] { return launch_wgrad<T>(plan.wgrad, plan.wgrad_plan, stream); });
            then([&] {
                return launch_sum(dw_partials, plan.wgrad.parts, weights, 1.0f, args.dw, stream);
            });
        }
        return status;
    });
}

}  // namespace effnet_fast
