"""What tests against live clusters share.

Every cluster is three real node processes with real sockets and a directory on a real disk. Nothing here sleeps
for a guessed time: `wait_for` polls a condition up to a deadline and says what it waited for.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from raftstorage.client import ClientStorage
    from raftstorage.ops.local import LocalCluster

T = TypeVar("T")

#: Seconds that any single wait in a test may take on a slow, busy machine.
DEADLINE = 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("raftstorage")
    group.addoption("--seed", type=int, default=None, help="seed of randomized tests (default: random, printed)")
    group.addoption("--thorough", action="store_true", help="with what takes too long for CI")
    group.addoption("--growth-rounds", type=int, default=1, help="1 -> 3 -> 5 -> 3 -> 1 so often (default: once)")
    group.addoption("--blob-megabytes", type=int, default=256, help="size of a large blob (default: 256)")
    group.addoption("--overload-seconds", type=float, default=4.0, help="of ten times the load (default: 4)")
    group.addoption("--cold-restarts", type=int, default=6, help="full-cluster cold restarts (default: 6)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the soak tests out unless `-m` speaks of them, and the thorough ones unless asked for."""
    left_out = set()
    if "soak" not in config.option.markexpr:
        left_out.add("soak")
    if not config.option.thorough:
        left_out.add("thorough")
    marked = [item for item in items if left_out & {mark.name for mark in item.iter_markers()}]
    if marked:
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(1 << 32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"raftstorage: --seed={config.option.seed}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed; pytest shows this line with the report of a failed test."""
    value: int = request.config.option.seed
    print(f"--seed={value}")
    return value


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """A generator of its own for each test, so that the order of the tests does not matter."""
    return random.Random(f"{seed}/{request.node.nodeid}")


def _wait_for(condition: Callable[[], T], what: str, timeout: float = DEADLINE, interval: float = 0.02) -> T:
    """Returns the first true value of `condition()`; AssertionError with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; last value: {value!r}")
        time.sleep(interval)


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., Any]:
    return _wait_for


def _on_memory(directory: Path) -> bool:
    """Whether `directory` lies on a file system without a disk under it (Linux only; else False)."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return False
    best = ("", "")
    for fields in (line.split() for line in mounts):
        if directory.is_relative_to(fields[1]) and len(fields[1]) >= len(best[0]):
            best = (fields[1], fields[2])
    return best[1] in ("tmpfs", "ramfs")


@contextlib.contextmanager
def _disk_directory() -> Iterator[Path]:
    base = Path(tempfile.gettempdir()).resolve()
    if _on_memory(base):
        base = Path("/var/tmp")  # noqa: S108 - an fsync to memory would prove nothing
    directory = Path(tempfile.mkdtemp(prefix="raftstorage-test-", dir=base))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def make_disk_directory() -> Callable[[], contextlib.AbstractContextManager[Path]]:
    """`with make_disk_directory() as directory`: for what outlives a test."""
    return _disk_directory


@pytest.fixture
def disk_directory() -> Iterator[Path]:
    """An empty directory on a disk."""
    with _disk_directory() as directory:
        yield directory


@pytest.fixture
def start_cluster(disk_directory: Path) -> Iterator[Callable[..., LocalCluster]]:
    """Starts an empty cluster of its own with the given options; stopped and removed after the test.

    `kind`: a subclass of LocalCluster, for nodes that are not started alike.
    """
    from raftstorage.ops.local import LocalCluster

    with contextlib.ExitStack() as stack:
        names = itertools.chain(["cluster"], (f"cluster-{number}" for number in itertools.count(2)))

        def start(nodes: int = 3, kind: type[LocalCluster] = LocalCluster, **options: Any) -> LocalCluster:
            cluster = stack.enter_context(kind(nodes=nodes, directory=disk_directory / next(names), **options))
            stack.callback(_end, cluster)
            return cluster

        yield start


def _end(cluster: LocalCluster) -> None:
    """Ends the nodes at once (a handover each time would double the run) and looks for faults in their logs."""
    for i in range(len(cluster)):
        if cluster.is_running(i):
            cluster.kill(i)
        if not cluster.log_path(i).exists():
            continue
        log = cluster.log_path(i).read_text()
        at = log.find("Traceback")
        if at >= 0:
            pytest.fail(
                f"node {cluster.node_id(i)} logged an unexpected error:\n{log[max(0, at - 2000) : at + 4000]}"
            )


@pytest.fixture(scope="session")
def end_cluster() -> Callable[[LocalCluster], None]:
    """Kills all nodes of a cluster and looks for faults in their logs."""
    return _end


@pytest.fixture
def cluster(start_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    """An empty three-node cluster for this test alone."""
    return start_cluster()


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[LocalCluster]:
    """A three-node cluster for tests of one module that hurt nobody and need no empty database."""
    from raftstorage.ops.local import LocalCluster

    with _disk_directory() as directory, LocalCluster(nodes=3, directory=directory / "cluster") as cluster:
        yield cluster
        _end(cluster)


@pytest.fixture
def open_storage() -> Iterator[Callable[..., ClientStorage]]:
    """Opens client storages (`ClientStorage`'s arguments) and closes them after the test."""
    from raftstorage.client import ClientStorage

    with contextlib.ExitStack() as stack:

        def open_(addresses: Any, **options: Any) -> ClientStorage:
            storage = ClientStorage(addresses, **options)
            stack.callback(storage.close)
            return storage

        yield open_
