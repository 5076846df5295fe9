"""Models of which two correct answers differ by their own rounding, and by little else."""

import torch

import effnet_fast as ef
from effnet_fast.modules import MBConv
from effnet_fast.stock import calibrate


def calibrated(name: str, size: tuple[int, int], **options: object) -> ef.EfficientNet:
    """Of statistics of 32 images, and residual branches of a quarter of their usual weight.

    A random network of full branches is chaotic: rounding errors grow a thousandfold from the stem
    to the logits of B6, and two right answers' largest errors were 0.2 to 7 of each other.
    """
    torch.manual_seed(0)
    model = ef.create_model(name, backend="reference", **options)
    for block in model.modules():
        if isinstance(block, MBConv) and block.use_res_connect:
            torch.nn.init.constant_(block.named_layers()["project"].bn.weight, 0.25)
    calibrate(model, torch.randn(32, model.in_channels, *size))
    return model
