"""EfficientNet that is actually efficient: a drop-in B0 to B7 and Lite family on fused kernels.

>>> import effnet_fast as ef
>>> model = ef.efficientnet_b0(weights="DEFAULT").eval()
"""

from effnet_fast import ops
from effnet_fast.backends import BackendUnavailableError, backends, use_backend
from effnet_fast.checkpoints import CheckpointError
from effnet_fast.engine import Engine, optimize_for_inference
from effnet_fast.graph_engine import GraphEngine
from effnet_fast.mobilenet import MobileNet, mobilenet_v1, mobilenet_v2
from effnet_fast.models import (
    EfficientNet,
    create_model,
    efficientnet_b0,
    efficientnet_b1,
    efficientnet_b2,
    efficientnet_b3,
    efficientnet_b4,
    efficientnet_b5,
    efficientnet_b6,
    efficientnet_b7,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
    efficientnet_lite3,
    efficientnet_lite4,
    list_models,
)
from effnet_fast.resnet import ResNet, resnet50

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "CheckpointError",
    "EfficientNet",
    "Engine",
    "GraphEngine",
    "MobileNet",
    "ResNet",
    "backends",
    "create_model",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "efficientnet_lite3",
    "efficientnet_lite4",
    "list_models",
    "mobilenet_v1",
    "mobilenet_v2",
    "ops",
    "optimize_for_inference",
    "resnet50",
    "use_backend",
]
