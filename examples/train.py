"""Train an EfficientNet as its paper does (Tan and Le, arXiv 1905.11946, section 5.2).

    python examples/train.py --data digits --model efficientnet_b0 --resolution 32 --output run
    torchrun --nproc-per-node 8 examples/train.py --data folder --root imagenet --output run
    python examples/train.py --data CIFAR100 --root data --weights DEFAULT --output run

RMSProp with decay and momentum 0.9 (epsilon as TensorFlow's 1e-3 under the root), batch norm
momentum 0.99, weight decay 1e-5 on weights, a learning rate of 0.256 for 4096 pictures a step that
warms up and then decays by 0.97 every 2.4 epochs, AutoAugment, stochastic depth, dropout, and an
exponential moving average of weights and statistics, which is what is judged.

Started by torchrun, every process takes its part of each batch and batch norm its statistics from
all of them: the result is one process's with the whole batch, but for rounding. A run goes on from
its last epoch with ``--resume``, bit for bit: all that is random in an epoch follows from the seed,
the epoch and the process.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import train_data
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

import effnet_fast as ef
from effnet_fast.architecture import variant
from effnet_fast.models import from_variant

#: The learning rate of ``--lr`` is for this many pictures a step, and is scaled to the actual.
LR_BATCH = 4096
AMP = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Options that a resumed run may change.
FREE = ("epochs", "output", "resume", "workers", "tensorboard", "root", "download")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; the defaults are the paper's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="folder, digits, or a name of torchvision.datasets")
    add("--root", type=Path, default=Path("data"), help="where the data are")
    add("--download", action="store_true", help="let torchvision fetch the data")
    add("--output", type=Path, required=True, help="a folder for checkpoint and log")
    add("--resume", action="store_true", help="go on from the checkpoint in --output, if any")
    add("--model", default="efficientnet_b0")
    add("--weights", help="start from these, with a new classifier")
    add("--width", type=float, help="instead of the model's; no --weights then")
    add("--depth", type=float, help="likewise")
    add("--resolution", type=int, help="instead of the model's")
    add("--backend", default="auto")
    add("--epochs", type=int, default=350)
    add("--batch-size", type=int, default=256, help="pictures a step of each process")
    add("--lr", type=float, default=0.256, help=f"for {LR_BATCH} pictures a step")
    add("--warmup-epochs", type=float, default=5.0)
    add("--weight-decay", type=float, default=1e-5)
    add("--bn-momentum", type=float, default=0.99, help="what is kept of the statistics")
    add("--dropout", type=float, help="default: the model's, 0.2 to 0.5")
    add("--survival", type=float, default=0.8, help="of the last block: stochastic depth")
    add("--ema", type=float, default=0.9999)
    add("--augment", choices=[*train_data.POLICIES, "none"], default="imagenet")
    add("--amp", choices=AMP, default="off", help="the type of the activations")
    add("--workers", type=int, default=2, help="that read pictures, for each process")
    add("--seed", type=int, default=0)
    add("--tensorboard", action="store_true", help="log to OUTPUT/tensorboard too")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- processes


@contextmanager
def process_group() -> Iterator[tuple[int, int, torch.device]]:
    """(rank, number of processes, device), by the environment that torchrun sets."""
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if world == 1:
        yield 0, 1, device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield dist.get_rank(), world, device
    finally:
        # What still refers to the group, in cycles too, goes first: gloo's threads would otherwise
        # outlive the interpreter, and abort the process when they free their last tensors.
        gc.collect()
        dist.destroy_process_group()


def distributed(model: nn.Module, world: int, device: torch.device) -> nn.Module:
    """The model with gradients averaged over the processes and batch norm over all of them.

    Batch norms are converted after wrapping: DistributedDataParallel refuses SyncBatchNorm on a
    CPU, since PyTorch's own forward does, which the fused ops do not call.
    """
    if world == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=ids)
    nn.SyncBatchNorm.convert_sync_batchnorm(wrapped.module)
    return wrapped


# ---------------------------------------------------------------- the recipe


def build_model(args: argparse.Namespace) -> ef.EfficientNet:
    """The model that the options describe, less its classifier; its ``recipe`` is for its size."""
    v = variant(args.model)
    given = {k: getattr(args, k) for k in ("width", "depth", "resolution", "dropout")}
    changed = {k: value for k, value in given.items() if value is not None}
    options = {
        "stochastic_depth_prob": 1 - args.survival, "norm_momentum": 1 - args.bn_momentum,
        "backend": args.backend,
    }  # fmt: skip
    if args.weights is None:
        return from_variant(dataclasses.replace(v, **changed), norm_eps=1e-3, **options)
    if {"width", "depth"} & changed.keys():
        raise SystemExit("--weights are for the model as it is: leave out --width and --depth")
    if args.dropout is not None:
        options["dropout"] = args.dropout
    model = ef.create_model(args.model, args.weights, **options)
    if args.resolution is not None:
        r = model.recipe
        resize = round(args.resolution * r.resize / r.crop)
        model.recipe = dataclasses.replace(r, crop=args.resolution, resize=resize)
    return model


def optimiser_for(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """RMSProp; what is a vector (batch norm, biases) does not decay."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others}]
    return torch.optim.RMSprop(groups, lr=0.0, alpha=0.9, momentum=0.9, eps=math.sqrt(1e-3))


