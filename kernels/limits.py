"""What fits on chip: facts about the kernels that decide how a block's ops are scheduled.

Pure Python, so that the schedule and the ledger of its traffic are the same with and without a GPU.
"""

#: One kernel forms input and weight gradient of a 1x1 convolution if its weight gradient, each
#: side rounded up to a power of two, has at most so many fp32 sums: 64 registers of each of 256
#: threads, beside operands that take the rest (250 of 255 with a prologue, on sm_90 in bf16).
ONE_KERNEL_WEIGHTS = 16384


def _padded(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def fits_one_kernel(outputs: int, channels: int) -> bool:
    """Whether a 1x1 convolution's two gradients come from one pass over their operands."""
    return _padded(outputs) * _padded(channels) <= ONE_KERNEL_WEIGHTS
