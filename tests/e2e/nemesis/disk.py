"""What disks do to a node: syncs that fail or hang, no room, bytes that are not what was written.

Syncs are caught by a library that is compiled here and preloaded (`disk.c`); a full disk is a small tmpfs; damage
is done to the files of a stopped node.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from raftstorage.node.wal import format as fmt
from raftstorage.node.wal.segment import SUFFIX

from tests.e2e.nemesis.network import own_name, run

_SOURCE = Path(__file__).with_name("disk.c")
_COMPILERS = ("cc", "gcc", "clang")


class DiskError(Exception):
    """A fault cannot be made here; the message says why."""


@functools.cache
def why_no_shim() -> str:
    """Why syncs cannot be made to fail here; empty if they can. Compiles."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            compile_shim(Path(directory))
    except DiskError as error:
        return str(error)
    return ""


def compile_shim(directory: Path) -> Path:
    """The library in `directory`. DiskError when there is no compiler or it fails."""
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise DiskError(f"there is no C compiler here ({', '.join(_COMPILERS)})")
    library = directory / "disk.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DiskError(f"the compiler failed: {done.stderr.strip()}")
    return library


class Syncs:
    """One node's syncs of what lies in `directory`. `trigger`: a file that is this object's own."""

    def __init__(self, library: Path, directory: Path, trigger: Path) -> None:
        self._library = library
        self._directory = directory
        self._trigger = trigger

    def environment(self) -> dict[str, str]:
        """For the node's process, from its start on."""
        preload = [str(self._library), *filter(None, [os.environ.get("LD_PRELOAD", "")])]
        return {
            "LD_PRELOAD": ":".join(preload),
            "NEMESIS_DISK": str(self._directory),
            "NEMESIS_TRIGGER": str(self._trigger),
        }

    def fail(self) -> None:
        """Each fails with EIO from now on."""
        self._say("eio")

    def hang(self) -> None:
        """Each hangs from now on, until `work`."""
        self._say("hang")

    def work(self) -> None:
        """As always again; those that hang return."""
        self._trigger.unlink(missing_ok=True)

    def _say(self, wish: str) -> None:
        temporary = self._trigger.with_suffix(".new")
        temporary.write_text(wish)
        temporary.replace(self._trigger)


class SmallDisk:
    """A tmpfs at `path` with room for `size` bytes, from `mount` to `unmount`. NetworkError, OSError."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._size = size
        self._filler = path / "filler"

    def mount(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"size={self._size}", own_name(), str(self.path))

    def unmount(self) -> None:
        """Again: nothing. Whoever still has files open keeps them, but nobody finds them any more."""
        if self.path.is_mount():
            run("umount", "-l", str(self.path))

    def fill(self) -> None:
        """Takes all room that is left."""
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while free := os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize:
                os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, free)
        except OSError:  # somebody was faster with the last page
            pass
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        """There are `size` bytes free again, whatever is there."""
        self._filler.unlink(missing_ok=True)
        now = os.statvfs(self.path)
        size = (now.f_blocks - now.f_bfree) * now.f_frsize + self._size
        run("mount", "-o", f"remount,size={size}", str(self.path))


@dataclass(frozen=True)
class Flip:
    """The byte that was changed."""

    file: Path
    offset: int


def flip(file: Path, offset: int, rng: random.Random) -> Flip:
    """Changes one bit or more of the byte at `offset`."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        (before,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([before ^ rng.randrange(1, 256)]))
    return Flip(file, offset)


def flip_log(directory: Path, rng: random.Random) -> Flip:
    """Changes a byte of a record in a stopped node's log, before the last mark: it was durable. DiskError."""
    places = []
    for segment in sorted((directory / "log").glob(f"*{SUFFIX}")):
        data = segment.read_bytes()
        seed = fmt.seed(fmt.Header.unpack(data, segment).salt)
        marks = [offset for offset, kind, _ in fmt.records(data, fmt.HEADER_BYTES, seed) if kind == fmt.MARK]
        if marks and marks[-1] > fmt.HEADER_BYTES:
            places.append((segment, marks[-1]))
    if not places:
        raise DiskError(f"{directory} holds no log with a mark")
    segment, end = rng.choice(places)
    return flip(segment, rng.randrange(fmt.HEADER_BYTES, end), rng)


def flip_database(directory: Path, rng: random.Random, kind: str = ".sst") -> Flip:
    """Changes a byte of a stopped node's newest table (`kind` ".sst") or "MANIFEST". DiskError: it has none."""

    def wanted(path: Path) -> bool:
        return path.name.startswith("MANIFEST") if kind == "MANIFEST" else path.suffix == kind

    files = [path for path in (directory / "db").iterdir() if wanted(path) and path.stat().st_size]
    if not files:
        raise DiskError(f"{directory} holds no {kind} file")
    file = max(files, key=lambda path: (path.stat().st_mtime_ns, path.name))
    return flip(file, rng.randrange(file.stat().st_size), rng)
