"""The EfficientNet family: B0 to B7 and Lite0 to Lite4, drop-in for torchvision's.

Same signature, ``state_dict`` keys, initial weights (bit for bit under the same seed) and results
as ``torchvision.models.efficientnet_b0`` and its siblings; computed by fused ops.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from effnet_fast import architecture
from effnet_fast import weights as weight_store
from effnet_fast.architecture import Stage, Variant
from effnet_fast.backends import check_name
from effnet_fast.modules import ConvNormAct, MBConv, cast_input
from effnet_fast.ops.checks import check_activation
from effnet_fast.preprocess import Recipe

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | Any | None


class EfficientNet(nn.Module):
    """A network of MBConv stages: ``features`` (stem, stages, head), ``avgpool``, ``classifier``.

    Args:
        stages: from :func:`effnet_fast.architecture.stages`.
        stem_channels, head_channels: outputs of the stem and of the head convolution.
        dropout: before the classifier.
        stochastic_depth_prob: of the last block; grows linearly with depth.
        num_classes: outputs; 0 for none (pooled features are returned).
        in_channels: of the image.
        activation: "silu", or "relu6" for Lite.
        squeeze_excite: whether blocks have SE, of a quarter of the block's input channels.
        norm_eps, norm_momentum: of every batch norm.
        padding: "symmetric" (torch) or "same" (TensorFlow).
        backend: "auto", "cuda", "triton", "cpu" or "reference".

    Attributes:
        recipe: how images become inputs for these weights (:class:`effnet_fast.preprocess.Recipe`).
    """

    recipe: Recipe

    def __init__(
        self,
        stages: tuple[Stage, ...],
        *,
        stem_channels: int,
        head_channels: int,
        dropout: float,
        stochastic_depth_prob: float = 0.2,
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str = "silu",
        squeeze_excite: bool = True,
        norm_eps: float = 1e-5,
        norm_momentum: float | None = 0.1,
        padding: str = "symmetric",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        architecture.check_options(num_classes, in_channels, padding)
        check_name(backend)
        check_activation(activation)
        common: dict[str, Any] = {
            "activation": activation, "padding": padding, "eps": norm_eps,
            "momentum": norm_momentum, "backend": backend,
        }  # fmt: skip
        stem = ConvNormAct("conv2d", in_channels, stem_channels, 3, 2, **common)
        layers: list[nn.Module] = [stem]
        total, index = sum(s.layers for s in stages), 0
        for s in stages:
            blocks = []
            for i in range(s.layers):
                c, stride = (s.in_channels, s.stride) if i == 0 else (s.out_channels, 1)
                squeeze = max(1, c // 4) if squeeze_excite else None
                drop = stochastic_depth_prob * index / total
                shape = (c, s.out_channels, s.kernel, stride, s.expansion)
                blocks.append(MBConv(*shape, squeeze, drop, **common))
                index += 1
            layers.append(nn.Sequential(*blocks))
        layers.append(ConvNormAct("pointwise", stages[-1].out_channels, head_channels, **common))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.in_channels, self.num_features, self.num_classes = (
            in_channels, head_channels, num_classes,
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout, inplace=True), self._new_classifier(num_classes)
        )
        self._initialize()

    def _new_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def _initialize(self) -> None:
        """Fan-out normal for convolutions, uniform 1/sqrt(classes) for the classifier."""
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
            elif isinstance(m, nn.Linear):
                _initialize_classifier(m)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a freshly initialised one; 0 classes means none."""
        if num_classes < 0:
            raise ValueError(f"num_classes must be >= 0, got {num_classes}")
        old = next(self.features.parameters())
        self.num_classes = num_classes
        new = self._new_classifier(num_classes).to(old.device, old.dtype)
        if isinstance(new, nn.Linear):
            _initialize_classifier(new)
        self.classifier[1] = new.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> the head's feature map [N, num_features, h, w]."""
        return self._head()(self._forward_blocks(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A feature map of :meth:`forward_features` -> logits, or pooled [N, num_features]."""
        pooled = torch.flatten(self.avgpool(x), 1)
        return pooled if pre_logits else self.classifier(pooled)

    def _head(self) -> ConvNormAct:
        return cast(ConvNormAct, self.features[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes].

        Any strides; channels_last is the kernels' own. Any size from 1x1; the family's is
        ``recipe.crop``. Normalisation is the caller's (``recipe``).
        """
        head = self._head()
        if _hooked(self.features, head, self.avgpool):
            return self.forward_head(self.features(x))
        return self.classifier(head.forward_pooled(self._forward_blocks(x)))

    def _forward_blocks(self, x: Tensor) -> Tensor:
        """Stem and stages. The stem joins the first block, unless a hook wants to see it."""
        stem = cast(ConvNormAct, self.features[0])
        first_stage = cast(nn.Sequential, self.features[1])
        first = cast(MBConv, first_stage[0])
        x = cast_input(x, stem.conv.weight, stem.conv.in_channels, "input image")
        if _hooked(stem, first_stage, first) or not first.can_take_stem():
            x = first_stage(stem(x))
        else:
            x = first.forward_from_image(stem, x)
            for block in list(first_stage)[1:]:
                x = block(x)
        for stage in list(self.features)[2:-1]:
            x = stage(x)
        return x


def _initialize_classifier(linear: nn.Linear) -> None:
    bound = 1.0 / math.sqrt(linear.out_features)
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)


def _hooked(*modules: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def create_model(
    name: str, weights: Weights = None, progress: bool = True, **kwargs: Any
) -> EfficientNet:
    """A model by name.

    Args:
        name: one of :func:`list_models`.
        weights: None, "DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2", a torchvision weights enum, a
            file (.pth, .safetensors) or a state_dict: of torchvision, timm or lukemelas, recognised
            by its keys. Padding, BN eps, ``num_classes`` and ``in_channels`` follow the weights
            unless given.
        progress: show a bar while downloading.
        **kwargs: num_classes=1000, in_channels=3, dropout and norm_eps, norm_momentum (the
            variant's), stochastic_depth_prob=0.2, padding="symmetric" or "same", backend="auto".

    Raises:
        ValueError: unknown model, weights or option value; the message lists the known ones.
        effnet_fast.checkpoints.CheckpointError: the weights do not fit.
    """
    v = architecture.variant(name)
    known = {
        "num_classes", "in_channels", "dropout", "stochastic_depth_prob", "norm_eps",
        "norm_momentum", "padding", "backend",
    }  # fmt: skip
    unknown = sorted(kwargs.keys() - known)
    if unknown:
        raise TypeError(
            f"{name}() got unknown arguments {', '.join(unknown)}; known: "
            f"weights, progress, {', '.join(sorted(known))}"
        )
    eps, momentum = v.batch_norm
    checkpoint = recipe = None
    if weights is not None:
        checkpoint, recipe = weight_store.resolve(
            name, weights, stage_depths=[s.layers for s in architecture.stages(v)],
            default_eps=eps, default_momentum=momentum, padding=kwargs.get("padding"),
            norm_eps=kwargs.get("norm_eps"), progress=progress,
        )  # fmt: skip
        kwargs = {**checkpoint.model_options(), **kwargs}
    model = from_variant(v, **kwargs)
    if checkpoint is not None:
        weight_store.load_into(model, checkpoint)
    if recipe is not None:
        model.recipe = recipe
    return model


def from_variant(v: Variant, **kwargs: Any) -> EfficientNet:
    """A randomly initialised model of any width, depth and resolution.

    ``kwargs`` are :func:`create_model`'s, in range or a ValueError. Its ``recipe`` is the family's
    for images of ``v.resolution``.
    """
    eps, momentum = v.batch_norm
    options = {"norm_eps": eps, "norm_momentum": momentum, "dropout": v.dropout, **kwargs}
    model = EfficientNet(
        architecture.stages(v),
        stem_channels=architecture.stem_channels(v),
        head_channels=architecture.head_channels(v),
        activation="relu6" if v.lite else "silu",
        squeeze_excite=not v.lite,
        **options,
    )
    model.recipe = weight_store.default_recipe(v.lite, v.resolution)
    return model


def list_models() -> list[str]:
    """The names that :func:`create_model` knows."""
    return list(architecture.VARIANTS)


def _factory(name: str) -> Callable[..., EfficientNet]:
    def build(weights: Weights = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
        return create_model(name, weights, progress, **kwargs)

    v = architecture.VARIANTS[name]
    build.__name__ = build.__qualname__ = name
    build.__doc__ = (
        f"{name}: width {v.width}, depth {v.depth}, resolution {v.resolution}, "
        f"dropout {v.dropout}. Arguments as :func:`create_model`."
    )
    return build


efficientnet_b0 = _factory("efficientnet_b0")
efficientnet_b1 = _factory("efficientnet_b1")
efficientnet_b2 = _factory("efficientnet_b2")
efficientnet_b3 = _factory("efficientnet_b3")
efficientnet_b4 = _factory("efficientnet_b4")
efficientnet_b5 = _factory("efficientnet_b5")
efficientnet_b6 = _factory("efficientnet_b6")
efficientnet_b7 = _factory("efficientnet_b7")
efficientnet_lite0 = _factory("efficientnet_lite0")
efficientnet_lite1 = _factory("efficientnet_lite1")
efficientnet_lite2 = _factory("efficientnet_lite2")
efficientnet_lite3 = _factory("efficientnet_lite3")
efficientnet_lite4 = _factory("efficientnet_lite4")
