"""The backend "triton": the functions of :mod:`effnet_fast.reference` by the kernels in kernels/.

Each allocates its results and the workspace of its second stage, picks block shapes, and launches.
"""

from effnet_fast.ops.on_triton.batch_norm import (
    bn_bwd_coef,
    bn_bwd_reduce,
    bn_finalize,
    bn_fold,
    bn_residual,
    bn_residual_bwd,
)
from effnet_fast.ops.on_triton.conv2d import conv2d, conv2d_bwd
from effnet_fast.ops.on_triton.depthwise import depthwise, depthwise_bwd
from effnet_fast.ops.on_triton.pointwise import pointwise, pointwise_pool
from effnet_fast.ops.on_triton.pointwise_bwd import pointwise_bwd
from effnet_fast.ops.on_triton.squeeze_excite import (
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
