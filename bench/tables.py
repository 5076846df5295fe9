"""Records as Markdown: what a run measured, and what changed between two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.analysis import (
    Contest,
    Line,
    best_of_ours,
    beyond_noise,
    ceilings,
    contests,
    identity,
    ms,
    ours,
    roof,
)

COLUMNS = (
    "provider", "ms", "20th-80th", "images/s", "ours is faster by", "% of roof", "peak MB",
    "moved MB", "saved MB", "launches",
)  # fmt: skip


def table(rows: Iterable[Sequence[str]], columns: Sequence[str]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---" + "|--:" * (len(columns) - 1) + "|", *lines[1:]])


def tables(lines: list[Line]) -> str:
    """All that the records hold, run by run: environment, ceilings, models, ops."""
    parts = []
    for file in dict.fromkeys(line["file"] for line in lines):
        own = [line for line in lines if line["file"] == file]
        limits = ceilings(own, file)
        parts += [headline(own, limits)]
        parts += [contest_table(contest, limits) for contest in contests(own)]
        if op_lines := [
            line for line in own if line["op"] != "model" and line["mode"] != "ceiling"
        ]:
            parts.append(op_table(op_lines, limits))
    return "\n\n".join(parts)


def headline(lines: list[Line], limits: dict[str, float]) -> str:
    """Where and when: a run's environment and its ceilings."""
    e = lines[0]["environment"]
    commit = (e["commit"][:7] or "no commit") + (", with changes" if e["dirty"] else "")
    return (
        f"## {e['device']}, {e['threads']} threads, torch {e['torch']}, {commit}, {e['utc']}\n\n"
        f"{lines[0]['file']}: {rates(limits)}"
    )


def rates(limits: dict[str, float]) -> str:
    """The ceilings measured in a run."""
    found = []
    if "copy" in limits:
        found.append(f"copy {limits['copy'] / 1e9:.1f} GB/s")
    if "matmul" in limits:
        found.append(f"matrix product {limits['matmul'] / 1e9:.0f} Gflop/s")
    if "fma" in limits:
        found.append(f"multiply-adds {limits['fma'] / 1e9:.0f} Gflop/s")
    return ", ".join(found) or "no ceilings measured"


def title(line: Line) -> str:
    """What a contest was about."""
    if line["mode"] == "latency":
        return f"The paper's Table 4: latency, batch 1, one CPU thread or the GPU, {line['dtype']}"
    n, _, height, width = line["shape"]
    return f"{line['case']}, {line['mode']}, batch {n}, {height}x{width}, {line['dtype']}"


def contest_table(contest: Contest, limits: dict[str, float]) -> str:
    """One contest, a row for each provider."""
    best = best_of_ours(contest)
    rows = []
    for line in contest:
        several = line["mode"] == "latency"
        name = f"{line['case']}, {line['backend']}" if several else line["backend"]
        if line["ms"] is None:
            rows.append([name, f"not timed: {line['gate']}", *[""] * (len(COLUMNS) - 2)])
            continue
        bound = roof(line, limits)
        rows.append([
            f"**{name}**" if ours(line) else name,
            three(ms(line)), f"{three(line['ms']['p20'])}-{three(line['ms']['p80'])}",
            f"{1e3 * line['shape'][0] / ms(line):.1f}", speedup(line, best),
            "" if bound is None else f"{100 * bound / ms(line):.0f}",
            *(mb(line[field]) for field in ("peak_memory", "bytes", "saved")),
            "" if line["launches"] is None else str(line["launches"]),
        ])  # fmt: skip
    return f"### {title(contest[0])}\n\n{table(rows, COLUMNS)}"


def three(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def mb(value: int | None) -> str:
    """Bytes as MB; empty where unknown."""
    return "" if value is None else f"{value / 1e6:.0f}" if value >= 1e7 else f"{value / 1e6:.1f}"


def speedup(line: Line, best: Line | None) -> str:
    """How many times as long ``line`` takes as the best of ours."""
    if best is None or best is line:
        return ""
    return f"{ms(line) / ms(best):.2f}x" + ("" if beyond_noise(line, best) else " ~")


def op_table(lines: list[Line], limits: dict[str, float]) -> str:
    """Ops: of each mode and backend the time of all layers, and the range of its % of roof."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["op"], line["mode"], line["backend"]), []).append(line)
    rows = []
    for (op, mode, backend), own in groups.items():
        good = [line for line in own if line["ms"] is not None]
        shares = sorted(100 * (roof(line, limits) or 0.0) / ms(line) for line in good)
        wrong = "" if len(good) == len(own) else f"{len(own) - len(good)} not timed"
        rows.append([
            f"{op}, {mode}", backend, str(len(own)), three(sum(map(ms, good))),
            f"{shares[0]:.0f}-{shares[-1]:.0f}" if shares else "", wrong,
        ])  # fmt: skip
    columns = ("op", "backend", "layers", "ms, all layers", "% of roof", "")
    head = f"Single ops, batch {lines[0]['shape'][0]}, {lines[0]['dtype']}"
    return f"### {head}\n\n{table(rows, columns)}"


def comparison(before: list[Line], after: list[Line]) -> str:
    """What changed between two runs, and whether it is beyond the noise."""
    a, b = before[0]["environment"], after[0]["environment"]
    notes = [
        f"- {field} differs: {a[field]} against {b[field]}"
        for field in ("device", "threads", "torch", "cuda", "system")
        if a[field] != b[field]
    ]
    was = {identity(line): line for line in before}
    rows = []
    for line in after:
        old = was.get(identity(line))
        if old is None:
            continue
        what = [f"{line['case']}, {line['op']} {line['mode']}", line["backend"]]
        what.append("x".join(map(str, line["shape"])))
        if old["ms"] is None or line["ms"] is None:
            change = f"gate: {old['gate']} -> {line['gate']}"
            rows.append([*what, "", "", change if old["gate"] != line["gate"] else "still red"])
            continue
        ratio = ms(line) / ms(old)
        verdict = "within the noise"
        if beyond_noise(line, old):
            verdict = f"**{'slower' if ratio > 1 else 'faster'}, {ratio:.2f}x the time**"
        rows.append([*what, three(ms(old)), three(ms(line)), verdict])
    known = {identity(line) for line in after}
    left = len(after) - len(rows), sum(key not in known for key in was)
    notes.append(f"- measured in one of them alone: {left[1]} before, {left[0]} after")
    head = f"{a['utc']} ({a['commit'][:7]}) against {b['utc']} ({b['commit'][:7]})"
    columns = ("what", "provider", "shape", "ms before", "after", "difference")
    return "\n".join([f"## {head}", "", *notes, "", table(rows, columns)])
