"""Training as users do it: frozen parts, checkpointing, autocast, SyncBatchNorm and the rest."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import effnet_fast as ef
from bench.parity import torchvision_pair
from effnet_fast.stock import calibrate
from tests.error_rule import assert_within


def small(**options: Any) -> ef.EfficientNet:
    return ef.efficientnet_b0(num_classes=5, **options)


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 40, 33)


def backward(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model(x).square().sum().backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def test_stochastic_depth_and_dropout_draw_as_torchvision() -> None:
    x = images(8)
    ours, stock = torchvision_pair("efficientnet_b0", x)
    outputs = []
    for model in (ours.train(), stock.train(), copy.deepcopy(stock).double()):
        torch.manual_seed(11)
        outputs.append(model(x.to(next(model.parameters()).dtype)).detach())
        state = torch.rand(1)
    assert_within(*outputs)
    torch.manual_seed(11)
    ours(x)
    assert torch.equal(torch.rand(1), state), "the generator stands where torchvision leaves it"


def test_num_batches_tracked_and_cumulative_average() -> None:
    ours, stock = torchvision_pair("efficientnet_b0", images(8))
    for model in (ours, stock):
        model.train()
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = None
                m.reset_running_stats()
    truth = copy.deepcopy(stock).double()
    for i in range(3):
        x = torch.randn(4, 3, 40, 33)
        for model in (ours, stock, truth):
            torch.manual_seed(i)
            model(x.to(next(model.parameters()).dtype))
    for path in ("features.0.1", "features.2.0.block.1.1", "features.8.1"):
        a, b, t = (m.get_submodule(path) for m in (ours, stock, truth))
        assert a.num_batches_tracked == 3
        # Stock sums in fp64 on a CPU; ours may err as fp32 sums of the stem's 20 x 17 maps do.
        n = 4 * 20 * 17
        std, var = t.running_var.sqrt(), t.running_var
        assert_within(a.running_mean, b.running_mean, t.running_mean, path, terms=std / n, n=n)
        assert_within(a.running_var, b.running_var, t.running_var, path, terms=var / n, n=n)


@pytest.mark.parametrize("frozen", ["all", "every second"])
def test_frozen_batch_norm(frozen: str) -> None:
    """Fine-tuning with batch norm in eval mode: its statistics are used and stay."""
    x = images(8)
    ours, stock = torchvision_pair("efficientnet_b0", x)
    for model in (ours, stock):
        model.train()
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for m in norms if frozen == "all" else norms[::2]:
            m.eval()
    before = ours.features[0][1].running_mean.clone()
    truth = copy.deepcopy(stock).double()
    mine, theirs, exact = backward(ours, x), backward(stock, x), backward(truth, x.double())
    assert torch.equal(ours.features[0][1].running_mean, before)
    flat = [torch.cat([g.flatten() for g in v.values()]) for v in (mine, theirs, exact)]
    assert_within(*flat, "gradients")


@pytest.mark.parametrize(
    "trainable",
    ["classifier", "features.8", "features.7", "bias", "fc1", "features.0", "block.1.0"],
)
def test_any_subset_of_parameters(trainable: str) -> None:
    """The gradients of a subset are those of the whole, bit for bit, and no others appear."""
    model, x = small().train(), images()
    whole = {k: v.clone() for k, v in backward(model, x).items()}
    model.zero_grad(set_to_none=True)
    for name, p in model.named_parameters():
        p.requires_grad_(trainable in name)
    part = backward(model, x)
    assert part.keys() == {k for k in whole if trainable in k}
    assert all(torch.equal(part[k], whole[k]) for k in part)


def test_gradient_of_the_image() -> None:
    x, grads = images(8), []
    ours, stock = torchvision_pair("efficientnet_b0", x)
    for model in (ours, stock, copy.deepcopy(stock).double()):
        v = x.detach().clone().to(next(model.parameters()).dtype).requires_grad_()
        model(v).square().sum().backward()
        grads.append(v.grad)
    assert_within(*grads)


def test_nothing_is_saved_but_raw_outputs() -> None:
    """Per block: its input, E, D, P. What stock PyTorch saves is three times as much."""
    ours, stock = torchvision_pair("efficientnet_b0", torch.randn(2, 3, 64, 64))

    def saved(model: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            if t.dim() == 4 and t.shape[0] == 2:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model.train()(torch.randn(2, 3, 64, 64))
        assert out.requires_grad
        return sum(sizes.values())

    assert saved(ours) * 2.5 < saved(stock)


def test_checkpointing_gives_the_same_gradients() -> None:
    model, x = small(stochastic_depth_prob=0.0, dropout=0.0).train(), images()
    plain = {k: v.clone() for k, v in backward(model, x).items()}
    model.zero_grad(set_to_none=True)

    def by_segments(x: Tensor) -> Tensor:
        features = checkpoint_sequential(model.features, 3, x, use_reentrant=False)
        return model.forward_head(features)

    by_segments(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    checkpoint(model, x, use_reentrant=False).square().sum().backward()
    for k, p in model.named_parameters():
        assert torch.equal(p.grad, plain[k]), k


def test_retain_graph_and_a_module_used_twice() -> None:
    block = small().features[2][1].eval()
    x = torch.randn(2, 24, 8, 8, requires_grad=True)
    y = block(block(x)).sum()
    y.backward(retain_graph=True)
    first = {k: p.grad.clone() for k, p in block.named_parameters()}
    y.backward()
    for k, p in block.named_parameters():
        assert torch.equal(p.grad, 2 * first[k]), k


def test_double_backward_is_refused_clearly() -> None:
    block = small().features[2][1]
    x = torch.randn(2, 24, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph"):
        torch.autograd.grad(block(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training: bool) -> None:
    """Activations in bf16, parameters, their gradients and the statistics in fp32."""
    x, outputs = images(8), []
    ours, stock = torchvision_pair("efficientnet_b0", x)
    for model in (ours, stock):
        torch.manual_seed(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model.train(training)(x)
        outputs.append(out.detach())
    torch.manual_seed(4)
    truth = copy.deepcopy(stock).double().train(training)(x.double()).detach()
    assert outputs[0].dtype == torch.bfloat16
    assert_within(outputs[0], outputs[1], truth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ours(x).float().square().sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    assert ours.features[0][1].running_mean.dtype == torch.float32


def test_autocast_leaves_the_arithmetic_alone() -> None:
    """Inside an op nothing is cast: a block fed bf16 gives the same with autocast on or off."""
    block = small().features[3][0].bfloat16().eval()
    x = torch.randn(2, 24, 9, 9, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = block(x)
    with torch.no_grad():
        assert torch.equal(block(x), inside)


def test_no_gradient_no_graph() -> None:
    model = small().eval()
    with torch.no_grad():
        assert model(images()).grad_fn is None
    with torch.inference_mode():
        assert model(images()).shape == (4, 5)
    for p in model.parameters():
        p.requires_grad_(False)
    assert model(images()).grad_fn is None


def test_training_mode_without_gradients_updates_the_statistics() -> None:
    """Recalibrating batch norm under no_grad."""
    model = small()
    before = model.features[3][0].block[1][1].running_var.clone()
    with torch.no_grad():
        model.train()(images())
    assert not torch.equal(before, model.features[3][0].block[1][1].running_var)


def test_a_step_of_sgd_lowers_the_loss() -> None:
    model, x = small(dropout=0.0, stochastic_depth_prob=0.0).train(), images(8)
    target = torch.arange(8) % 5
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def _sync_worker(rank: int, path: str, state: dict[str, Tensor], x: Tensor, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)
    model = small(stochastic_depth_prob=0.0, dropout=0.0)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    model.load_state_dict(state)
    out = model(x)
    out.square().sum().backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)
    if rank == 0:
        grads = torch.cat([p.grad.flatten() for p in model.parameters()])
        buffers = {k: v.clone().numpy() for k, v in model.named_buffers()}
        queue.put((out.detach().numpy(), grads.numpy(), buffers))
    dist.destroy_process_group()


def test_sync_batch_norm_is_the_concatenated_batch(tmp_path: Any) -> None:
    """Two gloo processes with 8 and 4 images against one process with all 12."""
    whole = small(stochastic_depth_prob=0.0, dropout=0.0).train()
    calibrate(whole, torch.randn(8, 3, 40, 33))
    state = copy.deepcopy(whole.state_dict())
    x = torch.randn(12, 3, 40, 33)
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(
            target=_sync_worker, args=(r, str(tmp_path / "store"), state, part, queue), daemon=True
        )
        for r, part in enumerate((x[:8], x[8:]))
    ]
    for w in workers:
        w.start()
    out, grads, buffers = queue.get(timeout=120)
    for w in workers:
        w.join(60)

    truth = copy.deepcopy(whole).double().train()
    base = whole.train()
    results = []
    for model in (base, truth):
        y = model(x.to(next(model.parameters()).dtype))
        y.square().sum().backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((y[:8].detach(), flat, dict(model.named_buffers())))
    assert_within(torch.from_numpy(out), results[0][0], results[1][0], "output")
    assert_within(torch.from_numpy(grads), results[0][1], results[1][1], "gradients")
    for k in ("features.0.1.running_mean", "features.7.0.block.3.1.running_var"):
        assert_within(torch.from_numpy(buffers[k]), results[0][2][k], results[1][2][k], k)
