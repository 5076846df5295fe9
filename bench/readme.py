"""README's performance section: written from the records under bench/results, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.analysis import Contest, Line, best_of_ours, ceilings, contests, machine, ms, ours
from bench.records import slug
from bench.tables import op_table, rates, table

README = Path(__file__).resolve().parents[1] / "README.md"
PICTURES = Path(__file__).with_name("results") / "pictures"
#: Of :mod:`bench.pictures`, where they are committed.
PICTURED = ("latency", "inference-batch-1-speedup")
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"


def section(lines: list[Line]) -> str:
    """The text between the markers."""
    parts = [
        "_Written by `python -m bench.report --readme` from the records named; every result was "
        "checked before it was timed, the providers of a column in turn. Bold: the fastest._"
    ]
    for whose in sorted({machine(line) for line in lines}):
        own = [line for line in lines if machine(line) == whose]
        parts += _machine(whose, contests(own), own)
    return "\n\n".join(parts)


def _machine(whose: tuple[str, int], found: list[Contest], lines: list[Line]) -> Iterable[str]:
    device, threads = whose
    on_gpu = lines[0]["environment"]["cuda"] is not None
    yield f"**{device}**" + ("" if on_gpu else f", {threads} threads")
    files = {line["file"] for contest in found for line in contest}
    modes: dict[tuple[str, bool], list[Contest]] = {}
    for contest in found:
        first = contest[0]
        modes.setdefault((first["mode"], first["shape"][0] > 1), []).append(contest)
    for (mode, several), own in sorted(modes.items()):
        if mode == "latency":
            yield _latency(own)
        else:
            yield _models(mode, not several, sorted(own, key=_case))
    ops = [x for x in lines if x["op"] != "model" and x["mode"] != "ceiling"]
    if ops:
        newest = max(ops, key=lambda line: str(line["environment"]["utc"]))["file"]
        files.add(newest)
        yield op_table([x for x in ops if x["file"] == newest], ceilings(lines, newest))
    for name in PICTURED:
        if (picture := PICTURES / f"{slug(device)}-{name}.png").is_file():
            yield f"![{device}, {name}]({picture.relative_to(README.parent)})"
    for file in sorted(files):
        yield f"`bench/results/{file}`: {rates(ceilings(lines, file))}."


def _case(contest: Contest) -> tuple[int, str]:
    """EfficientNets first."""
    name = contest[0]["case"]
    return (not name.startswith("efficientnet"), name)


def _models(mode: str, single: bool, found: list[Contest]) -> str:
    """One table: a row for each provider, a column for each model."""
    unit = "ms" if single else "images/s"
    n = sorted({contest[0]["shape"][0] for contest in found})
    batch = f"batch {n[0]}" if len(n) == 1 else f"batch {n[0]} to {n[-1]}"
    labels = {line["backend"]: line for contest in found for line in contest}
    rows = []
    for label, sample in labels.items():
        cells = [_cell(contest, label, single) for contest in found]
        rows.append([f"ours, {label}" if ours(sample) else label, *cells])
    columns = [contest[0]["case"].removeprefix("efficientnet_") for contest in found]
    kind = found[0][0]["dtype"]
    return f"{mode}, {batch}, {kind}, {unit}:\n\n{table(rows, ['', *columns])}"


def _cell(contest: Contest, label: str, single: bool) -> str:
    line = next((line for line in contest if line["backend"] == label), None)
    if line is None:
        return ""
    if line["ms"] is None:
        return "-"
    value = ms(line) if single else 1e3 * line["shape"][0] / ms(line)
    text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    fastest = min((other for other in contest if other["ms"]), key=ms)
    return f"**{text}**" if line is fastest else text


def _latency(found: list[Contest]) -> str:
    """The paper's Table 4."""
    rows = []
    for contest in found:
        labels = dict.fromkeys(line["backend"] for line in contest)
        names = list(dict.fromkeys(line["case"] for line in contest))
        best = best_of_ours(contest)
        for label in labels:
            own = {line["case"]: line for line in contest if line["backend"] == label}
            timed = {name: ms(line) for name, line in own.items() if line["ms"]}
            ratio = timed.get("resnet152", 0.0) / timed.get("efficientnet_b1", float("inf"))
            rows.append([
                f"ours, {label}" if best and label == best["backend"] else label,
                *(f"{timed[name]:.3g}" if name in timed else "" for name in names),
                f"{ratio:.1f}x" if ratio else "",
            ])  # fmt: skip
    columns = ["", *names, "ResNet-152 / B1"]
    return f"The paper's Table 4 (there 5.7x), batch 1, ms:\n\n{table(rows, columns)}"


def write(lines: list[Line], readme: Path = README) -> None:
    """Put the section between the markers of ``readme``."""
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"{readme} lacks the markers {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n{section(lines)}\n{END}{after}")
