"""torch.compile, torch.export and FakeTensor, because the ops are registered."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import effnet_fast as ef


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def test_compile_inference() -> None:
    """One graph, no break, and the same numbers."""
    model = ef.efficientnet_b0(num_classes=7).eval()
    x = torch.randn(2, 3, 40, 33)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), expected)


def test_compile_training() -> None:
    """Forward, backward, stochastic depth, and the running statistics that the graph mutates."""
    model = ef.efficientnet_lite0(num_classes=7).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x, results = torch.randn(2, 3, 40, 33), []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.load_state_dict(state)
        model.zero_grad()
        torch.manual_seed(0)
        y = run(x)
        y.square().sum().backward()
        results.append((
            y.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]),
            torch.cat([b.flatten() for b in model.buffers()]),
        ))  # fmt: skip
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_a_compiled_model_keeps_its_backend() -> None:
    model = ef.efficientnet_lite0(num_classes=2).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        y = compiled(x)
        with ef.use_backend("triton"):
            assert torch.equal(compiled(x), y)


def test_export() -> None:
    model = ef.efficientnet_b0(num_classes=7).eval()
    x = torch.randn(2, 3, 40, 33)
    program = torch.export.export(model, (x,))
    # With gradients both, as it was exported: without, the head's mean is summed in another order.
    assert torch.equal(program.module()(x), model(x))
    called = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert any("effnet_fast.depthwise" in name for name in called)


def test_fake_tensors() -> None:
    """Shapes without computing: what planners and memory estimators use."""
    with FakeTensorMode():
        model = ef.efficientnet_b4(num_classes=3)
        x = torch.empty(8, 3, 380, 380)
        y = model.train()(x)
        y.sum().backward()
        assert y.shape == (8, 3)
        assert model.features[0][0].weight.grad.shape == (48, 3, 3, 3)
