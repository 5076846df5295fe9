"""Records as pictures, PNG and SVG, by matplotlib: ``python -m bench.report --pictures FOLDER``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bench.analysis import (
    Contest,
    Line,
    arithmetic,
    best_of_ours,
    ceilings,
    contests,
    duel,
    least_bytes,
    machine,
    ms,
    ours,
    roof,
)
from bench.records import slug

#: Of what is ours, where it stands alone.
OURS = "#c0392b"
#: (slow, fast, on a large batch): the paper's Table 4, and who B0 is compared with.
DUELS = (("resnet152", "efficientnet_b1", False), ("resnet50", "efficientnet_b0", True))
STYLE = {
    "figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False,
    "font.size": 9, "svg.hashsalt": "effnet_fast",
}  # fmt: skip


def draw(
    lines: list[Line], folder: Path, suffixes: Sequence[str] = (".png", ".svg"),
    only: tuple[str, ...] = ("",),
) -> Iterator[Path]:  # fmt: skip
    """Every picture whose name ends in one of ``only``, into ``folder``; yields the files."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, make in _figures(lines):
            if not name.endswith(only):
                continue
            figure = make()
            for suffix in suffixes:
                file = folder / (name + suffix)
                metadata = {"Date": None} if suffix == ".svg" else None
                figure.savefig(file, dpi=130, metadata=metadata)
                yield file


