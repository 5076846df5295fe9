"""Other people's inference runtimes, each as a function of images that computes a given model.

Each is optional and imported when it is asked for. All compute in the type of the images they are
made with, and on a CPU with as many threads as torch has at that moment. OpenVINO takes a model and
images in fp32 whatever it computes in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]
#: Runtime -> what has to be importable for it. torch.onnx needs onnx and onnxscript.
PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
    "tensorrt": ("torch_tensorrt",),
}
_NUMPY_TYPES = {torch.float32: np.float32, torch.float16: np.float16}
_OPENVINO_TYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def why_not(runtime: str, x: Tensor) -> str | None:
    """Why ``runtime`` cannot compute images like ``x`` here; None if it can."""
    missing = [package for package in PACKAGES[runtime] if find_spec(package) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if runtime == "openvino" and (x.is_cuda or x.dtype not in _OPENVINO_TYPES):
        return (
            f"measured on CPUs in float32 and bfloat16 only; the images are {x.dtype} on "
            f"{x.device.type}"
        )
    if runtime == "tensorrt" and not x.is_cuda:
        return "runs on NVIDIA GPUs only"
    if runtime == "onnxruntime":
        if x.dtype not in _NUMPY_TYPES:
            return f"takes float32 and float16; the images are {x.dtype}"
        import onnxruntime

        if _execution_provider(x) not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {_execution_provider(x)}"
    return None


def onnxruntime(model: nn.Module, x: Tensor) -> Run:
    """``model`` [N, C, H, W] -> [N, K] through torch.onnx, for images of ``x``'s shape and device.

    Raises RuntimeError where the session would leave the GPU: it falls back without a word.
    """
    import onnxruntime as ort

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    graph = cast(Any, program).model_proto.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = _execution_provider(x)
    session = ort.InferenceSession(graph, options, providers=[wanted])
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"onnxruntime chose {session.get_providers()[0]}, not {wanted}")
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    shape = session.get_outputs()[0].shape
    place, kind = (x.device.type, x.device.index or 0), _NUMPY_TYPES[x.dtype]

    def run(images: Tensor) -> Tensor:
        out = torch.empty(shape, dtype=images.dtype, device=images.device)
        binding = session.io_binding()
        binding.bind_input(source, *place, kind, tuple(images.shape), images.data_ptr())
        binding.bind_output(target, *place, kind, tuple(out.shape), out.data_ptr())
        if images.is_cuda:  # the session has a stream of its own, and waits for it at the end
            torch.cuda.current_stream(images.device).synchronize()
        session.run_with_iobinding(binding)
        return out

    return run


def _execution_provider(x: Tensor) -> str:
    return "CUDAExecutionProvider" if x.is_cuda else "CPUExecutionProvider"


def openvino(model: nn.Module, x: Tensor) -> Run:
    """``model``, in fp32, in OpenVINO on the CPU for fp32 images of ``x``'s shape, in ``x``'s type.

    Raises RuntimeError where it computes in another: it goes back to fp32 without a word.
    """
    import openvino as ov

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's deprecation, inside the converter
        converted = ov.convert_model(model, example_input=x.float(), input=list(x.shape))
    wanted = _OPENVINO_TYPES[x.dtype]
    settings = {
        "INFERENCE_PRECISION_HINT": wanted,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if chosen != wanted:
        raise RuntimeError(f"OpenVINO computes in {chosen} on this CPU, not in {wanted}")
    request = compiled.create_infer_request()

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([images.numpy()], share_inputs=True)[0])

    return run


def tensorrt(model: nn.Module, x: Tensor) -> Run:
    """``model`` through Torch-TensorRT's backend of torch.compile, in ``x``'s type."""
    import torch_tensorrt  # noqa: F401  # registers the backend

    options: dict[str, Any] = {"enabled_precisions": {x.dtype}, "truncate_double": True}
    compiled: Run = torch.compile(model, backend="tensorrt", dynamic=False, options=options)
    return compiled
