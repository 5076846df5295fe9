"""Makes Triton's interpreter (TRITON_INTERPRET=1) compute as a GPU does, for kernels under test.

Stock, it takes the 16 bits of a bfloat16 for an integer: sums, products and comparisons come out
of bit patterns, and roundings to it are cut off. And it refuses inline assembly. What is changed:

* bf16 is widened to fp32 exactly, computed on in fp32, and rounded to nearest even, NaN kept;
  ``tl.dot`` of bf16 widens its operands. Reductions are not covered: kernels upcast before them.
* conversions among fp16, fp32 and fp64 are numpy's, which round to nearest even.
* ``tanh.approx.f32`` is tanh rounded to 11 bits: its largest relative error by the PTX manual is
  2^-11, so a result here is as wrong as it may be there.
* ``triton.language`` is patched once in a launch for each module that calls it, not at every call
  of a device function, which took a third of the time.
* Sums of integers are not formed a second time in 64 bits, to be compared with what 32 bits hold:
  another third, for an assertion that the interpreter leaves out. And numpy's type for a type of
  Triton's is looked up in one table, which stock makes anew for each tensor.

:func:`install` must run before a kernel does, and in a process of its own: a process either
interprets or compiles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMPARISONS = {
    np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal,
}  # fmt: skip
TANH_BITS = 11


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bf16 bit patterns as fp32: exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: NDArray[Any]) -> NDArray[np.uint16]:
    """fp32 as bf16 bit patterns, rounded to nearest even; every NaN becomes the quiet one."""
    values = np.asarray(values, dtype=np.float32)
    u = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((u + np.uint32(0x7FFF) + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.reshape(values.shape))


def tanh_approx(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """tanh, rounded to :data:`TANH_BITS` bits of mantissa (the leading one not counted)."""
    u = np.tanh(values.astype(np.float32)).view(np.uint32)
    drop = 23 - TANH_BITS
    rounded = (u + np.uint32(1 << (drop - 1))) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    return rounded.view(np.float32)


def install() -> None:
    """Patch the interpreter; a second call does nothing."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET=1 must be set before this process starts")
    import triton.language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    handle: Any = interpreter.TensorHandle
    if hasattr(builder, "stock_cast_impl"):
        return
    builder.stock_cast_impl = builder.cast_impl
    np.seterr(all="ignore")  # infinities and NaN are results like any other on a GPU

    def is_bf16(x: Any) -> bool:
        return bool(x.dtype.scalar == tl.bfloat16)

    def wide(x: Any) -> Any:
        return handle(widen(x.data), tl.float32) if is_bf16(x) else x

    def cast_impl(self: Any, x: Any, to: Any) -> Any:
        source, target = x.dtype.scalar, to.scalar
        if source == target or tl.bfloat16 not in (source, target):
            return self.stock_cast_impl(x, to)
        values = wide(x).data
        if target == tl.bfloat16:
            return handle(narrow(values.astype(np.float32)), target)
        return handle(values.astype(interpreter._get_np_dtype(to)), target)

    def convert_float(x: Any, source: Any, target: Any, mode: Any) -> Any:
        from_, to = source.scalar, target.scalar
        if (from_, to) == (tl.bfloat16, tl.float32):
            return widen(x)
        toward_zero = mode == interpreter._ir.ROUNDING_MODE.RTZ
        if (from_, to) == (tl.float32, tl.bfloat16) and not toward_zero:
            return narrow(x).reshape(x.shape)
        ieee = (tl.float16, tl.float32, tl.float64)
        if from_ in ieee and to in ieee:
            bits = getattr(np, f"uint{to.primitive_bitwidth}")
            return x.astype(interpreter._get_np_dtype(to)).view(bits)
        return stock_convert_float(x, source, target, mode)

    def binary_op(self: Any, x: Any, y: Any, f: Callable[..., Any]) -> Any:
        if not is_bf16(x):
            return stock_binary_op(self, x, y, f)
        result = f(widen(x.data), widen(y.data))
        if f in COMPARISONS:
            return handle(result, tl.int1)
        return handle(narrow(result), tl.bfloat16)

    def unary_op(self: Any, x: Any, f: Callable[..., Any]) -> Any:
        if not is_bf16(x):
            return stock_unary_op(self, x, f)
        return handle(narrow(f(widen(x.data))), tl.bfloat16)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return stock_dot(self, wide(a), wide(b), *rest)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        """Rounded once: fp64 holds a product of two fp32 exactly."""
        exact = x.data.astype(np.float64) * y.data + z.data
        return handle(exact.astype(x.data.dtype), x.dtype.scalar)

    def create_inline_asm(self: Any, asm: str, constraints: str, values: Any, *rest: Any) -> Any:
        if not asm.startswith("tanh.approx.f32 ") or len(values) != 1:
            raise NotImplementedError(f"inline assembly {asm!r}: emulate it in {__file__}")
        result = handle(tanh_approx(values[0].data), tl.float32)
        result.get_result = lambda i: result
        return result

    def np_dtype(of: Any) -> Any:
        element = getattr(of, "element_ty", of)  # of a block, or what a pointer points to
        pointer = isinstance(of, tl.pointer_type) or isinstance(element, tl.pointer_type)
        key = "pointer" if pointer else element.name
        if key not in np_dtypes:
            np_dtypes[key] = stock_np_dtype(of)
        return np_dtypes[key]

    def patch_lang(fn: Any) -> Any:
        if id(fn.__globals__) in patched:
            return interpreter._LangPatchScope()
        patched.add(id(fn.__globals__))
        return stock_patch_lang(fn)

    def launch(self: Any, *args: Any, **options: Any) -> Any:
        patched.clear()  # the last launch has taken its own back
        return stock_launch(self, *args, **options)

    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=options.debug)
    np_dtypes: dict[str, Any] = {}
    stock_np_dtype, interpreter._get_np_dtype = interpreter._get_np_dtype, np_dtype
    patched: set[int] = set()
    stock_patch_lang, interpreter._patch_lang = interpreter._patch_lang, patch_lang
    executor: Any = interpreter.GridExecutor
    stock_launch, executor.__call__ = executor.__call__, launch
    stock_convert_float, interpreter._convert_float = interpreter._convert_float, convert_float
    stock_binary_op, builder.binary_op = builder.binary_op, binary_op
    stock_unary_op, builder.unary_op = builder.unary_op, unary_op
    stock_dot, builder.create_dot = builder.create_dot, create_dot
    builder.cast_impl = cast_impl
    builder.create_fma = create_fma
    builder.create_inline_asm = create_inline_asm


@contextmanager
def reversed_programs() -> Iterator[None]:
    """Within the block, the programs of a grid run last to first: no result may depend on it."""
    from triton.runtime.interpreter import InterpreterBuilder

    builder: Any = InterpreterBuilder
    stock = builder.set_grid_idx

    def set_grid_idx(self: Any, *index: int) -> None:
        last_first = zip(self.grid_dim, index, strict=True)
        stock(self, *(size - 1 - i for size, i in last_first))

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_idx = stock
