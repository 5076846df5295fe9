"""Tables and pictures of records: ``python -m bench.report [FILE ...]``.

    python -m bench.report                           # every record under bench/results, as Markdown
    python -m bench.report FILE --pictures FOLDER    # and pictures in PNG and SVG (matplotlib)
    python -m bench.report --compare A B             # two runs (files) or two commits
    python -m bench.report --readme                  # README's performance section, its pictures

A speed-up is computed here, from two medians of one contest, and marked ~ where the bands from the
20th to the 80th percentile touch. The roof of a time is what the arithmetic or the bytes of this
library's schedule would take at the rates measured in the same run, whichever is longer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from bench import readme
from bench.analysis import Line, load, of_run
from bench.tables import comparison, tables

RESULTS = Path(__file__).with_name("results")


def main(argv: list[str] | None = None) -> int:
    """Print what is asked for; returns 0, or 2 where there is nothing to report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("files", nargs="*", help="default: all of bench/results")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--compare", nargs=2, metavar=("A", "B"), help="files or commits")
    action.add_argument("--readme", action="store_true", help="write README's section")
    parser.add_argument("--pictures", metavar="FOLDER", help="write pictures too")
    arguments = parser.parse_args(argv)
    runs = [run for run in arguments.compare or () if Path(run).is_file()]
    try:
        lines = load(arguments.files or {*sorted(RESULTS.glob("*.jsonl")), *map(Path, runs)})
        if not lines:
            raise ValueError("no records; make one: pytest bench/ --benchmark-only")
        if arguments.compare:
            print(comparison(*(of_run(lines, run) for run in arguments.compare)))
        elif not arguments.readme:
            print(tables(lines))
        drawn = list(_pictures(lines, arguments.pictures, arguments.readme))
        if arguments.readme:
            readme.write(lines, readme.README)  # which shows the pictures that are there
            drawn.append(readme.README)
    except ImportError as error:
        print(f'bench.report: {error}; run: pip install -e ".[bench]"', file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    for path in drawn:
        print(f"written: {path}", file=sys.stderr)
    return 0


def _pictures(lines: list[Line], folder: str | None, for_readme: bool) -> Iterator[Path]:
    """Draw what is asked for; matplotlib is not imported without need."""
    if folder is not None or for_readme:
        from bench import pictures

        if folder is not None:
            yield from pictures.draw(lines, Path(folder))
        if for_readme:
            yield from pictures.draw(lines, readme.PICTURES, (".png",), readme.PICTURED)


if __name__ == "__main__":
    sys.exit(main())
