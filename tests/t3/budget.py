"""What kernels are allowed beyond the rule: no spills, and 16-byte loads throughout."""

from __future__ import annotations

from typing import NamedTuple

#: Registers of one thread, by the instruction set.
MOST_REGISTERS = 255


class Allowance(NamedTuple):
    """``most`` spill instructions (LDL + STL) of ``kernel`` on ``architectures`` for ``types``."""

    kernel: str
    architectures: tuple[int, ...]
    types: tuple[str, ...]
    most: int
    reason: str


HALF = ("bf16", "fp16")
SPILLS: tuple[Allowance, ...] = (
    Allowance(
        "depthwise_bwd_kernel", (80, 90, 100), ("fp32",), 28,
        "k 3, stride 1: 36 products of 4 channels at once",
    ),
    Allowance("depthwise_bwd_kernel", (80,), HALF, 11, "the same in 16 bits"),
    Allowance("depthwise_fwd_kernel", (90,), ("fp32",), 9, "a patch's 16-byte vectors"),
    Allowance("depthwise_fwd_kernel", (100,), HALF, 49, "k 5 with a prologue: 10, at stride 2 49"),
    Allowance("pointwise_both_kernel", (80,), HALF, 6, "a weight gradient of 64 x 256"),
    Allowance("pointwise_fwd_kernel", (90,), ("fp32",), 4, "without tensor cores"),
    Allowance("pointwise_fwd_kernel", (80,), HALF, 6, "a prologue with statistics"),
    Allowance("pointwise_fwd_kernel", (100,), HALF, 16, "the same with a gate, 32 outputs"),
    Allowance("pointwise_dgrad_kernel", (90,), ("fp32",), 2, "16 channels"),
    Allowance("pointwise_dgrad_kernel", (100,), HALF, 6, "one of B0's"),
    Allowance("pointwise_wgrad_kernel", (90,), ("fp32",), 2, "without tensor cores"),
    Allowance("se_gate_kernel", (80,), HALF, 6, "operands of three products"),
    Allowance("se_hidden_bwd_kernel", (100,), ("fp32",), 2, "16 hidden channels of 64"),
    Allowance(
        "conv2d_kernel", (100,), HALF, 112,
        "stems of 64 channels: a thread has a pixel's sums of all of them at once; 84 to 112",
    ),
)  # fmt: skip


#: Kernels some of whose loads are narrower, by kernel: why.
NARROW: dict[str, str] = {
    "conv2d_kernel": "the image has 3 channels, of any layout: every tap is a load of its own",
    "conv2d_dw_kernel": "the same image",
    "depthwise_bwd_kernel": "4 channels to a thread, 2 for k 5: two gradients want the registers",
    "se_gate_kernel": "weights of 16 x 32 are shared out among 128 threads or more, 4 to each",
    "bn_fold_kernel": "vectors of the channels, one channel to a thread",
    "bn_bwd_coef_kernel": "vectors of the channels, one channel to a thread",
}


def spills_allowed(kernel: str, architecture: int, storage: str) -> int:
    """The most that any entry allows a kernel on maps of ``storage``; 0 without one."""
    entries = [
        a
        for a in SPILLS
        if a.kernel == kernel and architecture in a.architectures and storage in a.types
    ]
    return max((a.most for a in entries), default=0)
