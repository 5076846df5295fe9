"""The command line: ``effnet-fast classify | cam | info | tables | bench | tune``.

Exit statuses: 0 all done; 1 something was skipped or failed a check, and the rest was done; 2 the
command could not do what was asked; 130 interrupted; 141 whoever read the output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from effnet_fast.cli import bench, cam, classify, info, tables, tune
from effnet_fast.cli.common import CommandError, complain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit status."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help, or what is wrong
        return int(stop.code or 0)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except CommandError as error:
        complain(f"effnet-fast {args.command}: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is left in the buffer has no reader; at exit Python would try again and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effnet-fast", description="EfficientNet on fused kernels."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {
        "classify": classify, "cam": cam, "info": info, "tables": tables, "bench": bench,
        "tune": tune,
    }  # fmt: skip
    for name, module in modules.items():
        text = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
