"""How every command ends: one line on standard error and an exit code, for errors that a user can meet."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import typer
from raftstorage.ops.errors import CommandError
from raftstorage.ops.local import ClusterError
from rich.console import Console

P = ParamSpec("P")


def guard(command: Callable[P, None]) -> Callable[P, None]:
    """Around each command's function."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except CommandError as error:
            _fail(str(error), error.exit_code)
        except (ClusterError, OSError) as error:
            _fail(str(error), 1)
        except ValueError as error:
            _fail(str(error), 2)
        except Exception as error:
            if not _is_storage_error(error):
                raise
            _fail(f"{type(error).__name__}: {error}", 1)

    return guarded


def print_json(value: dict[str, Any]) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _fail(message: str, exit_code: int) -> None:
    Console(stderr=True, soft_wrap=True).print(
        f"raftstorage: {message}", style="red", markup=False, highlight=False
    )
    raise typer.Exit(exit_code)


def _is_storage_error(error: Exception) -> bool:
    """Whether it comes from the storage (no connection, refused) rather than from a mistake of ours."""
    try:
        from transaction.interfaces import TransientError
        from ZODB.POSException import POSError
    except ImportError:
        return False
    return isinstance(error, TransientError | POSError)
