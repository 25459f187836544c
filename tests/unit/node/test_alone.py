"""Who may be run alone: directories that began a cluster of one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from raftstorage.node.alone import begun_alone
from raftstorage.node.identity import DirectoryError


def test_two_that_begin_at_once_begin_one_cluster(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: begun_alone(tmp_path / "node"), range(64)))
    assert len(found) == 1
    assert [path.name for path in (tmp_path / "node").iterdir()] == ["alone.json"]


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("alone.json", "", "damaged"),
        ("alone.json", '{"format": 2, "cluster_id": ""}', "format 2"),
        ("alone.json", '{"format": 1, "cluster_id": "x"}', "no cluster id"),
        ("node.json", "[]", "not a node's identity"),
        ("log/00", "", "not certain whose"),
    ],
)
def test_a_directory_of_which_it_is_not_certain_is_left_alone(
    tmp_path: Path, file: str, content: str, why: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(DirectoryError, match=why):
        begun_alone(tmp_path)
    assert path.read_text() == content