def _figures(lines: list[Line]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The names of all that the records have something for, by machine, and how to draw it."""
    for whose in sorted({machine(line) for line in lines}):
        device, prefix = whose[0], slug(whose[0])
        own = [line for line in lines if machine(line) == whose]
        found = [[line for line in contest if line["ms"]] for contest in contests(own)]
        found = sorted(filter(None, found), key=lambda contest: str(contest[0]["case"]))
        modes: dict[str, list[Contest]] = {}
        for contest in found:
            n, mode = contest[0]["shape"][0], contest[0]["mode"].replace(" ", "-")
            if mode != "latency":
                kind = f"{mode}-{'batch-1' if n == 1 else 'large-batch'}"
                modes.setdefault(kind, []).append(contest)
        for kind, group in sorted(modes.items()):
            yield f"{prefix}-{kind}-throughput", partial(_throughput, group, device, kind)
            if any(best_of_ours(contest) for contest in group):
                yield f"{prefix}-{kind}-speedup", partial(_speedup, group, device, kind)
        for slow, fast, several in DUELS:
            if pair := duel(found, slow, fast, several):
                name = f"{prefix}-{slow}-{fast.removeprefix('efficientnet_')}"
                yield name, partial(_versus, pair, several, device)
        if found:
            yield f"{prefix}-roofline", partial(_roofline, found, own, device)
        ops = [line for line in own if line["op"] != "model" and line["mode"] != "ceiling"]
        for mode in sorted({line["mode"] for line in ops if line["ms"]}):
            chosen = [
                line | {"roof": roof(line, ceilings(own, line["file"]))}
                for line in ops
                if line["mode"] == mode and line["ms"]
            ]
            yield f"{prefix}-ops-{mode}", partial(_layers, chosen, device, mode)


def _colours(labels: Sequence[str], mine: set[str]) -> dict[str, Any]:
    """Ours in reds, everyone else in blues to greens."""
    found: dict[str, Any] = {}
    for name, ends, some in (
        ("viridis", (0.1, 0.85), [label for label in labels if label not in mine]),
        ("Reds", (0.85, 0.45), [label for label in labels if label in mine]),
    ):
        found |= zip(some, mpl.colormaps[name](np.linspace(*ends, len(some))), strict=True)
    return found


def _labels(group: Sequence[Contest]) -> tuple[list[str], set[str]]:
    """The providers of all contests in their order, and which are ours."""
    every = [line for contest in group for line in contest]
    return list(dict.fromkeys(line["backend"] for line in every)), {
        line["backend"] for line in every if ours(line)
    }


def _short(contest: Contest) -> str:
    return f"{contest[0]['case'].removeprefix('efficientnet_')}\nbatch {contest[0]['shape'][0]}"


def _bars(
    axes: Any, group: Sequence[Contest], values: Sequence[dict[str, float]], skip: set[str]
) -> None:
    """Bars side by side, a cluster for each contest."""
    labels, mine = _labels(group)
    colours = _colours(labels, mine)
    shown = [label for label in labels if label not in skip]
    width = 0.85 / max(1, len(shown))
    for i, label in enumerate(shown):
        places = [j for j, v in enumerate(values) if label in v]
        heights = [values[j][label] for j in places]
        at = [j + (i - (len(shown) - 1) / 2) * width for j in places]
        axes.bar(at, heights, width, color=colours[label],
                 label=f"ours, {label}" if label in mine else label)  # fmt: skip
    axes.set_xticks(range(len(group)), [_short(contest) for contest in group])
    axes.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _figure(title: str, width: float = 8.0) -> tuple[Any, Any]:
    figure = Figure(figsize=(width, 4.4))
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots()


def _throughput(group: Sequence[Contest], device: str, kind: str) -> Any:
    """Images a second by model."""
    figure, axes = _figure(f"Throughput, {kind}, {group[0][0]['dtype']}, {device}")
    values = [{x["backend"]: 1e3 * x["shape"][0] / ms(x) for x in contest} for contest in group]
    _bars(axes, group, values, set())
    axes.set_yscale("log")
    axes.set_ylabel("images/s (log)")
    axes.grid(axis="y", which="both", alpha=0.25)
    return figure


def _speedup(group: Sequence[Contest], device: str, kind: str) -> Any:
    """How many times as long everyone else takes as the best of ours."""
    figure, axes = _figure(f"Time of others over the best of ours, {kind}, {device}")
    values = []
    for contest in group:
        best = best_of_ours(contest)
        values.append({x["backend"]: ms(x) / ms(best) for x in contest} if best else {})
    _bars(axes, group, values, _labels(group)[1])
    axes.axhline(1, color=OURS, linewidth=1.2)
    axes.set_ylabel("times as long as ours; below 1 ours is slower")
    return figure


def _roofline(found: Sequence[Contest], lines: list[Line], device: str) -> Any:
    """Rate against arithmetic intensity, under the two ceilings of the runs."""
    figure, axes = _figure(f"Roofline, {device}")
    every = [line for contest in found for line in contest if line["mode"] != "latency"]
    labels, mine = _labels(found)
    colours = _colours(labels, mine)
    intensities: list[float] = []
    for label in labels:
        points = []
        for line in every:
            moved = least_bytes(line)
            if line["backend"] == label and moved and line["flops"]:
                points.append((line["flops"] / moved, line["flops"] / ms(line) / 1e6))
        if points:
            x, y = zip(*points, strict=True)
            intensities += x
            axes.scatter(x, y, s=26, color=colours[label],
                         label=f"ours, {label}" if label in mine else label)  # fmt: skip
    for file in {line["file"] for line in every}:
        limits = ceilings(lines, file)
        top = arithmetic(limits)
        if top is not None and "copy" in limits and intensities:
            across = np.geomspace(min(intensities) / 8, max(intensities) * 8, 200)
            up = np.minimum(across * limits["copy"], top) / 1e9
            axes.plot(across, up, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("flop per byte that this library's schedule moves")
    axes.set_ylabel("Gflop/s; the line: what copying and arithmetic alone reached")
    axes.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def _versus(contest: Contest, several: bool, device: str) -> Any:
    """Is EfficientNet efficient now? Both models by provider."""
    figure, axes = _figure(f"Is EfficientNet efficient now? {device}", 7.0)
    labels, mine = _labels([contest])
    for i, name in enumerate(dict.fromkeys(line["case"] for line in contest)):
        own = [line for line in contest if line["case"] == name]
        values = [1e3 * x["shape"][0] / ms(x) if several else ms(x) for x in own]
        at = [labels.index(line["backend"]) + (0.5 - i) * 0.4 for line in own]
        bars = axes.bar(at, values, 0.4, color=(OURS, "#7f8c8d")[i % 2], label=name)
        axes.bar_label(bars, fmt="%.3g", fontsize=7)
    axes.set_xticks(range(len(labels)), [f"ours,\n{x}" if x in mine else x for x in labels],
                    rotation=20)  # fmt: skip
    one_thread = contest[0]["mode"] == "latency" and not contest[0]["environment"]["cuda"]
    axes.set_ylabel("images/s" if several else "ms" + (", one CPU thread" * one_thread))
    axes.legend(frameon=False)
    return figure


def _layers(lines: list[Line], device: str, mode: str) -> Any:
    """Time of the distinct layers by the size of their maps, stacked by what they do; a panel for
    each backend. The tick is what their bytes take at the copy's rate."""
    backends = list(dict.fromkeys(line["backend"] for line in lines))
    sizes = list(dict.fromkeys(line["case"].split()[-1] for line in lines))
    kinds = list(dict.fromkeys(map(_kind, lines)))
    colours = dict(zip(kinds, mpl.colormaps["tab10"](range(10)), strict=False))
    figure = Figure(figsize=(8, 1.4 + 1.6 * len(backends)))
    panels = figure.subplots(len(backends), 1, sharex=True, sharey=True, squeeze=False)
    n = lines[0]["shape"][0]
    figure.suptitle(f"Distinct layers by the side of their maps, {mode}, batch {n}, {device}",
                    fontsize=10)  # fmt: skip
    for backend, axes in zip(backends, panels[:, 0], strict=True):
        tops, bounds = np.zeros(len(sizes)), np.zeros(len(sizes))
        for kind in kinds:
            heights = np.zeros(len(sizes))
            for line in lines:
                if (line["backend"], _kind(line)) == (backend, kind):
                    at = sizes.index(line["case"].split()[-1])
                    heights[at] += ms(line)
                    bounds[at] += line["roof"] or 0.0
            axes.bar(range(len(sizes)), heights, bottom=tops, color=colours[kind], label=kind)
            tops += heights
        axes.plot(range(len(sizes)), bounds, "_", color="black", markersize=22)
        axes.set_ylabel(f"{backend}\nms")
    panels[0, 0].legend(fontsize=7, ncols=4, frameon=False)
    panels[-1, 0].set_xticks(range(len(sizes)), sizes)
    return figure


def _kind(line: Line) -> str:
    """expand, project or depthwise."""
    return str(line["case"].split()[0] if line["op"].startswith("pointwise") else "depthwise")
