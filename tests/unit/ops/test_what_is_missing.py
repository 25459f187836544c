"""A command without the packages that it needs names what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from raftstorage.ops.cli import app
from typer.testing import CliRunner


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--dir", "node"],
        ["up", "--dir", "cluster"],
        ["demo"],
        ["bench"],
        ["drill", "kill-leader"],
        ["drill", "soak"],
    ],
    ids=" ".join,
)
def test_without_a_nodes_packages(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    said = capfd.readouterr().err + done.stderr
    assert "needs a node's packages: pip install 'raftstorage[node]'" in said
    assert not list(tmp_path.iterdir())
