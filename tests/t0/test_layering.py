"""Arrows go one way: bench, tests, cli -> models -> modules -> ops -> the lowest layer."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.t0.layers import LAYERS, complaints, complaints_about

ROOT = Path(__file__).resolve().parents[2]


def test_no_import_breaks_the_layering() -> None:
    assert complaints(ROOT) == []


PLANTED = {
    "an upward import": ("ops.depthwise", "from effnet_fast import models", "models is above ops"),
    "upward, relative": ("ops.depthwise", "from ..modules import MBConv", "modules is above ops"),
    "upward, in a function": (
        "reference",
        "def f():\n    import effnet_fast.ops",
        "ops is above reference",
    ),
    "upward, in a class in a try": (
        "modules",
        "try:\n    class A:\n        import effnet_fast.models\nexcept OSError:\n    pass",
        "models is above modules",
    ),
    "upward, in an except": (
        "modules",
        "try:\n    pass\nexcept OSError:\n    import effnet_fast.cli",
        "cli is above modules",
    ),
    "the package's own names": (
        "ops",
        "from effnet_fast import use_backend",
        "itself is above ops",
    ),
    "the package itself": ("models", "import effnet_fast", "itself is above models"),
    "cli from the package": ("", "from . import cli", "cli is above"),
    "a test helper": ("ops", "from tests.error_rule import check", "outside the library"),
    "torchvision at module level": ("models", "import torchvision", "at module level"),
    "timm in an if": ("cli", "if True:\n    from timm import x", "at module level"),
    "triton's kernels at module level": (
        "ops.mbconv",
        "from effnet_fast.kernels import depthwise",
        "at module level",
    ),
    "triton's adapters at module level": (
        "ops.library",
        "from effnet_fast.ops import on_triton",
        "at module level",
    ),
    "torch in a kernel": ("kernels.depthwise", "import torch", "kernels import triton"),
    "torch in a launcher": (
        "kernels.depthwise",
        "def launch():\n    import torch",
        "kernels import triton",
    ),
    "ops in a kernel": (
        "kernels.depthwise",
        "from effnet_fast import ops",
        "kernels import triton",
    ),
    "a module nobody placed": ("mystery", "", "not in the table"),
}


@pytest.mark.parametrize(("module", "source", "expected"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_found(module: str, source: str, expected: str) -> None:
    dotted = ".".join(filter(None, ["effnet_fast", module]))
    found = list(complaints_about(dotted, module in ("", "ops", "kernels"), source))
    assert len(found) == 1
    assert expected in found[0]


ALLOWED = {
    "downward": ("models", "from effnet_fast import modules, ops\nfrom .reference import silu"),
    "same layer": ("reference", "from . import backends"),
    "a kernel": (
        "kernels.depthwise",
        "import math\nimport triton\nfrom . import common",
    ),
    "torch for annotations": (
        "kernels.depthwise",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    ),
    "torchvision when asked for": ("stock", "def f():\n    import torchvision"),
    "kernels in their adapters": (
        "ops.on_triton.depthwise",
        "from effnet_fast.kernels import depthwise",
    ),
    "kernels when asked for": ("cli", "def f():\n    from effnet_fast.kernels import tuning"),
    "the package from above": ("cli", "import effnet_fast as ef"),
}


@pytest.mark.parametrize(("module", "source"), ALLOWED.values(), ids=ALLOWED)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert list(complaints_about(f"effnet_fast.{module}", False, source)) == []


def test_a_tree_with_a_violation_is_walked(tmp_path: Path) -> None:
    for name in ("effnet_fast/ops/__init__.py", "kernels/deep/pool.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("from effnet_fast.models import efficientnet_b0\n")
    first, second = complaints(tmp_path)
    assert first.startswith("effnet_fast.ops:1 imports effnet_fast.models.efficientnet_b0")
    assert second.startswith("effnet_fast.kernels.deep.pool:1 imports")


def test_no_module_stands_in_two_layers() -> None:
    names = [name for layer in LAYERS for name in layer]
    assert len(names) == len(set(names))


def test_import_loads_no_optional_package_and_leaves_cuda_alone() -> None:
    script = """
import sys, torch
before = set(sys.modules)
def refuse(*args, **kwargs):
    raise AssertionError("import effnet_fast asked CUDA something")
for name in ("_lazy_init", "init", "is_available", "device_count", "current_device"):
    assert hasattr(torch.cuda, name)
    setattr(torch.cuda, name, refuse)
import effnet_fast
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(loaded & {"torchvision", "timm", "triton", "safetensors"}), "effnet_fast" in loaded)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[] True", 0), done.stderr