def learning_rate(args: argparse.Namespace, epoch: float, batch: int) -> float:
    """At ``epoch``, a fraction within it, for ``batch`` pictures a step over all processes."""
    peak = args.lr * batch / LR_BATCH
    if epoch < args.warmup_epochs:
        return peak * epoch / args.warmup_epochs
    return peak * 0.97 ** math.floor(epoch / 2.4)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """The moving average; at first of fewer steps, as TensorFlow's with ``num_updates``."""

    def mix(average: Any, current: Any, count: Any) -> None:
        if not average[0].is_floating_point():  # how many batches there were
            torch._foreach_copy_(average, current)
            return
        n = int(count)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=mix, use_buffers=True)


# ---------------------------------------------------------------- one epoch


class Run:
    """A training run: model, average, optimiser, and what became of every epoch that is done."""

    def __init__(
        self, args: argparse.Namespace, data: train_data.Data, model: ef.EfficientNet, rank: int,
        world: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.args, self.data, self.rank, self.world, self.device = args, data, rank, world, device
        self.model = model.to(device)
        self.average = averaged(self.model, args.ema)
        self.optimiser = optimiser_for(self.model, args)
        self.network = distributed(self.model, world, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "float16")
        self.history: list[dict[str, Any]] = []

    @property
    def epoch(self) -> int:
        """How many are done."""
        return len(self.history)

    def one_epoch(self) -> None:
        """Train and judge, and add what came of it to ``history``."""
        loss = self.mean(self.train())
        facts = {
            "epoch": self.epoch + 1,
            "loss": loss,
            "lr": self.optimiser.param_groups[0]["lr"],
            "accuracy": self.accuracy(self.model),
            "ema_accuracy": self.accuracy(self.average),
        }
        self.history.append(facts)

    def mean(self, value: Tensor) -> float:
        """Over the processes."""
        if self.world > 1:
            dist.all_reduce(value)
        return float(value) / self.world

    def batches(self, part: Any, shuffled: bool) -> DataLoader[Any]:
        """This process's part of the data for the current epoch."""
        seed = (self.args.seed * 1_000_003 + self.epoch) * 1_009 + self.rank
        torch.manual_seed(seed)
        sampler: DistributedSampler[Any] | None = None
        if shuffled:
            sampler = DistributedSampler(
                part, self.world, self.rank, shuffle=True, seed=self.args.seed, drop_last=True
            )
            sampler.set_epoch(self.epoch)
        return DataLoader(
            part, self.args.batch_size, sampler=sampler, num_workers=self.args.workers,
            drop_last=shuffled, pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    def inputs(self, images: Tensor) -> Tensor:
        """On the device, in the type of the weights, channels last."""
        weight = next(self.model.parameters())
        return images.to(weight.device, weight.dtype, memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        dtype = AMP[self.args.amp]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def train(self) -> Tensor:
        """One epoch; the mean loss of this process's steps."""
        loader = self.batches(self.data.training, shuffled=True)
        if len(loader) == 0:
            raise SystemExit(
                f"{len(self.data.training)} pictures do not fill one batch of "
                f"{self.args.batch_size} in each of {self.world} processes: use a smaller one"
            )
        self.network.train()
        total = torch.zeros((), device=self.device)
        bar = tqdm(loader, f"epoch {self.epoch + 1}", disable=None if self.rank == 0 else True)
        for step, (images, classes) in enumerate(bar):
            rate = learning_rate(
                self.args, self.epoch + step / len(loader), self.args.batch_size * self.world
            )
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.zero_grad()
            with self.autocast():
                logits = self.network(self.inputs(images))
            loss = F.cross_entropy(logits.float(), classes.to(self.device))
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.average.update_parameters(self.model)
            total += loss.detach()
        return total / len(loader)

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Of ``model`` on the validation pictures, each judged by one process."""
        every: Any = self.data.validation
        own = Subset(every, range(self.rank, len(every), self.world))
        right = torch.zeros((), device=self.device)
        model.eval()
        for images, classes in self.batches(own, shuffled=False):
            with self.autocast():
                answers = model(self.inputs(images)).argmax(1)
            right += (answers == classes.to(self.device)).sum()
        return self.mean(right) * self.world / len(every)

    # ------------------------------------------------------------ checkpoints

    def save(self, path: Path) -> None:
        """Write the state of this moment; an interrupted write leaves the old file."""
        state = {
            "history": self.history, "model": self.model.state_dict(),
            "average": self.average.state_dict(), "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(), "options": self.options(),
        }  # fmt: skip
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def load(self, path: Path) -> None:
        """Go back to a saved state; SystemExit where it is of a run with other options."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        then, now = state["options"], self.options()
        other = [f"{k} was {then.get(k)!r} and is {now[k]!r}" for k in now if then.get(k) != now[k]]
        if other:
            raise SystemExit(f"{path} is of another run: {'; '.join(other)}")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = state["history"]

    def options(self) -> dict[str, Any]:
        """What has to be equal for a run to go on."""
        fixed = {k: v for k, v in vars(self.args).items() if k not in FREE}
        return {**fixed, "processes": self.world}


def show(history: list[dict[str, Any]], output: Path, board: Any) -> None:
    """Print the last epoch, and keep all of them in OUTPUT/log.jsonl."""
    (output / "log.jsonl").write_text("".join(json.dumps(facts) + "\n" for facts in history))
    facts = history[-1]
    tqdm.write("  ".join(f"{k} {v:.4g}" for k, v in facts.items()))
    if board is not None:
        for key in facts.keys() - {"epoch"}:
            board.add_scalar(key, facts[key], facts["epoch"])
        board.flush()


def tensorboard(folder: Path, epoch: int) -> Any:
    """A writer whose records begin after ``epoch``."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemExit(f"--tensorboard needs the package tensorboard ({error})") from error
    return SummaryWriter(folder, purge_step=epoch + 1)


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    """All epochs, from the checkpoint if the run is resumed."""
    torch.manual_seed(args.seed)
    model = build_model(args)
    data = train_data.load(args.data, args.root, args.augment, model.recipe, args.download)
    model.reset_classifier(data.classes)
    run = Run(args, data, model, rank, world, device)
    checkpoint = args.output / "checkpoint.pt"
    if args.resume and checkpoint.exists():
        run.load(checkpoint)
    first, board = rank == 0, None
    if first:
        args.output.mkdir(parents=True, exist_ok=True)
        if args.tensorboard:
            board = tensorboard(args.output / "tensorboard", run.epoch)
    while run.epoch < args.epochs:
        run.one_epoch()
        if first:
            run.save(checkpoint)
            show(run.history, args.output, board)
    if board is not None:
        board.close()


def main(argv: list[str] | None = None) -> int:
    """Train; the first process prints a line for every epoch."""
    args = arguments(argv)
    with process_group() as where:
        train(args, *where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
