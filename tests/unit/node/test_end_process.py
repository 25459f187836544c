"""How a process ends tells a supervisor and an operator why."""

from __future__ import annotations

import subprocess
import sys

import pytest

END = """
from pathlib import Path
from raftstorage.node.engine.api import EngineError, EngineWriteError
from raftstorage.node.ending import end_process
from raftstorage.node.wal import WalDamaged, WalError
end_process({error})
"""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("EngineError('a damaged block')", 3),
        ("WalDamaged(Path('log'), 7, 'a damaged record')", 3),
        ("EngineWriteError('no space left')", 70),
        ("WalError('an earlier write failed')", 70),
        ("OSError(5, 'Input/output error')", 70),
        ("ValueError('anything else')", 70),
    ],
)
def test_the_exit_status_tells_damage_from_what_could_not_be_written(error: str, status: int) -> None:
    run = subprocess.run([sys.executable, "-c", END.format(error=error)], check=False, timeout=60)
    assert run.returncode == status
