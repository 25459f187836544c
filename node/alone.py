"""Directories of nodes that began alone: a cluster of one, without a list of members.

`alone.json` names the cluster that such a directory began; it is written once, before anything else is. The node
in it may be run without being told of members, in an application's process or with a port of its own. A directory
without that mark belongs to a node that has others beside it: run alone it would be a second cluster.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from raftstorage.node.identity import DirectoryError, fsync_directory, is_cluster_id, make_directory

NAME = "alone.json"
FORMAT = 1
NODE_ID = 1


def begun_alone(path: Path, *, create: bool = True) -> tuple[str, int]:
    """(cluster id, node id) of the cluster of one in `path`; begins one in an empty or missing directory.

    DirectoryError: the directory is another kind of node's, or cannot be used; with `create` False also when there
    is no node in it.
    """
    try:
        mark = _read(path)
        if (path / "node.json").exists():
            if _cluster_of(path / "node.json") != mark:
                raise DirectoryError(
                    f"{path} is a node that has other members beside it: start it with python -m raftstorage.node"
                )
            return str(mark), NODE_ID
        if not create:
            raise DirectoryError(f"there is no database in {path}")
        if (path / "log").exists() or (path / "db").exists():
            raise DirectoryError(f"{path} holds a node's data but no node.json: it is not certain whose it is")
        if mark is None:
            make_directory(path)
            _write(path)
            mark = _read(path)
        return str(mark), NODE_ID
    except OSError as error:
        raise DirectoryError(f"{path} cannot be used: {error.strerror or error}") from error


def _cluster_of(file: Path) -> str:
    try:
        return str(json.loads(file.read_bytes())["cluster_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise DirectoryError(f"{file} is not a node's identity: {error!r}") from error


def _read(path: Path) -> str | None:
    """The cluster id in the mark; None when there is none."""
    try:
        content = json.loads((path / NAME).read_bytes())
        version, cluster = content["format"], content["cluster_id"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DirectoryError(f"{path / NAME} is damaged: {error!r}") from error
    if version != FORMAT:
        raise DirectoryError(f"{path / NAME}: format {version}, this software knows {FORMAT}")
    if not isinstance(cluster, str) or not is_cluster_id(cluster):
        raise DirectoryError(f"{path / NAME} is damaged: {cluster!r} is no cluster id")
    return cluster


def _write(path: Path) -> None:
    """Durable and whole, and never in place of another: of two processes that begin at once one is the first."""
    temporary = path / f"{NAME}.{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as out:
            out.write(json.dumps({"format": FORMAT, "cluster_id": secrets.token_hex(16)}).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(temporary, path / NAME)
        except FileExistsError:
            return
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path)
