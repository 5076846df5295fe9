"""What `optimize_for_inference` promises beside the numbers of test_engine_numbers.py."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import effnet_fast as ef
from effnet_fast import _C
from tests.t1.calibrated import calibrated

ISAS = _C.cpu_isas()


@pytest.fixture(scope="module")
def b0() -> ef.EfficientNet:
    return calibrated("efficientnet_b0", (64, 64))


def test_any_strides_and_numpy(b0: ef.EfficientNet) -> None:
    engine = ef.optimize_for_inference(b0, threads=1)
    x = torch.randn(2, 3, 33, 40)
    expected = engine(x)
    assert torch.equal(engine(x.contiguous(memory_format=torch.channels_last)), expected)
    wide = torch.randn(4, 3, 66, 80)
    wide[::2, :, ::2, ::2] = x
    assert torch.equal(engine(wide[::2, :, ::2, ::2]), expected)
    assert torch.equal(engine(x[:1].expand(3, -1, -1, -1)), expected[:1].expand(3, -1))
    from_numpy = engine(x.numpy())
    assert isinstance(from_numpy, np.ndarray)
    assert np.array_equal(from_numpy, expected.numpy())


def test_the_model_is_left_alone(b0: ef.EfficientNet) -> None:
    before = {k: v.clone() for k, v in b0.state_dict().items()}
    model = copy.deepcopy(b0).train()
    engine = ef.optimize_for_inference(model)
    x = torch.randn(1, 3, 32, 32)
    answer = engine(x)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(engine(x), answer)


def test_pickle_and_repeat(b0: ef.EfficientNet) -> None:
    engine = ef.optimize_for_inference(b0, threads=2)
    x = torch.randn(1, 3, 48, 48)
    answer = engine(x)
    assert torch.equal(pickle.loads(pickle.dumps(engine))(x), answer)
    assert torch.equal(copy.deepcopy(engine)(x), answer)
    for side in range(20, 32):  # more sizes than are kept
        engine(torch.randn(1, 3, side, 48))
    assert all(torch.equal(engine(x), answer) for _ in range(5))


@pytest.mark.parametrize("threads", [1, 2])
def test_many_callers_at_once(b0: ef.EfficientNet, threads: int) -> None:
    engine = ef.optimize_for_inference(b0, threads=threads)
    inputs = [torch.randn(1 + i % 3, 3, 24 + 8 * (i % 4), 40) for i in range(6)]
    expected, wrong = [engine(x) for x in inputs], []

    def call(i: int) -> None:
        for _ in range(10):
            if not torch.equal(engine(inputs[i]), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e-40])
@pytest.mark.parametrize("isa", ISAS)
def test_not_finite(
    isa: str, value: float, dtype: torch.dtype, b0: ef.EfficientNet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An image of one value: what is NaN in the model is NaN in the engine, and nothing else."""
    monkeypatch.setenv("EFFNET_FAST_CPU_ISA", isa)
    x = torch.full((1, 3, 32, 32), value)
    ours = ef.optimize_for_inference(b0, dtype=dtype)(x)
    with torch.no_grad():
        assert torch.equal(ours.isnan(), b0(x).isnan())


def test_no_image_leaks_into_the_next(b0: ef.EfficientNet) -> None:
    engine = ef.optimize_for_inference(b0, threads=1)
    x = torch.randn(1, 3, 32, 32)
    answer = engine(x)
    engine(torch.full((1, 3, 32, 32), float("nan")))
    assert torch.equal(engine(x), answer)


def test_threads_follow_torch(b0: ef.EfficientNet) -> None:
    engine = ef.optimize_for_inference(b0)
    assert engine.threads == torch.get_num_threads()
    assert ef.optimize_for_inference(b0, threads=3).threads == 3


def test_profile_is_of_the_steps(b0: ef.EfficientNet) -> None:
    engine = ef.optimize_for_inference(b0, threads=2)
    found = engine.profile(torch.randn(1, 3, 40, 33), repeats=3)
    assert [step for step, _ in found] == engine.steps(40, 33)
    assert all(seconds > 0 for _, seconds in found)
    with pytest.raises(ValueError, match="2 images, 3 repeats"):
        engine.profile(torch.randn(2, 3, 8, 8), repeats=3)


def test_summary_counts(b0: ef.EfficientNet) -> None:
    """B0 has 0.39 G multiply-adds at 224 px, the paper's table 2; ours leave the biases out."""
    engine = ef.optimize_for_inference(b0)
    lines = engine.summary().splitlines()
    assert len(lines) == 2 * 16 + 3
    total = float(lines[-1].split()[1])
    assert 384 < total < 388
    assert "float32" in lines[-1]
    half = ef.optimize_for_inference(b0, dtype=torch.bfloat16)
    weights = [sum(step.weight_bytes for step in e.steps(224, 224)) for e in (engine, half)]
    assert weights[0] == 2 * weights[1]
    with pytest.raises(ValueError, match="1 x 1 or more"):
        engine.summary(0, 5)


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.float64), TypeError, "torch.float64"),
        (torch.zeros(3, 8, 8), ValueError, "expected .N, 3, H, W."),
        (torch.zeros(1, 4, 8, 8), ValueError, "expected .N, 3, H, W."),
        (torch.zeros(1, 3, 0, 8), ValueError, "expected .N, 3, H, W."),
        (torch.zeros(1, 3, 8, 8, device="meta"), ValueError, "meta"),
    ],
)
def test_bad_images(b0: ef.EfficientNet, x: Tensor, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ef.optimize_for_inference(b0)(x)


def test_bad_models_and_options(b0: ef.EfficientNet, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="Linear"):
        ef.optimize_for_inference(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"torch\.float16"):
        ef.optimize_for_inference(b0, dtype=torch.float16)
    with pytest.raises(ValueError, match="threads"):
        ef.optimize_for_inference(b0, threads=0)
    with pytest.raises(ValueError, match="input_shape"):
        ef.optimize_for_inference(b0, input_shape=(1, 3, 0, 4))
    with pytest.raises(ValueError, match="meta"):
        ef.optimize_for_inference(copy.deepcopy(b0).to("meta"))
    other = copy.deepcopy(b0)
    other.features[3] = nn.Sequential(nn.Identity())
    with pytest.raises(ValueError, match=r"3\.0 is a Identity"):
        ef.optimize_for_inference(other)
    other = copy.deepcopy(b0)
    del other.features[2]
    with pytest.raises(ValueError, match="gets 16"):
        ef.optimize_for_inference(other)
    uint8 = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    grey = ef.create_model("efficientnet_b0", in_channels=1)
    with pytest.raises(ValueError, match="uint8"):
        ef.optimize_for_inference(grey)(uint8)
    monkeypatch.setenv("EFFNET_FAST_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match="'mmx'; this machine has sse42"):
        ef.optimize_for_inference(b0)
