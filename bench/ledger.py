"""Count the bytes a model moves and keeps, exactly and without a GPU.

What is counted
---------------
The model runs on meta tensors. For every operator the dispatcher sees, each distinct tensor
argument is read once and each fresh output is written once. That is the true traffic of a GPU
kernel which streams its operands through a cache smaller than a tensor. 1 MB is 1e6 bytes.

* Aliases move nothing. An operator which is a view by its schema (`view`, `permute`, `expand`,
  `t`, `detach`) is free, and so is one that mutates nothing and returns storage it was
  given, though its schema does not say so (`_unsafe_view`).
* Allocations (`empty` and its relatives) move nothing: whoever fills them pays. `zeros_like`,
  `new_zeros` and their relatives write, but take only the shape of their argument.
* An argument the schema marks as mutated is read and written, unless it is an `out=` argument or
  the operator only overwrites it (`_OVERWRITES`); then it is written alone.
* A broadcast dimension (stride 0) is stored once and so read once.
* Two arguments which are the same memory are read once.
* `_passes` lists the aten operators whose kernels go over an argument more than once, or not at
  all. Everything else, `effnet_fast::*` included, is one pass.

Per image
---------
Weights, their gradients and per-channel statistics do not grow with the batch and are left out by
counting at batch 3 and at batch 2 and taking the difference. Bytes are affine in the batch, so
the difference is exact; batch 1 is avoided because size-1 dimensions let operators skip copies.
The loss is `out.float().sum()`; the optimiser is not part of a step.

Saved for backward
------------------
Every tensor given to autograd to keep (`torch.autograd.graph.saved_tensors_hooks`), each storage
once and whole: a saved view keeps all of its storage alive, two views of one storage keep it
once, and an in-place result is the storage of its argument. Parameters, buffers and the
input batch are not counted: they are alive anyway. Tensors which an `autograd.Function` hides in
plain attributes of `ctx`, not in `save_for_backward`, would escape.

Where meta tensors differ from CUDA
-----------------------------------
Batch norm appears as `native_batch_norm`; CUDA may take cuDNN's, with the same passes and an
opaque reserve. Dropout appears as `bernoulli_` and `mul`, on CUDA as one `native_dropout`. A
convolution's bias is part of the convolution here and a separate kernel beside cuDNN; the stock
models have biases on 1x1 maps only. Together these are below 0.1 % of a model's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCHES = (3, 2)
_OVERWRITES = frozenset(f"aten::{name}" for name in ("bernoulli_", "copy_", "fill_", "zero_"))


@dataclass(frozen=True)
class Row:
    """What one operator did in a run: how often it was called, bytes read and bytes written."""

    calls: int
    read: int
    written: int

    @property
    def moved(self) -> int:
        return self.read + self.written

    def __add__(self, other: Row) -> Row:
        return Row(self.calls + other.calls, self.read + other.read, self.written + other.written)


Rows = dict[str, Row]


def moved(rows: Mapping[str, Row]) -> int:
    """Bytes read and written by all of `rows`."""
    return sum(row.moved for row in rows.values())


@dataclass(frozen=True)
class Ledger:
    """Bytes per image of one model: traffic by operator of both modes, and saved activations."""

    inference: Rows
    training: Rows
    saved: int

    def figures(self) -> dict[str, int]:
        """Bytes of each quantity, without the operators."""
        return {
            "inference": moved(self.inference),
            "training": moved(self.training),
            "saved": self.saved,
        }


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Context manager: every operator which moves bytes adds to `rows`, by its qualified name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.rows: Rows = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name
        if not _moves_nothing(func, (args, kwargs), result):
            row = _count(func._schema, args, kwargs, result)
            if row.moved:
                self.rows[name] = self.rows.get(name, Row(0, 0, 0)) + row
        return result


def _moves_nothing(func: Any, arguments: object, result: object) -> bool:
    base = func._schema.name.removeprefix("aten::").removeprefix("new_")
    if func.is_view or base.startswith("empty"):
        return True
    outputs = {_storage_id(tensor) for tensor in _tensors(result)}
    inputs = {_storage_id(tensor) for tensor in _tensors(arguments)}
    return not func._schema.is_mutable and bool(outputs) and outputs <= inputs


def _count(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Row:
    positional = dict(zip((a.name for a in schema.arguments), args, strict=False))
    bound = {**positional, **kwargs}
    passes = _passes(schema.name, bound)
    reads: dict[object, int] = {}
    writes: dict[object, int] = {}
    owned = set()
    for argument in schema.arguments:
        mutated = argument.alias_info is not None and argument.alias_info.is_write
        overwritten = mutated and (argument.is_out or schema.name in _OVERWRITES)
        for tensor in _tensors(bound.get(argument.name)):
            key, size = _memory(tensor), bytes_of(tensor)
            owned.add(_storage_id(tensor))
            if not overwritten:
                times = passes.get(argument.name, 1)
                reads[key] = max(reads.get(key, 0), times * size)
            if mutated:
                writes[key] = size
    for tensor in _tensors(result):
        if _storage_id(tensor) not in owned:
            writes[_memory(tensor)] = bytes_of(tensor)
    return Row(1, sum(reads.values()), sum(writes.values()))


def _passes(name: str, bound: Mapping[str, Any]) -> dict[str, int]:
    """How often an aten kernel reads each argument, where that is not once.

    Training batch norm reads x for the statistics and again to normalise; its backward reads x
    and the gradient for two sums and again for the input's gradient. A convolution's backward is
    one kernel for each wanted gradient: all read the output's gradient, the input's also
    the weight, the weight's also the input.
    """
    if name.startswith("aten::new_") or name.endswith("_like"):
        return {"self": 0}
    if name == "aten::native_batch_norm" and bound["training"]:
        return {"input": 2}
    if name == "aten::native_batch_norm_backward" and bound["train"]:
        return {"input": 2, "grad_out": 2}
    if name == "aten::convolution_backward":
        grad_input, grad_weight, grad_bias = map(int, bound["output_mask"])
        total = grad_input + grad_weight + grad_bias
        return {"grad_output": total, "weight": grad_input, "input": grad_weight}
    return {}


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _memory(tensor: Tensor) -> object:
    return _storage_id(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()


def bytes_of(tensor: Tensor) -> int:
    """Bytes of the distinct elements: a dimension of stride 0 counts once."""
    size = tensor.element_size() if tensor.numel() else 0
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else 1
    return size


def inference(model: nn.Module, x: Tensor) -> Rows:
    """Traffic of `model(x)` in eval mode without gradients; x is [N, C, H, W]."""
    model.eval()
    traffic = Traffic()
    with torch.no_grad(), traffic:
        model(x)
    return traffic.rows


def training_step(model: nn.Module, x: Tensor) -> tuple[Rows, int]:
    """Traffic of forward and backward of `model(x)` in training mode, and the bytes it saves."""
    model.train()
    alive = {_storage_id(tensor) for tensor in (*model.parameters(), *model.buffers(), x)}
    # The storages are held, or a freed one's address could be taken by another and counted once.
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage_id(tensor) not in alive:
            saved[_storage_id(tensor)] = tensor.untyped_storage()
        return tensor

    traffic = Traffic()
    with traffic, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x).float().sum()
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return traffic.rows, sum(storage.nbytes() for storage in saved.values())


def per_image(
    build: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.bfloat16,
) -> Ledger:
    """The ledger of the model `build()` returns, per image of `shape` (C, H, W).

    The model is built on the meta device and put in `dtype` and channels_last. Raises
    RuntimeError where the model's schedule depends on the batch size.
    """
    model = on_meta(build, dtype)
    inputs = [batch(n, shape, dtype) for n in BATCHES]
    evals = [inference(model, x) for x in inputs]
    steps = [training_step(model, x) for x in inputs]
    return Ledger(
        inference=_difference(evals[0], evals[1]),
        training=_difference(steps[0][0], steps[1][0]),
        saved=steps[0][1] - steps[1][1],
    )


def on_meta(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """The model `build()` returns, on the meta device in `dtype` and channels_last."""
    with torch.device("meta"):
        model = build()
    # nn.Module.to has no overload which names memory_format with a dtype.
    return model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return, unused-ignore]


def batch(n: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """An input batch [n, *shape] on the meta device in channels_last."""
    return torch.empty((n, *shape), dtype=dtype, device="meta", memory_format=torch.channels_last)


def _difference(larger: Rows, smaller: Rows) -> Rows:
    calls = [{name: row.calls for name, row in rows.items()} for rows in (larger, smaller)]
    if calls[0] != calls[1]:
        names = {n for n in calls[0] | calls[1] if calls[0].get(n) != calls[1].get(n)}
        raise RuntimeError(
            f"the operators called depend on the batch size, so bytes per image have no meaning: "
            f"{sorted(names)} differ between batches {BATCHES}; make the schedule independent of N"
        )
    return {
        name: Row(row.calls, row.read - smaller[name].read, row.written - smaller[name].written)
        for name, row in larger.items()
    }
