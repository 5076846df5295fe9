"""The patched interpreter against torch's own bfloat16 and the PTX manual's error bounds."""

import operator
import os
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.error_rule import violations
from tests.t2 import interpreter

N = 256
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1: run tier T2"
)


@triton.jit
def elementwise_kernel(p_x, p_y, p_out, OP: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, N)
    x = tl.load(p_x + o)
    y = tl.load(p_y + o)
    if OP == "add":
        z = x + y
    elif OP == "mul":
        z = x * y
    elif OP == "lt":
        z = (x < y).to(p_out.dtype.element_ty)
    elif OP == "neg":
        z = -x
    elif OP == "where":
        z = tl.where(x > y, x, y)
    else:
        z = tl.maximum(x, y)
    tl.store(p_out + o, z)


@triton.jit
def convert_kernel(p_x, p_out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, N)
    tl.store(p_out + o, tl.load(p_x + o).to(p_out.dtype.element_ty))


@triton.jit
def dot_kernel(p_a, p_b, p_out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(p_out + o, tl.dot(tl.load(p_a + o), tl.load(p_b + o)))


@triton.jit
def tanh_kernel(p_x, p_out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, N)
    y = tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [tl.load(p_x + o)], dtype=tl.float32, is_pure=True,
        pack=1,
    )  # fmt: skip
    tl.store(p_out + o, y)


@triton.jit
def unknown_asm_kernel(p_x, p_out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, N)
    y = tl.inline_asm_elementwise(
        "ex2.approx.f32 $0, $1;", "=f,f", [tl.load(p_x + o)], dtype=tl.float32, is_pure=True,
        pack=1,
    )  # fmt: skip
    tl.store(p_out + o, y)


def bf16(n: int = N) -> Tensor:
    """Of many magnitudes, with ties to round, zeros of both signs, infinity and NaN."""
    x = torch.randn(n) * 2.0 ** torch.randint(-20, 20, (n,))
    x[:6] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0])
    return x.bfloat16()


OPERATIONS: dict[str, Any] = {
    "add": operator.add,
    "mul": operator.mul,
    "lt": lambda x, y: (x < y).to(x.dtype),
    "neg": lambda x, y: -x,
    "where": lambda x, y: torch.where(x > y, x, y),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_bf16_arithmetic_is_torchs(name: str) -> None:
    x, y = bf16(), bf16().roll(3)
    out = torch.empty(N, dtype=torch.bfloat16)
    elementwise_kernel[(1,)](x, y, out, OP=name, N=N)
    expected = OPERATIONS[name](x, y)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_conversions_round_as_torch_does(source: torch.dtype, target: torch.dtype) -> None:
    x = bf16().float()
    # Halfway between two bf16, to the even one below, above, and one past the tie.
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001], dtype=torch.int32).view(torch.float32)
    x[6:9] = ties
    x = x.to(source)
    out = torch.empty(N, dtype=target)
    convert_kernel[(1,)](x, out, N=N)
    expected = x.to(target)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dot_accumulates_in_fp32(dtype: torch.dtype) -> None:
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    out = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, out, N=16)
    assert not violations(out, a.float() @ b.float(), a.double() @ b.double())


def test_tanh_is_as_wrong_as_the_instruction_may_be() -> None:
    x = torch.linspace(-9, 9, N)
    out = torch.empty(N)
    tanh_kernel[(1,)](x, out, N=N)
    exact = torch.tanh(x.double())
    error = ((out - exact) / exact).abs().max().item()
    assert 2**-13 < error <= 2**-11
    assert (out.abs() <= 1).all()


@triton.jit
def order_kernel(p_last):  # type: ignore[no-untyped-def]
    tl.store(p_last, tl.program_id(0) * 10 + tl.program_id(1))


def test_programs_run_in_reverse_where_asked() -> None:
    last = torch.zeros(1, dtype=torch.int32)
    order_kernel[(3, 2)](last)
    assert last.item() == 21
    with interpreter.reversed_programs():
        order_kernel[(3, 2)](last)
    assert last.item() == 0


def test_other_assembly_is_refused() -> None:
    x = torch.ones(N)
    with pytest.raises(Exception, match="emulate it in") as caught:
        unknown_asm_kernel[(1,)](x, torch.empty(N), N=N)
    assert "ex2.approx" in str(caught.value)
