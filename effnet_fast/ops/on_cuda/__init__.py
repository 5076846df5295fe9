"""The backend "cuda": the functions of :mod:`effnet_fast.reference` by the kernels of csrc/cuda.

Each allocates its results and hands addresses to the native module, which asks for a workspace
where a second stage needs one. Matrix products that have no kernel there (limits.cuda_product) are
Triton's, and :mod:`.products`' where that is not installed.
"""

from effnet_fast.ops.on_cuda.batch_norm import (
    bn_bwd_coef,
    bn_bwd_reduce,
    bn_finalize,
    bn_fold,
    bn_residual,
    bn_residual_bwd,
)
from effnet_fast.ops.on_cuda.depthwise import depthwise, depthwise_bwd
from effnet_fast.ops.on_cuda.pointwise import pointwise, pointwise_bwd
from effnet_fast.ops.on_cuda.products import (
    conv2d,
    conv2d_bwd,
    pointwise_pool,
)
from effnet_fast.ops.on_cuda.squeeze_excite import (
    se_bwd_reduce,
    se_gate,
    se_gate_bwd,
    se_pool,
)

__all__ = [
    "bn_bwd_coef",
    "bn_bwd_reduce",
    "bn_finalize",
    "bn_fold",
    "bn_residual",
    "bn_residual_bwd",
    "conv2d",
    "conv2d_bwd",
    "depthwise",
    "depthwise_bwd",
    "pointwise",
    "pointwise_bwd",
    "pointwise_pool",
    "se_bwd_reduce",
    "se_gate",
    "se_gate_bwd",
    "se_pool",
]
