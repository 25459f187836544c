"""A client with one large blob, in a process of its own, which measures its own memory.

    python -m tests.e2e.blob_client ADDRESSES DIRECTORY MEGABYTES

stores it from one storage and reads it through another one with an empty directory; prints one line of JSON:
`write` and `read`, each with `growth` (most bytes of memory in use meanwhile, above those before) and `seconds`;
and whether what was read is what was written.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from raftstorage.client import ClientStorage
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.tests.StorageTestBase import zodb_pickle
from ZODB.utils import z64

#: Written at the front of each MiB of a file that is sparse otherwise, so that no two are alike.
BLOCK = 1 << 20


def make(path: Path, megabytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(megabytes * BLOCK)
        for number in range(megabytes):
            file.seek(number * BLOCK)
            file.write(number.to_bytes(8) * 512)


def is_made(path: Path, megabytes: int) -> bool:
    rest = bytes(BLOCK - 4096)
    with path.open("rb") as file:
        for number in range(megabytes):
            if file.read(BLOCK) != number.to_bytes(8) * 512 + rest:
                return False
        return file.read(1) == b""


def memory(field: str) -> int:
    """Bytes, of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise AssertionError(f"there is no {field}")


def measured(work: Callable[[], object]) -> dict[str, float]:
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = memory("VmRSS")
    begun = time.monotonic()
    work()
    return {"growth": memory("VmHWM") - before, "seconds": time.monotonic() - begun}


def main(addresses: str, directory: str, megabytes: int) -> None:
    base = Path(directory)
    source = base / "source"
    writer = ClientStorage(addresses, blob_dir=base / "writer")
    reader = ClientStorage(addresses, blob_dir=base / "reader", consistency="linearizable")

    def store(path: Path) -> tuple[bytes, bytes]:
        oid = writer.new_oid()
        transaction = TransactionMetaData()
        writer.tpc_begin(transaction)
        writer.storeBlob(oid, z64, zodb_pickle(Blob()), os.fspath(path), "", transaction)
        writer.tpc_vote(transaction)
        return oid, writer.tpc_finish(transaction)

    def load() -> None:
        reader.sync(True)
        found.append(Path(reader.loadBlob(*stored[-1])))

    stored: list[tuple[bytes, bytes]] = []
    found: list[Path] = []
    make(source, 1)
    stored.append(store(source))
    load()  # what is loaded and made at first use is there now
    make(source, megabytes)
    write = measured(lambda: stored.append(store(source)))
    read = measured(load)
    print(json.dumps({"write": write, "read": read, "same": is_made(found[-1], megabytes)}))
    writer.close()
    reader.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
