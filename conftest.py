"""What the tests of all packages share: the pool of ranks, and even shares of the tests."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mtron_parallel import WorkerPool


@pytest.fixture(scope="session")
def workers() -> "Iterator[WorkerPool]":
    """A pool of gloo processes: `workers.run(function, world_size, ...)` gives results by rank."""
    from mtron_parallel import WorkerPool  # brings torch, which not every package's tests need

    # The optimizers of torch import dynamo, which takes a second in every process.
    with WorkerPool(preload=["pytest", "torch._dynamo"]) as pool:
        yield pool


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--share K/N`."""
    parser.addoption(
        "--share",
        metavar="K/N",
        help="of the selected tests run only the K-th of N even shares (K counts from 1)",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep every N-th test, in the order of their names; after `-m` has selected."""
    share = config.getoption("--share")
    if share is None:
        return
    number, count = (int(part) for part in share.split("/"))
    kept = {id(item) for item in sorted(items, key=lambda item: item.nodeid)[number - 1 :: count]}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]
