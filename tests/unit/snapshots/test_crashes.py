"""A crash after every single step, of fetching, of switching and of cleaning up: nothing is ever half there."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from raftstorage.node.snapshots import Installed, SnapshotRefused, clean, current, point_to
from raftstorage.node.snapshots.install import InstallError

from tests.unit.snapshots.disk import ENDS, Crash, ModelDisk
from tests.unit.snapshots.sources import (
    CONTENTS,
    NODE,
    OLD,
    Source,
    breaks_at,
    check_finished,
    fetcher,
    manifest_of,
    new_disk,
    run,
)

NEW = Installed("db-9-2", 9, 2)


def put_new(disk: ModelDisk) -> None:
    """As a fetch leaves it."""
    for name, content in CONTENTS.items():
        disk.put(NODE / NEW.name / name, content)


def steps_of(work: Callable[[ModelDisk], None], prepare: Callable[[ModelDisk], None]) -> int:
    disk = new_disk(random.Random(0))
    prepare(disk)
    disk.steps.clear()
    work(disk)
    return len(disk.steps)


def crash(disk: ModelDisk, step: int, how: str, work: Callable[[ModelDisk], None]) -> bool:
    """Runs `work` to before its step number `step`, and ends the life so. Whether it came through."""
    disk.steps.clear()
    disk.crash_at = step
    through = False
    try:
        work(disk)
        through = True
    except Crash:
        pass
    disk.end(how)
    return through


def installed(disk: ModelDisk) -> Installed:
    """What a start finds, which is whole."""
    found = current(NODE, disk)
    assert found in (Installed(), NEW)
    assert disk.folder_contents(NODE / found.name) == (OLD if found == Installed() else CONTENTS)
    return found


def switch(disk: ModelDisk) -> None:
    point_to(NODE, *(NEW.name, NEW.index, NEW.term), disk)


def tidy(disk: ModelDisk) -> None:
    clean(NODE, disk)


def fetch_and_switch(disk: ModelDisk) -> None:
    source = Source(mangles=[breaks_at(7)])
    fetched = run(fetcher(disk).fetch(source))
    point_to(NODE, fetched.path.name, fetched.index, fetched.term, disk)
    clean(NODE, disk)


def crash_while_switching(lie: str = "", lie_at_start: str = "") -> set[Installed]:
    """Every step of switching, then every step of the start after it, each end. What was found.

    The lies are syncs that do nothing: of switching, and of the start.
    """
    found = set()
    for step in range(steps_of(switch, put_new) + 1):
        for how in ENDS:
            for second in range(steps_of(tidy, lambda disk: (put_new(disk), switch(disk))[0]) + 1):
                for second_how in ENDS:
                    disk = new_disk(random.Random(f"{step} {how} {second} {second_how}"))
                    put_new(disk)
                    disk.lies = (lie,)
                    through = crash(disk, step, how, switch)
                    before = installed(disk)
                    assert before == NEW or not through, "point_to had returned"
                    disk.lies = (lie_at_start,)
                    through = crash(disk, second, second_how, tidy)
                    after = installed(disk)
                    assert after == before or how == "kill", "a start changed its mind"
                    clean(NODE, disk)
                    assert set(disk.names(NODE)) == {after.name} | ({"database"} if after == NEW else set())
                    found.add(installed(disk))
    return found


def crash_while_fetching(lie: str = "") -> None:
    for step in range(steps_of(fetch_and_switch, lambda disk: None) + 1):
        for how in ENDS:
            disk = new_disk(random.Random(f"{step} {how}"), (lie,))
            through = crash(disk, step, how, fetch_and_switch)
            check_finished(disk, CONTENTS)
            found = installed(disk)
            assert found == NEW or not through
            clean(NODE, disk)
            if found == NEW:
                with pytest.raises(SnapshotRefused, match="already"):
                    run(fetcher(disk).fetch(Source()))
            else:
                fetch_and_switch(disk)
            disk.end("nothing")
            assert installed(disk) == NEW


def test_a_crash_at_every_step_of_switching_leaves_the_old_or_the_new() -> None:
    assert crash_while_switching() == {Installed(), NEW}


def test_a_crash_at_every_step_of_fetching_leaves_the_old_or_the_new() -> None:
    crash_while_fetching()


#: What a test says when a database is not whole, or `database` no name.
Broken = (AssertionError, InstallError, FileNotFoundError)


@pytest.mark.parametrize(("lie", "lie_at_start"), [("/node", ""), ("/node/database.tmp", ""), ("", "/node")])
def test_each_sync_of_switching_is_needed(lie: str, lie_at_start: str) -> None:
    with pytest.raises(Broken):
        crash_while_switching(f"sync {lie}", f"sync {lie_at_start}")


@pytest.mark.parametrize("lie", ["files", *(f"files/{name}" for name, content in CONTENTS.items() if content)])
def test_each_sync_of_fetching_is_needed(lie: str) -> None:
    with pytest.raises(Broken):
        crash_while_fetching(f"sync /node/incoming/{lie}")


def test_two_crashes_while_fetching_lose_no_more_than_one_does() -> None:
    """And between them the source has made another snapshot that has most files of the first."""
    other = dict(CONTENTS) | {"MANIFEST-000005": b"other"}
    steps = steps_of(fetch_and_switch, lambda disk: None)
    rng = random.Random(2)
    for step in range(steps + 1):
        disk = new_disk(random.Random(step))
        crash(disk, step, rng.choice(ENDS), fetch_and_switch)
        if installed(disk) == NEW:
            continue
        clean(NODE, disk)

        def again(disk: ModelDisk) -> None:
            run(fetcher(disk).fetch(Source(other, manifest_of(other, 12, 3, "b" * 32))))

        through = crash(disk, rng.randrange(steps), rng.choice(ENDS), again)
        check_finished(disk, CONTENTS, other)
        if not through:
            clean(NODE, disk)
            again(disk)
        assert disk.folder_contents(NODE / "db-12-3") == other
        assert installed(disk) == Installed()


def test_a_fetch_that_goes_on_after_a_crash_gets_little_again() -> None:
    """With the process gone and the system up, all but what was not marked yet."""
    disk = new_disk(random.Random(0))
    total = sum(map(len, CONTENTS.values()))
    source = Source()
    disk.crash_at = next_write(disk, 12)
    with pytest.raises(Crash):
        run(fetcher(disk).fetch(source))
    disk.end("kill")
    run(fetcher(disk).fetch(source))
    assert source.requests[1].snapshot_id == source.manifest.snapshot_id
    assert source.sent < total + 256 + 200


def next_write(disk: ModelDisk, number: int) -> int:
    """The step of the write number `number` to a file of a fetch."""
    probe = new_disk(random.Random(0))
    run(fetcher(probe).fetch(Source()))
    writes = [at for at, step in enumerate(probe.steps) if step.startswith("write /node/incoming/files/")]
    return writes[number]
