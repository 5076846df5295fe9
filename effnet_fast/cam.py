"""Class activation maps: where in a picture a model sees a class.

CAM (Zhou et al., arXiv 1512.04150) is exact for a network that ends in the mean over its last map
and one linear layer, as all of this library do: the logit is the mean of the map plus the bias, and
one forward pass gives both. Grad-CAM (Selvaraju et al., arXiv 1610.02391) weights the channels of
any map by the gradient of the logit instead, and takes a backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effnet_fast.mobilenet import MobileNet
from effnet_fast.models import EfficientNet
from effnet_fast.resnet import ResNet

Model = EfficientNet | MobileNet | ResNet


@dataclass(frozen=True)
class ActivationMap:
    """Maps of N pictures.

    ``maps``: [N, h, w], how much each place speaks for the class; negative: against it. ``logits``:
    [N, num_classes]. ``classes``: [N], the class of each map. All detached, ``maps`` in fp32 (fp64
    of an fp64 model).
    """

    maps: Tensor
    logits: Tensor
    classes: Tensor


def class_activation_map(
    model: Model, x: Tensor, classes: int | Tensor | None = None
) -> ActivationMap:
    """CAM of every picture of ``x``, in one forward pass.

    Args:
        model: an EfficientNet, MobileNet or ResNet of this library, in eval mode.
        x: [N, in_channels, H, W], normalised.
        classes: one class, one for each picture [N], or None: the most likely one of each.

    Returns:
        Maps of the size of the last feature map, whose mean plus the class's bias is its logit.

    Raises:
        ValueError: the model is in training mode, a class is out of range.
        TypeError: another model, or a classifier that is not one linear layer; use
            :func:`grad_cam`.
    """
    linear = _linear(model)
    _check_eval(model)
    with torch.no_grad():
        features = model.forward_features(x)
        logits = model.forward_head(features)
        chosen = _chosen(classes, logits)
        wide = torch.promote_types(features.dtype, torch.float32)
        weight = linear.weight[chosen].to(wide)
        maps = torch.einsum("nk,nkhw->nhw", weight, features.to(wide))
    return ActivationMap(maps, logits, chosen)


def grad_cam(
    model: Model, x: Tensor, classes: int | Tensor | None = None, layer: nn.Module | None = None
) -> ActivationMap:
    """Grad-CAM of every picture of ``x``: one forward pass, and one backward to ``layer``.

    Args:
        model, x, classes: as :func:`class_activation_map`'s; the classifier may be any.
        layer: the module of ``model`` whose output [N, C, h, w] is looked at, for instance
            ``model.features[5]``; not one inside a fused block. Default: the last feature map.

    Returns:
        Maps of the size of the layer's output, not below 0. Gradients of parameters stay as they
        were.

    Raises:
        ValueError: as :func:`class_activation_map`; or ``layer`` did not run, or its output is no
            map.
    """
    _check_eval(model)
    with torch.enable_grad():
        if layer is None:
            with torch.no_grad():
                features = model.forward_features(x)
            features.requires_grad_()
            logits = model.forward_head(features)
        else:
            features, logits = _watched(model, x, layer)
        chosen = _chosen(classes, logits.detach())
        score = logits.gather(1, chosen[:, None]).sum()
        (slopes,) = torch.autograd.grad(score, features)
    wide = torch.promote_types(features.dtype, torch.float32)
    weight = slopes.to(wide).mean((2, 3))
    maps = torch.einsum("nk,nkhw->nhw", weight, features.detach().to(wide)).relu()
    return ActivationMap(maps, logits.detach(), chosen)


def _watched(model: Model, x: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The output of ``layer``, from which the graph begins, and the logits."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: object, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise ValueError(f"grad_cam: the layer's output is no map [N, C, h, w]: {output!r:.80}")
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # what comes next may work in place

    handle = layer.register_forward_hook(watch)
    try:
        logits = model(x.detach())
    finally:
        handle.remove()
    if not seen:
        raise ValueError(
            f"grad_cam: this {type(layer).__name__} did not run in the model's forward pass: name "
            "a stage or a block of it, not a layer inside a fused block"
        )
    return seen[-1], logits


def _check_eval(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")


def _linear(model: nn.Module) -> nn.Linear:
    """The classifier of ``model``, if it is a linear layer and nothing more in eval mode."""
    if not isinstance(model, EfficientNet | MobileNet | ResNet):
        raise TypeError(
            f"expected an EfficientNet, MobileNet or ResNet of effnet_fast, got "
            f"{type(model).__name__}"
        )
    classifier = model.fc if isinstance(model, ResNet) else model.classifier
    layers = [m for m in classifier.modules() if not isinstance(m, nn.Sequential | nn.Dropout)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        kinds = ", ".join(type(m).__name__ for m in layers)
        raise TypeError(f"CAM needs a classifier of one linear layer, not of {kinds}: use grad_cam")
    return layers[0]


def _chosen(classes: int | Tensor | None, logits: Tensor) -> Tensor:
    """[N] of class indices."""
    n, count = logits.shape
    if classes is None:
        return logits.argmax(1)
    chosen = torch.as_tensor(classes, device=logits.device)
    if chosen.dim() == 0:
        chosen = chosen.expand(n)
    if chosen.shape != (n,) or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"classes must be an int, or ints of shape ({n},), got {classes!r}")
    if n and (int(chosen.min()) < 0 or int(chosen.max()) >= count):
        raise ValueError(f"classes must be within 0 to {count - 1}, got {classes!r}")
    return chosen.long()
