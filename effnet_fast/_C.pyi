from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

def cuda_built() -> bool: ...
def cuda_archs() -> list[int]: ...
def cpu_isas() -> list[str]: ...

class CpuEngine:
    def __init__(self, network: dict[str, Any], isa: str, bf16: bool) -> None: ...
    def run(
        self,
        data: int,
        is_uint8: bool,
        shape: Sequence[int],
        stride: Sequence[int],
        threads: int,
        features: bool,
        out: int,
        profiled: bool,
    ) -> list[float]: ...
    def feature_size(self, h: int, w: int) -> tuple[int, int]: ...
    def workspace_bytes(self, h: int, w: int, threads: int) -> int: ...
    def steps(self, h: int, w: int) -> list[tuple[str, str, float, float]]: ...

# The ops of csrc/cpu/training/ops.h, called by effnet_fast.ops.on_cpu. An int that is no size is an
# address, 0 for an absent tensor, or a code (on_cpu/bridge.py); `threads` may share the work.
_Map: TypeAlias = tuple[int, int, int, int]  # address; strides of N, H, W
_Shape: TypeAlias = tuple[int, int, int, int, int]  # type, N, C, H, W
_Prologue: TypeAlias = tuple[int, int, int]  # affine, activation, gate
_Epilogue: TypeAlias = tuple[int, int]  # affine, activation
_Behind: TypeAlias = tuple[int, int, int, int, int, int, int]
# g, coef, affine, activation, gate, drop, dpool
_Convolution: TypeAlias = tuple[_Shape, int, int, int, int, int, int]
# P, Q, kernel, stride, top, left
_Vector: TypeAlias = tuple[int, int, int]  # address, type, stride
_Mlp: TypeAlias = tuple[int, int, int, int, int]  # both weights with their biases, activation

class CpuOps:
    def __init__(self, isa: str) -> None: ...
    def bn_fold(
        self,
        c: int,
        weight: _Vector,
        bias: _Vector,
        mean: _Vector,
        var: _Vector,
        eps: float,
        affine: int,
        norm: int,
        /,
    ) -> None: ...
    def bn_finalize(
        self,
        c: int,
        stats: int,
        weight: _Vector,
        bias: _Vector,
        running_mean: _Vector,
        running_var: _Vector,
        count: int,
        momentum: float,
        eps: float,
        affine: int,
        norm: int,
        /,
    ) -> None: ...
    def bn_bwd_coef(
        self,
        c: int,
        sums: int,
        norm: int,
        weight: _Vector,
        count: int,
        batch_stats: bool,
        coef: int,
        /,
    ) -> None: ...
    def bn_residual(
        self,
        threads: int,
        shape: _Shape,
        x: _Map,
        prologue: _Prologue,
        drop: int,
        residual: _Map,
        y: int,
        /,
    ) -> None: ...
    def bn_bwd_reduce(
        self, threads: int, shape: _Shape, behind: _Behind, y: _Map, norm: int, sums: int, /
    ) -> None: ...
    def bn_residual_bwd(
        self, threads: int, shape: _Shape, behind: _Behind, y: _Map, dy: int, /
    ) -> None: ...
    def moments(self, threads: int, shape: _Shape, x: _Map, stats: int, /) -> None: ...
    def se_pool(
        self, threads: int, shape: _Shape, x: _Map, prologue: _Prologue, pooled: int, /
    ) -> None: ...
    def se_gate(
        self,
        threads: int,
        tncr: tuple[int, int, int, int],
        pool: int,
        count: int,
        mlp: _Mlp,
        gate: int,
        /,
    ) -> None: ...
    def se_gate_bwd(
        self,
        threads: int,
        ncr: tuple[int, int, int],
        hw: int,
        sums: int,
        gate: int,
        pooled: int,
        mlp: _Mlp,
        results: Sequence[int],
        /,
    ) -> None: ...
    def se_bwd_reduce(
        self,
        threads: int,
        shape: _Shape,
        g: int,
        x: _Map,
        prologue: _Prologue,
        norm: int,
        sums: int,
        /,
    ) -> None: ...
    def pointwise(
        self,
        threads: int,
        shape: _Shape,
        k: int,
        x: _Map,
        weight: int,
        prologue: _Prologue,
        epilogue: _Epilogue,
        residual: _Map,
        y: int,
        stats: int,
        pooled: int,
        /,
    ) -> None: ...
    def pointwise_bwd(
        self,
        threads: int,
        shape: _Shape,
        k: int,
        behind: _Behind,
        y: int,
        x: _Map,
        weight: int,
        prologue: _Prologue,
        norm: int,
        residual: int,
        dx: int,
        dw: int,
        sums: int,
        /,
    ) -> None: ...
    def depthwise(
        self,
        threads: int,
        convolution: _Convolution,
        x: _Map,
        weight: int,
        prologue: _Prologue,
        epilogue: _Epilogue,
        y: int,
        stats: int,
        pool: int,
        pool_rows: int,
        /,
    ) -> None: ...
    def depthwise_bwd(
        self,
        threads: int,
        convolution: _Convolution,
        behind: _Behind,
        y: int,
        x: _Map,
        weight: int,
        prologue: _Prologue,
        norm: int,
        residual: int,
        dx: int,
        dw: int,
        sums: int,
        /,
    ) -> None: ...

