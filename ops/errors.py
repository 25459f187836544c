"""How a command says that it cannot do what was asked: one line, no traceback."""

from __future__ import annotations

import importlib.util

#: One of what the extra `node` installs.
_NODES_NEED = "rocksdict"


class CommandError(Exception):
    """Shown as one line; the process ends with `exit_code` (2: asked wrongly, 1: went wrong)."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def require_zodb(what: str) -> None:
    """CommandError unless ZODB is installed."""
    try:
        import ZODB  # noqa: F401
    except ImportError:
        raise CommandError(f"{what} needs ZODB: pip install 'raftstorage[zodb]'", 2) from None


def require_node(what: str) -> None:
    """CommandError unless what a node needs is installed."""
    if importlib.util.find_spec(_NODES_NEED) is None:
        raise CommandError(f"{what} needs a node's packages: pip install 'raftstorage[node]'", 2)
