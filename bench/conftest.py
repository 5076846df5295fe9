"""Options, markers and the record of ``pytest bench/ --benchmark-only``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from bench.analysis import load
from bench.arena import Arena
from bench.records import Writer
from bench.tables import tables
from bench.throughput import DTYPES, ceilings
from effnet_fast.cli.common import cpu_threads

MARKERS = {
    "inference": "forward passes of whole models",
    "training": "training steps of whole models",
    "latency": "the paper's Table 4",
    "ops": "single fused ops",
    "full": "only by --full, or where -m names it",
}
WRITER = pytest.StashKey[Writer]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare --full and --out."""
    group = parser.getgroup("effnet_fast")
    group.addoption(
        "--full", action="store_true", help="all models and training, not only B0, B1, B4 inference"
    )
    group.addoption(
        "--out", default=".benchmarks", metavar="FOLDER",
        help="where the run's JSON-lines record goes (default: %(default)s)",
    )  # fmt: skip
    group.addoption(
        "--dtype", choices=DTYPES,
        help="what whole models compute in (default: bfloat16 on a GPU, float32 on a CPU)",
    )  # fmt: skip
    group.addoption(
        "--threads", type=_positive, metavar="N",
        help="CPU threads of every provider (default: torch's); the latency table has one",
    )  # fmt: skip


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads, 1 or more")
    return int(text)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    for name, what in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {what}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only --full runs."""
    if config.getoption("--full") or "full" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, if any."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    """Of whole models."""
    default = "bfloat16" if device.type == "cuda" else "float32"
    return DTYPES[request.config.getoption("--dtype") or default]


@pytest.fixture(scope="session", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Before anything is built: runtimes take as many as torch has then."""
    with cpu_threads(request.config.getoption("--threads")):
        yield


@pytest.fixture(scope="session")
def arena(
    request: pytest.FixtureRequest, device: torch.device, dtype: torch.dtype
) -> Iterator[Arena]:
    """All that is measured in this run goes into one record, behind the two ceilings."""
    stash = request.config.stash
    capture = request.config.pluginmanager.getplugin("capturemanager")
    shown = nullcontext if capture is None else capture.global_and_fixture_disabled

    def writer() -> Writer:
        if WRITER not in stash:
            stash[WRITER] = Writer(request.config.getoption("--out"), device)
            ceilings(device, dtype, stash[WRITER])
        return stash[WRITER]

    yield Arena(request.session.items, writer, shown)
    if WRITER in stash:
        stash[WRITER].close()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the record's tables, and where it is."""
    if WRITER not in config.stash:
        return
    path = config.stash[WRITER].path
    terminalreporter.section("effnet_fast")
    terminalreporter.write_line(tables(load([path])))
    terminalreporter.write_line(f"written: {path}; pictures: python -m bench.report {path}")
