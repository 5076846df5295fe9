"""The engine of a model on a GPU: what its graphs replay is what the model computes."""

import copy
import pickle
import threading

import pytest
import torch

import effnet_fast as ef
from tests.error_rule import assert_within
from tests.t1.calibrated import calibrated

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.fixture(scope="module")
def b0() -> ef.EfficientNet:
    return calibrated("efficientnet_b0", (64, 64)).cuda()


def images(n: int = 2, side: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, side, side, device="cuda")


def half(model: ef.EfficientNet) -> ef.EfficientNet:
    """The model in bf16 with its batch norms in fp32, as the engine holds it."""
    return ef.optimize_for_inference(model, dtype=torch.bfloat16)._model  # type: ignore[union-attr]


def test_as_the_model_in_every_shape(b0: ef.EfficientNet) -> None:
    engine, model = ef.optimize_for_inference(b0, dtype=torch.bfloat16), half(b0)
    first = images()
    answer = engine(first)
    assert answer.dtype == torch.float32
    for x in (first, images(3), images(1, 33), images(0), images(17, 32)):
        with torch.inference_mode():
            expected = model(x.bfloat16())
            features = model.forward_features(x.bfloat16())
        assert torch.equal(engine(x), expected.float())
        assert torch.equal(engine.forward_features(x), features.float())
    for side in range(34, 44):  # more than are kept
        engine(images(1, side))
    assert torch.equal(engine(first), answer)
    assert "8 of 8 graphs" in engine.summary()


def test_within_twice_stock_error(b0: ef.EfficientNet) -> None:
    x = images(8)
    stock = copy.deepcopy(b0)
    with torch.inference_mode(), ef.use_backend("reference"):
        truth = copy.deepcopy(b0).double()(x.double())
        base = stock.bfloat16()(x.bfloat16())
    ours = ef.optimize_for_inference(b0, dtype=torch.bfloat16)(x)
    assert_within(ours.bfloat16(), base, truth, "logits")


def test_any_strides_uint8_and_pickle(b0: ef.EfficientNet) -> None:
    engine = ef.optimize_for_inference(b0, input_shape=(2, 3, 64, 64))
    x = images()
    answer = engine(x)
    assert torch.equal(engine(x.contiguous(memory_format=torch.channels_last)), answer)
    assert torch.equal(engine(images(2, 128)[:, :, ::2, ::2].copy_(x)), answer)
    assert torch.equal(pickle.loads(pickle.dumps(engine))(x), answer)
    raw = torch.randint(0, 256, x.shape, dtype=torch.uint8, device="cuda")
    mean, std = (torch.tensor(v, device="cuda").view(-1, 1, 1)
                 for v in (b0.recipe.mean, b0.recipe.std))  # fmt: skip
    assert torch.equal(engine(raw), engine((raw.float() / 255 - mean) / std))


def test_threads_and_streams_share_an_engine(b0: ef.EfficientNet) -> None:
    engine = ef.optimize_for_inference(b0, dtype=torch.bfloat16)
    inputs = [images(4) for _ in range(4)]
    expected = [engine(x) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                found = engine(inputs[i])
                torch.cuda.current_stream().synchronize()
                if not torch.equal(found, expected[i]):
                    wrong.append(i)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_bad_input(b0: ef.EfficientNet) -> None:
    engine = ef.optimize_for_inference(b0)
    with pytest.raises(ValueError, match="on cpu: this engine is on cuda:0"):
        engine(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"expected \[N, 3, H, W\]"):
        engine(torch.zeros(1, 4, 8, 8, device="cuda"))
    with pytest.raises(TypeError, match="int32"):
        engine(torch.zeros(1, 3, 8, 8, device="cuda", dtype=torch.int32))
    with pytest.raises(ValueError, match="threads 2"):
        ef.optimize_for_inference(b0, threads=2)
    with pytest.raises(ValueError, match=r"torch\.int8"):
        ef.optimize_for_inference(b0, dtype=torch.int8)
