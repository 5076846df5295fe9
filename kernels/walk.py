"""How a streaming pass is shared out: programs that each walk some pixels of some images.

A pass over [N, H*W, C] is cut into blocks of channels (grid axis 1) and into walkers (axis 0). A
walker takes either a stretch of one image's pixels or several whole images, so that what belongs
to an image - a gate, a pool's gradient, a factor of stochastic depth - is loaded once per image
and not per pixel, and a sum leaves the walker once. Passes without any such thing see the batch as
one image of N*H*W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

#: Programs that fill the machine: eight for each of an H100's 132 SMs.
PROGRAMS = 1056


class Config(NamedTuple):
    """Pixels and channels of a block; the programs to aim at, over both axes of the grid."""

    block_p: int
    block_c: int
    programs: int
    num_warps: int


class Walk(NamedTuple):
    """A walker's share, as the kernels take it: see :func:`share`."""

    images: int
    pixels: int
    images_each: int
    splits: int
    chunk: int

    @property
    def walkers(self) -> int:
        return triton.cdiv(self.images, self.images_each) * self.splits


def shape_class(images: int, pixels: int, channels: int, dtype: str) -> str:
    """The key of a shape in the tuning table."""
    n, p = triton.next_power_of_2(images), triton.next_power_of_2(pixels)
    return f"n{n} p{p} c{channels} {dtype}"


def _block_c(channels: int) -> int:
    """The largest of 128, 64, 32 that pads the channels by at most a tenth more than the best."""
    if channels <= 16:
        return 16
    padded = {block: triton.cdiv(channels, block) * block for block in (128, 64, 32)}
    return next(block for block in padded if padded[block] <= 1.1 * min(padded.values()))


def default_config(
    images: int, pixels: int, channels: int, reduces: str = "nothing", elements: int = 4096
) -> Config:
    """Blocks of ``elements``, four warps each: 32 or 16 elements a thread, some 16-byte vectors.

    A pass that reduces "nothing" is cut into programs of four blocks, small enough to even out,
    large enough to load a channel's vectors once for several blocks. One that reduces each "image"
    or the "batch" fills the machine once: every walker more is a partial more.
    """
    block_c = _block_c(channels)
    block_p = max(min(elements // block_c, triton.next_power_of_2(pixels)), 8)
    columns = triton.cdiv(channels, block_c)
    enough = {
        "nothing": images * triton.cdiv(pixels, block_p) * columns // 4,
        "image": images * columns,
        "batch": 0,
    }
    return Config(block_p, block_c, max(PROGRAMS, enough[reduces]), 4)


def candidates(default: Config, _key: str) -> list[Config]:
    """What the tuner tries beside the default."""
    found = []
    for block_c in sorted({32, 64, 128, default.block_c}):
        for elements in (2048, 4096, 8192):
            for programs in (default.programs // 2, default.programs, default.programs * 2):
                for num_warps in (4, 8):
                    block_p = max(elements // block_c, 8)
                    found.append(Config(block_p, block_c, programs, num_warps))
    return list(dict.fromkeys(found))


def plan(images: int, pixels: int, channels: int, config: Config) -> Walk:
    """Share ``images`` of ``pixels`` each among the walkers that ``config`` aims at."""
    wanted = max(config.programs // triton.cdiv(channels, config.block_c), 1)
    if wanted <= images:
        return Walk(images, pixels, triton.cdiv(images, wanted), 1, pixels)
    splits = min(triton.cdiv(wanted, images), triton.cdiv(pixels, config.block_p))
    blocks = triton.cdiv(triton.cdiv(pixels, splits), config.block_p)
    chunk = blocks * config.block_p
    return Walk(images, pixels, 1, triton.cdiv(pixels, chunk), chunk)


@triton.jit
def share(IMAGES, PIXELS, IMAGES_EACH, SPLITS, CHUNK):
    """(first, last, start, stop): this walker's images, and the pixels of each that are its."""
    i_walker = tl.program_id(0)
    i_part = i_walker // SPLITS
    start = (i_walker - i_part * SPLITS) * CHUNK
    first = i_part * IMAGES_EACH
    last = tl.minimum(first + IMAGES_EACH, IMAGES)
    return first, last, start, tl.minimum(start + CHUNK, PIXELS)
