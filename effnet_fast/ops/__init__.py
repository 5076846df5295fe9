"""Public differentiable ops; the vocabulary that they are made of is in :mod:`.library`."""

from effnet_fast.ops.conv_bn_act import depthwise_conv_bn_act
from effnet_fast.ops.squeeze_excite import squeeze_excite

__all__ = ["depthwise_conv_bn_act", "squeeze_excite"]
