"""Regenerates the committed protobuf code: `python -m raftstorage.proto.generate [--check | --freeze]`.

`--check` changes nothing and exits 1 when a committed file is stale; `--freeze` also rewrites the frozen
descriptor, which is right only when fields were added.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("raft.proto", "storage.proto", "admin.proto")
FROZEN = HERE / "frozen.binpb"


def _protoc(out: Path, *arguments: str) -> None:
    from grpc_tools import protoc

    command = ["protoc", f"-Iraftstorage/proto={HERE}", *arguments]
    if protoc.main([*command, *(f"raftstorage/proto/{name}" for name in SOURCES)]) != 0:
        raise SystemExit(f"protoc failed in {out}")


def generate(out: Path) -> dict[str, bytes]:
    """Runs protoc into the empty folder `out`; returns file name -> content of all that it generated."""
    _protoc(out, f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    return {path.name: path.read_bytes() for path in sorted((out / "raftstorage/proto").iterdir())}


def descriptor() -> bytes:
    """The serialized FileDescriptorSet of the current sources, without comments."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "set.binpb"
        _protoc(Path(folder), f"--descriptor_set_out={target}")
        return target.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description="Regenerate the protobuf code.")
    parser.add_argument("--check", action="store_true", help="only tell whether the committed code is fresh")
    parser.add_argument("--freeze", action="store_true", help="also rewrite the frozen descriptor")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = generate(Path(folder))
    stale = [
        name for name, data in files.items() if not (HERE / name).exists() or (HERE / name).read_bytes() != data
    ]
    if options.check:
        for name in stale:
            sys.stderr.write(f"stale: proto/{name}; run python -m raftstorage.proto.generate\n")
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_bytes(files[name])
    if options.freeze:
        FROZEN.write_bytes(descriptor())
    return 0


if __name__ == "__main__":
    sys.exit(main())
