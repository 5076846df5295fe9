"""Triton kernels, each with one thin launcher; installed as `effnet_fast.kernels`.

A launcher gets tensors that are already allocated, picks the grid and launches: nothing here
allocates, and nothing here imports more than triton, the standard library and its own siblings
(relatively: `from . import common`). torch may be named in annotations only, under `TYPE_CHECKING`.
"""
