"""How a node's process ends by itself."""

from __future__ import annotations

import logging
import os
import threading
from typing import NoReturn

from raftstorage.node.engine.api import EngineError, EngineWriteError
from raftstorage.node.identity import DirectoryError
from raftstorage.node.wal import WalDamaged

log = logging.getLogger(__name__)

#: The process's exit status after damage in the log or the database, and after a write or sync that failed.
EXIT_DAMAGED = 3
#: Another node's directory, or one that is empty where the cluster knows this node with another.
EXIT_DIRECTORY = 5
EXIT_FATAL = 70


def end_process(error: BaseException) -> NoReturn:
    """What the disk holds is not known any more: nothing may be said or retried, not even a clean stop.

    Callable from any thread. A log line that cannot be written soon (a full pipe, a lock) is given up.
    """
    writer = threading.Thread(
        target=log.critical, args=("fatal: %s", error), kwargs={"exc_info": error}, daemon=True
    )
    writer.start()
    writer.join(0.5)
    if isinstance(error, DirectoryError):
        os._exit(EXIT_DIRECTORY)
    damaged = isinstance(error, WalDamaged | EngineError) and not isinstance(error, EngineWriteError)
    os._exit(EXIT_DAMAGED if damaged else EXIT_FATAL)
