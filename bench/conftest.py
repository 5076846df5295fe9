"""Options, markers and the record of ``pytest bench/ --benchmark-only``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from bench.analysis import load
from bench.arena import Arena
from bench.records import Writer
from bench.tables import tables
from bench.throughput import ceilings

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
def arena(request: pytest.FixtureRequest, device: torch.device) -> Iterator[Arena]:
    """All that is measured in this run goes into one record, behind the two ceilings."""
    stash = request.config.stash
    capture = request.config.pluginmanager.getplugin("capturemanager")
    shown = nullcontext if capture is None else capture.global_and_fixture_disabled

    def writer() -> Writer:
        if WRITER not in stash:
            stash[WRITER] = Writer(request.config.getoption("--out"), device)
            ceilings(device, torch.bfloat16 if device.type == "cuda" else torch.float32,
                     stash[WRITER])  # fmt: skip
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
