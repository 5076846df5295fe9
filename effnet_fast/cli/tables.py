"""Print the paper's tables beside what this library's and other networks count to."""

from __future__ import annotations

import argparse
import json
import sys

from tqdm import tqdm

from effnet_fast.cli.common import CommandError, emit
from effnet_fast.tables import TABLES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``effnet-fast tables``."""
    parser.add_argument(
        "names", nargs="*", metavar="TABLE",
        help=f"of {', '.join(TABLES)}: scaling is how far B0 to B7 are from the formula; "
        "default: all",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="tables for a Markdown file")
    form.add_argument("--json", action="store_true", help="one JSON object, unrounded")


def run(args: argparse.Namespace) -> int:
    """Count and print."""
    unknown = [name for name in args.names if name not in TABLES]
    if unknown:
        raise CommandError(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    names = args.names or list(TABLES)
    hidden = len(names) < 2 or not sys.stderr.isatty()
    found = {}
    for name in tqdm(names, unit="table", disable=hidden, file=sys.stderr):
        found[name] = TABLES[name]()
    if args.json:
        emit(json.dumps({name: table.facts() for name, table in found.items()}))
    else:
        emit("\n\n".join(t.markdown() if args.markdown else t.text() for t in found.values()))
    return 0
