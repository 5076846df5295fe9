"""Show versions, devices, backends and models, or one model in detail."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch

import effnet_fast
from effnet_fast import architecture
from effnet_fast.backends import backends
from effnet_fast.cli.common import CommandError, device_name, emit
from effnet_fast.models import create_model, list_models
from effnet_fast.preprocess import Recipe
from effnet_fast.profile import count
from effnet_fast.weights import WEIGHTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``effnet-fast info``."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="default: a table of all")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the machine and the table, or the detail."""
    if args.model is None:
        facts = {**_machine(), "models": [_figures(name) for name in list_models()]}
        show = _show_all
    else:
        facts, show = _detail(args.model), _show_detail
    if args.json:
        emit(json.dumps(facts))
    else:
        show(facts)
    return 0


def _machine() -> dict[str, Any]:
    devices = {"cpu": f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            devices[f"cuda:{i}"] = device_name(torch.device("cuda", i))
    return {
        "version": effnet_fast.__version__,
        "torch": torch.__version__,
        "devices": devices,
        "backends": backends(),
    }


def _figures(name: str) -> dict[str, Any]:
    """Size and cost of a model at its native resolution."""
    resolution = architecture.variant(name).resolution
    with torch.device("meta"):
        model = create_model(name)
    profile = count(model, resolution)
    return {
        "name": name,
        "resolution": resolution,
        "params": profile.params,
        "macs": profile.macs,
        "activations": profile.activations,
    }


def _detail(name: str) -> dict[str, Any]:
    try:
        v = architecture.variant(name)
    except ValueError as error:
        raise CommandError(str(error)) from error
    eps, momentum = v.batch_norm
    with torch.device("meta"):
        model = create_model(name)
    weights = {
        key: {
            "acc1": entry.acc1,
            "macs": count(model, entry.recipe.crop).macs,
            "recipe": asdict(entry.recipe),
            "url": entry.url,
        }
        for key, entry in WEIGHTS[name].items()
    }
    return {
        **_figures(name),
        "width": v.width,
        "depth": v.depth,
        "blocks": sum(stage.layers for stage in architecture.stages(v)),
        "features": model.num_features,
        "activation": "relu6" if v.lite else "silu",
        "squeeze_excite": not v.lite,
        "dropout": v.dropout,
        "norm_eps": eps,
        "norm_momentum": momentum,
        "recipe": asdict(model.recipe),
        "weights": weights,
        "default_weights": [*weights][-1],
    }


def _cost(figures: dict[str, Any]) -> str:
    return (
        f"{figures['params'] / 1e6:>9.2f} M {figures['macs'] / 1e9:>10.3f} G "
        f"{figures['activations'] / 1e6:>10.2f} M {figures['resolution']:>10}"
    )


def _show_all(facts: dict[str, Any]) -> None:
    emit(f"effnet_fast {facts['version']}, torch {facts['torch']}")
    for device, name in facts["devices"].items():
        emit(f"device   {device:<10} {name}")
    for backend, reason in facts["backends"].items():
        emit(f"backend  {backend:<10} {'available' if reason is None else f'no: {reason}'}")
    heads = f"{'parameters':>11} {'mult-adds':>12} {'conv outputs':>12} {'resolution':>10}"
    emit(f"\n{'model':<19}{heads}")
    for figures in facts["models"]:
        emit(f"{figures['name']:<19}{_cost(figures)}")


def _show_detail(facts: dict[str, Any]) -> None:
    emit(facts["name"])
    rows = {
        "parameters": f"{facts['params']:,}",
        "multiply-adds": f"{facts['macs']:,} at {facts['resolution']}x{facts['resolution']}",
        "conv outputs": f"{facts['activations']:,} elements",
        "width, depth": f"{facts['width']}, {facts['depth']}: {facts['blocks']} blocks, "
        f"{facts['features']} features",
        "activation": facts["activation"],
        "squeeze-excite": "yes" if facts["squeeze_excite"] else "no",
        "dropout": facts["dropout"],
        "batch norm": f"eps {facts['norm_eps']}, momentum {facts['norm_momentum']}",
        "recipe": _recipe(facts["recipe"]),
    }
    for name, value in rows.items():
        emit(f"  {name:<16}{value}")
    for name, entry in facts["weights"].items():
        default = " (DEFAULT)" if name == facts["default_weights"] else ""
        emit(f"  weights         {name}{default}: acc@1 {entry['acc1']:.3f} %, mult-adds "
             f"{entry['macs'] / 1e9:.3f} G")  # fmt: skip
        emit(f"    recipe        {_recipe(entry['recipe'])}")
        emit(f"    url           {entry['url']}")


def _recipe(fields: dict[str, Any]) -> str:
    r = Recipe(**fields)
    return f"resize {r.resize} {r.interpolation}, crop {r.crop}, mean {r.mean}, std {r.std}"