# Only in a module built with CUDA.
def cuda_device_count() -> int: ...
def cuda_runtime_version() -> int: ...

# The ops of csrc/cuda/ops.h, called by effnet_fast.ops.on_cuda. An int that is no size is an
# address, 0 for an absent tensor, or the code of a type or an activation (on_cuda/bridge.py).
_Param: TypeAlias = tuple[int, int]  # address, type
_BatchNorm: TypeAlias = tuple[_Param, _Param, _Param, _Param, float]  # gamma, beta, mean, var, eps
_SeWeights: TypeAlias = tuple[
    int, int, int, _Param, _Param
]  # w_reduce, w_expand, type, both biases
_Place: TypeAlias = tuple[int, int]  # device index, stream
_Allocate: TypeAlias = Callable[[int], int]  # bytes to the address of so many

def depthwise(
    shape: tuple[int, ...],
    x: _Map,
    weight: int,
    in_affine: int,
    in_act: int,
    out_bn: _BatchNorm | None,
    out_act: int,
    reduce: int,
    y: int,
    reduced: int,
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def depthwise_bwd(
    shape: tuple[int, ...],
    g: int,
    y: int,
    x: _Map,
    weight: int,
    coef: int,
    y_affine: int,
    y_act: int,
    gate: int,
    dpool: int,
    in_affine: int,
    in_act: int,
    in_norm: int,
    residual_grad: int,
    dx: int,
    dw: int,
    sums: int,
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def pointwise(
    shape: tuple[int, int, int, int, int],  # type, N, C, K, pixels per image
    x: tuple[int, int],  # address, elements from pixel to pixel
    weight: int,
    in_affine: int,
    in_act: int,
    in_gate: int,
    out_bn: _BatchNorm | None,
    out_act: int,
    residual: tuple[int, int],
    y: int,
    stats: int,
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def pointwise_bwd(
    shape: tuple[int, int, int, int, int],  # type, N, C, K, pixels per image
    g: int,
    y: int,
    x: tuple[int, int],
    weight: int,
    coef: int,
    drop_scale: int,
    in_affine: int,
    in_act: int,
    in_gate: int,
    in_norm: int,
    residual_grad: int,
    dx: int,
    dw: int,
    sums: int,
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def se_pool(
    shape: _Shape,
    x: _Map,
    affine: int,
    act: int,
    pooled: int,
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def se_gate(
    tncr: tuple[int, int, int, int],
    pool: int,
    count: int,
    weights: _SeWeights,
    act: int,
    gate: int,
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def se_bwd_reduce(
    shape: _Shape,
    g: int,
    x: _Map,
    affine: int,
    act: int,
    norm: int,
    sums: int,
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def se_gate_bwd(
    ncr: tuple[int, int, int],
    hw: int,
    sums: int,
    gate: int,
    pooled: int,
    weights: _SeWeights,
    act: int,
    results: tuple[int, ...],
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def bn_fold(c: int, bn: _BatchNorm, affine: int, norm: int, place: _Place, /) -> None: ...
def bn_finalize(
    c: int,
    stats: int,
    gamma: _Param,
    beta: _Param,
    running_mean: _Param,
    running_var: _Param,
    count: int,
    momentum: float,
    eps: float,
    affine: int,
    norm: int,
    place: _Place,
    /,
) -> None: ...
def bn_residual(
    shape: _Shape,
    x: _Map,
    affine: int,
    act: int,
    gate: int,
    drop_scale: int,
    residual: _Map,
    y: int,
    place: _Place,
    /,
) -> None: ...
def bn_bwd_reduce(
    shape: _Shape,
    g: int,
    y: _Map,
    norm: int,
    affine: int,
    act: int,
    drop_scale: int,
    dpool: int,
    sums: int,
    allocate: _Allocate,
    place: _Place,
    /,
) -> None: ...
def bn_bwd_coef(
    c: int,
    sums: int,
    norm: int,
    gamma: _Param,
    count: int,
    batch_stats: bool,
    coef: int,
    place: _Place,
    /,
) -> None: ...
def bn_residual_bwd(
    shape: _Shape,
    g: int,
    y: _Map,
    coef: int,
    affine: int,
    act: int,
    gate: int,
    drop_scale: int,
    dpool: int,
    dy: int,
    place: _Place,
    /,
) -> None: ...
