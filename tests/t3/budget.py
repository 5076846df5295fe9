"""What kernels are allowed beyond the rule: no spills, and 16-byte loads throughout."""

from __future__ import annotations

from typing import NamedTuple

#: Registers of one thread, by the instruction set.
MOST_REGISTERS = 255


class Allowance(NamedTuple):
    """``most`` spill instructions (LDL + STL) of ``kernel`` on sm_``architectures``."""

    kernel: str
    architectures: tuple[int, ...]
    most: int
    reason: str


SPILLS: tuple[Allowance, ...] = (
    Allowance(
        "depthwise_bwd_kernel", (80, 90, 100), 32,
        "k 3, stride 1: 36 products of 4 channels at once; 27 in fp32, 11 in bf16 off sm_90",
    ),
    Allowance("pointwise_both_kernel", (80, 100), 8, "a weight gradient of 64 x 256: 6"),
    Allowance("pointwise_fwd_kernel", (90,), 2, "fp32 without tensor cores"),
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


def spills_allowed(kernel: str, architecture: int) -> int:
    """The most that any entry allows; 0 without one."""
    entries = [a for a in SPILLS if a.kernel == kernel and architecture in a.architectures]
    return max((a.most for a in entries), default=0)
