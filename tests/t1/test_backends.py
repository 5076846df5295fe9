"""Which backend runs: precedence, reasons, and no silent fall-back."""

import importlib
import threading

import pytest
import torch

import effnet_fast as ef

b = importlib.import_module("effnet_fast.backends")  # ef.backends is the function of that name


def test_every_backend_answers() -> None:
    answers = ef.backends()
    assert list(answers) == ["cuda", "triton", "cpu", "reference"]
    assert answers["reference"] is answers["cpu"] is None
    for name in ("cuda", "triton"):
        assert answers[name], f"{name} must say why not"


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_an_explicit_request_raises_its_reason(name: str) -> None:
    model = ef.efficientnet_b0(backend=name).eval()
    reason = ef.backends()[name]
    assert reason is not None
    with pytest.raises(ef.BackendUnavailableError, match=name) as error:
        model(torch.randn(1, 3, 32, 32))
    assert reason in str(error.value)


def test_unknown_names_list_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    known = "auto, cuda, triton, cpu, reference"
    x, mlp = torch.randn(1, 4, 2, 2), (torch.randn(1, 4, 1, 1), torch.randn(1))
    mlp2 = (torch.randn(4, 1, 1, 1), torch.randn(4))
    with pytest.raises(ValueError, match=known), ef.use_backend("tpu"):
        pass
    with pytest.raises(ValueError, match=known):
        ef.efficientnet_b0(backend="tpu")
    with pytest.raises(ValueError, match=known):
        ef.ops.squeeze_excite(x, *mlp, *mlp2, backend="tpu")
    monkeypatch.setenv("EFFNET_FAST_BACKEND", "tpu")
    with pytest.raises(ValueError, match=f"EFFNET_FAST_BACKEND 'tpu'; known: {known}"):
        ef.ops.squeeze_excite(x, *mlp, *mlp2)


def test_the_most_specific_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert b.requested(None) == b.requested("auto") == "auto"
    monkeypatch.setenv("EFFNET_FAST_BACKEND", "cpu")
    assert b.requested(None) == "cpu"
    with ef.use_backend("triton"):
        assert b.requested("auto") == "triton"
        with ef.use_backend("reference"):
            assert b.requested(None) == "reference"
            assert b.requested("cuda") == "cuda"
        assert b.requested(None) == "triton"
    assert b.requested(None) == "cpu"


def test_use_backend_ends_with_an_error_and_stays_in_its_thread() -> None:
    with pytest.raises(RuntimeError, match="inside"), ef.use_backend("cpu"):
        raise RuntimeError("inside")
    seen = []
    with ef.use_backend("cpu"):
        thread = threading.Thread(target=lambda: seen.append(b.requested(None)))
        thread.start()
        thread.join()
    assert seen == ["auto"]
    assert b.requested(None) == "auto"


def test_use_backend_holds_for_the_backward_pass() -> None:
    """The name is taken when the forward pass begins, wherever backward runs."""
    model = ef.efficientnet_b0(num_classes=4)
    with ef.use_backend("reference"):
        y = model(torch.randn(2, 3, 32, 32)).sum()
    with ef.use_backend("triton"):
        y.backward()
        with pytest.raises(ef.BackendUnavailableError):
            model(torch.randn(2, 3, 32, 32))


def test_auto_takes_the_first_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 4, 2, 2)
    assert b.choose("depthwise", "auto", x) == "reference"  # NCHW
    assert b.choose("depthwise", "auto", x.to(memory_format=torch.channels_last)) == "cpu"
    monkeypatch.setattr(b, "why_not", lambda op, name, x: None if name == "cpu" else "no")
    assert b.choose("depthwise", "auto", x) == "cpu"
    monkeypatch.setattr(b, "why_not", lambda op, name, x: f"{name} is shut")
    with pytest.raises(ef.BackendUnavailableError, match=r"cuda is shut.*reference is shut"):
        b.choose("depthwise", "auto", x)


def test_a_product_is_cudas_where_it_has_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Triton's before cuBLAS, also where "cuda" is asked for."""
    shut: set[str] = set()
    monkeypatch.setattr(b, "_machine_why_not", lambda name: "shut" if name in shut else None)
    monkeypatch.setattr(b, "_device_why_not", lambda name, device: None)

    def chosen(name: str, channels: int) -> str:
        x = torch.randn(1, channels, 2, 2).bfloat16().contiguous(memory_format=torch.channels_last)
        w = torch.randn(8, channels, 1, 1).bfloat16()
        args = (x, w, None, "identity", None, [], 0.0, "identity", None, True)
        return b.choose("pointwise", name, *args)

    for name in ("auto", "cuda"):
        assert chosen(name, 16) == "cuda"
        assert chosen(name, 12) == "triton"
    assert chosen("triton", 16) == "triton"
    assert chosen("auto", 480) == chosen("cuda", 488) == "cuda"
    assert chosen("auto", 488) == "triton"
    shut.add("triton")
    assert chosen("auto", 12) == chosen("cuda", 12) == "cuda"
    shut.add("cuda")
    with pytest.raises(ef.BackendUnavailableError):
        chosen("cuda", 16)


def test_the_reference_refuses_integers() -> None:
    reason = b.why_not("depthwise", "reference", torch.zeros(1, 2, 3, 3, dtype=torch.uint8))
    assert reason is not None
    assert "uint8" in reason
