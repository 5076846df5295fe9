"""What the tests of the CUDA C++ kernels share: one build of the emulated module per session."""

from tests.cuda_emu.fixtures import cuda_emulator, cuda_module

__all__ = ["cuda_emulator", "cuda_module"]
