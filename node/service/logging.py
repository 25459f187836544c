"""Structured logs: one line each, with the same standard fields in both formats.

Fields: time (UTC), level, logger, message, node_id, term, role, then what a call gave with `extra=`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "node_id", "term", "role"}


class LogContext(logging.Filter):
    """Adds node_id, term and role to every record. `source` is asked for (term, role) once there is a driver."""

    def __init__(self, node_id: int) -> None:
        super().__init__()
        self.node_id = node_id
        self.source: Callable[[], tuple[int, str]] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        term, role = self.source() if self.source is not None else (0, "starting")
        record.node_id, record.term, record.role = self.node_id, term, role
        return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields: dict[str, Any] = {
        "time": time,
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    for name in ("node_id", "term", "role"):
        fields[name] = getattr(record, name, None)
    return fields | {name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; an exception is in the field `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class TextFormatter(logging.Formatter):
    """One line for a person; a traceback follows on its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        head = (
            f"{fields.pop('time')} {fields.pop('level').upper():<8} node {fields.pop('node_id')} "
            f"{fields.pop('role')} term {fields.pop('term')} {fields.pop('logger')}: {fields.pop('message')}"
        )
        line = " ".join([head, *(f"{name}={value}" for name, value in fields.items())])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(node_id: int, log_format: str, level: str, stream: TextIO) -> LogContext:
    """Sends the root logger to `stream`. `log_format` "json" or "text"; `level` as `logging` names it."""
    context = LogContext(node_id)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(context)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    return context
