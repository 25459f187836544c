"""Clusters in stories: each file in `scripts/` drives a cluster and holds the trace that must come out.

RAFT_SCRIPTS_REWRITE=1 puts the real traces into the files, and fails: read what changed, then run again.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

from tests.unit.raft.raft_scripts import ScriptError, play

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))

SOUND = """\
# One node is a cluster.

# It elects itself.
> cluster 1
> quiet elect 1
> logs
1: 1/1:noop | commit 1 term 1
"""


def check(path: Path) -> None:
    text = path.read_text()
    played = play(path.name, text)
    if os.environ.get("RAFT_SCRIPTS_REWRITE") == "1":
        path.write_text(played)
        pytest.fail("rewritten")
    if played != text:
        diff = difflib.unified_diff(text.splitlines(), played.splitlines(), path.name, "played", lineterm="")
        pytest.fail("\n".join(diff))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    check(path)


def test_scripts_are_short_enough_to_read() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in SCRIPTS}
    assert len(lengths) >= 12
    assert {name: length for name, length in lengths.items() if not 20 <= length <= 120} == {}


def script(folder: Path, text: str) -> Path:
    path = folder / "script.txt"
    path.write_text(text)
    return path


def test_a_right_script_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAFT_SCRIPTS_REWRITE", raising=False)
    check(script(tmp_path, SOUND))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("1: 1/1:noop | commit 1 term 1\n", ""), ("commit 1", "commit 2"), ("term 1\n", "term 1\n2: down\n")],
    ids=["missing", "other", "more"],
)
def test_wrong_output_fails_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    monkeypatch.delenv("RAFT_SCRIPTS_REWRITE", raising=False)
    path = script(tmp_path, SOUND.replace(right, wrong))
    with pytest.raises(pytest.fail.Exception, match=r"(?m)^[-+](1|2): "):
        check(path)
    assert path.read_text() == SOUND.replace(right, wrong)


def test_rewriting_mends_the_script_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFT_SCRIPTS_REWRITE", "1")
    for text in (SOUND.replace("commit 1", "commit 2"), SOUND):
        path = script(tmp_path, text)
        with pytest.raises(pytest.fail.Exception, match="rewritten"):
            check(path)
        assert path.read_text() == SOUND


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("elekt 1", "unknown command: elekt"),
        ("quiet", "unknown command: quiet"),
        ("elect", "a node is missing"),
        ("elect 4", "no such node: 4"),
        ("elect one", "not a number: one"),
        ("tick 1 3 4", "not understood: 4"),
        ("settle frost=2", "not understood: frost=2"),
        ("cluster 3 spoons=2", "not understood: spoons=2"),
        ("restart 1", "node 1 is up"),
        ("deliver 1->2", "no such message flies"),
        ("drop PIGEON", "no such message flies"),
    ],
)
def test_what_is_not_understood_is_named_with_its_place(command: str, message: str) -> None:
    text = f"# Three nodes.\n> cluster 3\n\n# What now?\n> {command}\n"
    with pytest.raises(ScriptError, match=rf"^odd\.txt:5: {message}$"):
        play("odd.txt", text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("> cluster 3\n", 1),
        ("# A story.\n1: noise\n", 2),
        ("# A story.\n> cluster 1\n1: noise\n> logs\n", 4),
        ("# A story.\n> cluster 1\n# More of it.\n", 3),
    ],
)
def test_a_paragraph_is_story_then_commands_then_output(text: str, line: int) -> None:
    with pytest.raises(ScriptError, match=rf"^odd\.txt:{line}: a paragraph is"):
        play("odd.txt", text)


def test_nothing_works_before_there_is_a_cluster() -> None:
    with pytest.raises(ScriptError, match=r"^odd\.txt:2: no cluster yet$"):
        play("odd.txt", "# A story.\n> logs\n")


def test_other_errors_name_the_line_too() -> None:
    with pytest.raises(ValueError, match="a cluster has voters") as caught:
        play("odd.txt", "# Nobody votes.\n> cluster 0 learners=1\n")
    assert caught.value.__notes__ == ["odd.txt:2: > cluster 0 learners=1"]


def test_what_a_cut_swallows_is_told() -> None:
    text = "# Node 2 is away.\n> cluster 2\n> isolate 2\n> time-out 1\n> settle\n"
    assert play("cut.txt", text).splitlines()[-1] == "  1->2 PRE_VOTE t1 after 0/0 -- lost"
