"""The backend "cpu": the functions of :mod:`effnet_fast.reference` by the kernels of csrc/cpu.

Passes over maps are native. What is a vector of channels or one small matrix (the batch norm's
parameters, the MLP of squeeze-and-excitation) is the reference's own arithmetic, in fp32.
"""

from effnet_fast.ops.on_cpu.batch_norm import bn_bwd_reduce, bn_residual, bn_residual_bwd
from effnet_fast.ops.on_cpu.conv2d import conv2d, conv2d_bwd
from effnet_fast.ops.on_cpu.depthwise import depthwise, depthwise_bwd
from effnet_fast.ops.on_cpu.pointwise import pointwise, pointwise_bwd, pointwise_pool
from effnet_fast.ops.on_cpu.squeeze_excite import se_bwd_reduce, se_pool
from effnet_fast.reference import bn_bwd_coef, bn_finalize, bn_fold, se_gate, se_gate_bwd

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
