"""README's performance section: written from the records under bench/results, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.analysis import Contest, Line, ceilings, contests, duel, machine, ms, ours
from bench.records import slug
from bench.tables import op_table, rates, table, three

README = Path(__file__).resolve().parents[1] / "README.md"
PICTURES = Path(__file__).with_name("results") / "pictures"
#: Of :mod:`bench.pictures`, where they are committed.
PICTURED = ("resnet152-b1", "resnet50-b0", "inference-batch-1-speedup")
#: Slow and fast: the paper's latency table, and who EfficientNet-B0 is compared with.
TABLE_4, RIVALS = ("resnet152", "efficientnet_b1"), ("resnet50", "efficientnet_b0")
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"


def section(lines: list[Line]) -> str:
    """The text between the markers."""
    parts = [
        "_Written by `python -m bench.report --readme` from the records named; every result was "
        "checked before it was timed, the providers of a column in turn. Bold: the fastest._"
    ]
    machines = sorted({machine(line) for line in lines})
    pictured = dict(machines)  # of a device's numbers of threads the greatest
    for whose in machines:
        own = [line for line in lines if machine(line) == whose]
        parts += _machine(whose, contests(own), own, pictured[whose[0]] == whose[1])
    return "\n\n".join(parts)


def _machine(
    whose: tuple[str, int], found: list[Contest], lines: list[Line], pictured: bool
) -> Iterable[str]:
    device, threads = whose
    on_gpu = lines[0]["environment"]["cuda"] is not None
    count = f", {threads} thread{'s' if threads > 1 else ''}"
    yield f"**{device}**" + ("" if on_gpu else count)
    files = {line["file"] for contest in found for line in contest}
    modes: dict[tuple[str, bool, str], list[Contest]] = {}
    for contest in found:
        first = contest[0]
        key = (first["mode"], first["shape"][0] > 1, first["dtype"])
        modes.setdefault(key, []).append(contest)
    for (mode, several, _), own in sorted(modes.items()):
        if mode != "latency":
            yield _models(mode, not several, sorted(own, key=_case))
    one_thread = any(contest[0]["mode"] == "latency" for contest in found) and not on_gpu
    if (on_gpu or one_thread) and (pair := duel(found, *TABLE_4, several=False)):
        where = "one image at a time" + (" on one thread" if one_thread else "")
        yield _versus(f"The paper's Table 4 (there 5.7x): {where}, ms:", pair, *TABLE_4, True)
    if pair := duel(found, *RIVALS, several=True):
        yield _versus("Many images at a time, images/s:", pair, *RIVALS, False)
    ops = [x for x in lines if x["op"] != "model" and x["mode"] != "ceiling"]
    if ops:
        newest = max(ops, key=lambda line: str(line["environment"]["utc"]))["file"]
        files.add(newest)
        yield op_table([x for x in ops if x["file"] == newest], ceilings(lines, newest))
    for name in PICTURED if pictured else ():
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
    text = three(value)
    fastest = min((other for other in contest if other["ms"]), key=ms)
    return f"**{text}**" if line is fastest else text


def _versus(head: str, contest: Contest, slow: str, fast: str, single: bool) -> str:
    """Two models side by side, and how many times as fast the second is."""
    rows = []
    for label in dict.fromkeys(line["backend"] for line in contest):
        own = [line for line in contest if line["backend"] == label and line["ms"]]
        each = {line["case"]: ms(line) / line["shape"][0] for line in own}
        shown = [
            three(each[x] if single else 1e3 / each[x]) if x in each else "" for x in (slow, fast)
        ]
        ratio = f"{each[slow] / each[fast]:.1f}x" if {slow, fast} <= each.keys() else ""
        name = f"ours, {label}" if any(map(ours, own)) else label
        rows.append([name, *shown, ratio])
    short = fast.removeprefix("efficientnet_")
    return f"{head}\n\n{table(rows, ['', slow, short, f'{short} is faster by'])}"


def write(lines: list[Line], readme: Path) -> None:
    """Put the section between the markers of ``readme``."""
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise ValueError(f"{readme} lacks the markers {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n{section(lines)}\n{END}{after}")
