"""Runs a module as this process's main program, and ends with the process that started it.

`python -m raftstorage.ops.child MODULE ARG...`: a local cluster's nodes and a drill's writers run through it, so
that a starter that is killed leaves nobody behind. Outside Linux the starter's own clean-up is all there is.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1
PARENT_VARIABLE = "RAFTSTORAGE_PARENT_PID"


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent's starting thread ends. Exits at once if it is gone."""
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if parent and os.getppid() != int(parent):
        sys.exit(1)


if __name__ == "__main__":
    die_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
