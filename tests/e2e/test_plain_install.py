"""What `pip install .` puts on a disk: a configuration file and a URI open a storage without this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "proto", "node", "client", "ops")

SCRIPT = """
import sys
from pathlib import Path
place = Path(sys.argv[1])
import raftstorage.client, raftstorage.node, raftstorage.ops, raftstorage.proto
for part in (raftstorage.client, raftstorage.node, raftstorage.ops, raftstorage.proto):
    assert Path(part.__file__).is_relative_to(place), part.__file__
    assert Path(part.__file__).with_name("py.typed").is_file()
assert list(Path(raftstorage.proto.__file__).parent.glob("*.proto"))
import ZODB.config
db = ZODB.config.databaseFromString(f'''
%import raftstorage.client
<zodb>
  <raftstorage>
    directory {place}/database
  </raftstorage>
</zodb>
''')
with db.transaction() as connection:
    connection.root()["x"] = 1
db.close()
import zodburi
factory, arguments = zodburi.resolve_uri(f"raftstorage+embedded://{place}/database")
storage = factory()
assert len(list(storage.iterator())) == 2
storage.close()
print("opened")
"""


def test_a_plain_install_has_all_that_it_needs(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), str(source)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(place)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(place)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "opened"
