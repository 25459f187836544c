"""`raftstorage serve`: this process becomes a node."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from raftstorage.ops.errors import require_node


def become_node(directory: Path, listen: str, advertise: str, metrics: str, more: Sequence[str]) -> NoReturn:
    """Runs `python -m raftstorage.node` in place of this program: same process, its signals and exit status.

    An empty directory becomes a database of one node, unless `more` says that it is to join a cluster.

    `more`: options of the node, passed on as they are. CommandError: what a node needs is not installed.
    """
    require_node("raftstorage serve")
    words = ["--dir", str(directory), "--listen", listen]
    words += ["--advertise", advertise] if advertise else []
    words += ["--metrics", metrics] if metrics else []
    if not {option.partition("=")[0] for option in more} & {"--join", "--standby"}:
        words.append("--alone")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "raftstorage.node", *words, "--ready", "text", *more])  # noqa: S606
