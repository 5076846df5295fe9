"""The backend "cpu": the functions of :mod:`effnet_fast.reference` by the kernels of csrc/cpu,
and for the stem's dense convolution torch's own."""

from effnet_fast.ops.on_cpu.batch_norm import (
    bn_bwd_coef,
    bn_bwd_reduce,
    bn_finalize,
    bn_fold,
    bn_residual,
    bn_residual_bwd,
)
from effnet_fast.ops.on_cpu.conv2d import conv2d, conv2d_bwd
from effnet_fast.ops.on_cpu.depthwise import depthwise, depthwise_bwd
from effnet_fast.ops.on_cpu.pointwise import pointwise, pointwise_bwd, pointwise_pool
from effnet_fast.ops.on_cpu.squeeze_excite import se_bwd_reduce, se_gate, se_gate_bwd, se_pool

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
