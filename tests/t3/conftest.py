"""Compilation for GPUs that are not there, in caches of its own."""

from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: minutes more, only by -m thorough")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing compiled earlier is reused, and no table that the user tuned is read."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("caches")
        patch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
        patch.setenv("EFFNET_FAST_CACHE", str(folder / "tuning"))
        # Of no effect on the code, and of some on the time.
        patch.setenv("TRITON_DISABLE_LINE_INFO", "1")
        yield
