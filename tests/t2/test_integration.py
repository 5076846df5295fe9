"""``backend="triton"`` as users meet it: modules, compilation, export, and what it refuses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import effnet_fast as ef
from effnet_fast import modules
from effnet_fast.backends import BackendUnavailableError
from effnet_fast.ops.on_triton.depthwise import _taps


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def block(backend: str = "triton") -> nn.Module:
    """An expansion to 24 channels, 3x3, squeeze-and-excitation, a residual."""
    torch.manual_seed(1)
    return modules.MBConv(
        8, 8, 3, 1, 3, 2, 0.5, activation="silu", backend=backend, padding="symmetric",
        eps=1e-3, momentum=0.1,
    )  # fmt: skip


def image() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)


def step(run: Callable[[Tensor], Tensor], model: nn.Module) -> list[Tensor]:
    """Output, gradients and buffers of one training step."""
    torch.manual_seed(0)
    model.zero_grad()
    x = image().requires_grad_()
    y = run(x)
    y.square().sum().backward()
    found = [y.detach(), x.grad, *[p.grad for p in model.parameters()]]
    return [v.clone() for v in (*found, *model.buffers()) if v is not None]


def test_auto_takes_triton_in_its_interpreter() -> None:
    model, x = block("auto").eval(), image()
    with torch.no_grad():
        assert torch.equal(model(x), block("triton").eval()(x))


def test_use_backend() -> None:
    model, x = block("auto").eval(), image()
    with torch.no_grad(), ef.use_backend("reference"):
        assert torch.equal(model(x), block("reference").eval()(x))


def test_compiled_training_step() -> None:
    """One graph, and the same numbers bit for bit, the running statistics' too."""
    plain, compiled = block().train(), block().train()
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(step(plain, plain), step(graph, compiled), strict=True):
        assert torch.equal(ours, theirs)


def test_export() -> None:
    model, x = block().eval(), image()
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        assert torch.equal(program.module()(x), model(x))


def test_checkpointing() -> None:
    plain, saved = block().train(), block().train()
    results = step(plain, plain), step(lambda x: checkpoint(saved, x, use_reentrant=False), saved)
    for name, ours, theirs in zip(
        ["y", "dx", *dict(plain.named_parameters())], *results, strict=False
    ):
        assert torch.equal(ours, theirs), name


def test_autocast() -> None:
    """fp32 parameters, bf16 activations, and gradients in the parameters' type."""
    model = block().train()
    with torch.autocast("cpu", torch.bfloat16):
        found = step(model, model)
    assert found[0].dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_refusals_name_the_reason() -> None:
    w, bn = torch.randn(8, 1, 3, 3), torch.ones(8)
    refused = [
        (image().double(), w.double(), bn.double(), "takes float32, bfloat16 and float16"),
        (image().contiguous(), w, bn, "wants channels_last activations"),
    ]
    for x, weight, v, reason in refused:
        with pytest.raises(BackendUnavailableError, match=reason):
            ef.ops.depthwise_conv_bn_act(x, weight, v, v, v, v, backend="triton")


def test_weights_stored_by_taps_are_not_copied() -> None:
    weight = torch.randn(3, 3, 8).permute(2, 0, 1).unsqueeze(1)
    assert _taps(weight).data_ptr() == weight.data_ptr()
