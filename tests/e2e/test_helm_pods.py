"""What the chart's pods run, run: real nodes by the rendered commands, while the release grows and shrinks.

A pod here is a process with the container's command, arguments and POD_NAME. `python` and `raftstorage` on its
PATH put loopback ports for the pods' names and a folder for its volume, and become the real ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from raftstorage.ops import members
from raftstorage.ops.ports import free_ports

from tests.e2e.charts import Manifests, one, parse, template
from tests.e2e.growing import SECONDS, eventually

NAME = "demo-raftstorage"
MOST = 5
STAND_IN = """#!{python}
import json, os, re, sys
ports, metrics, volume = json.loads(os.environ["PORTS"]), os.environ["METRICS"], os.environ["VOLUME"]
own = "127.0.0.1:%d" % ports[int(os.environ["POD_NAME"].rpartition("-")[2])] if "POD_NAME" in os.environ else ""
words = []
for word in sys.argv[1:]:
    word = re.sub(r"{name}-(\\d+)\\.{name}-peers\\.db\\.svc\\.cluster\\.local:7441",
                  lambda found: "127.0.0.1:%d" % ports[int(found[1])], word)
    word = word.replace("0.0.0.0:7441", own).replace("0.0.0.0:9441", metrics).replace("/data/", volume + "/")
    words.append(word)
os.execv({python!r}, [{python!r}, *{first!r}, *words])
"""


class Pods:
    """The pods of a StatefulSet, by their ordinals."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = free_ports(MOST)
        self.running: dict[int, subprocess.Popen[str]] = {}
        programs = directory / "bin"
        programs.mkdir()
        for name, first in (("python", []), ("raftstorage", ["-m", "raftstorage.ops.cli"])):
            program = programs / name
            program.write_text(STAND_IN.format(python=sys.executable, name=NAME, first=first))
            program.chmod(0o755)

    def addresses(self, count: int) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports[:count]]

    def volume(self, ordinal: int) -> Path:
        return self.directory / f"volume-{ordinal}"

    def log(self, ordinal: int) -> Path:
        return self.directory / f"log-{ordinal}"

    def environment(self, ordinal: int | None) -> dict[str, str]:
        pod = {"POD_NAME": f"{NAME}-{ordinal}", "VOLUME": str(self.volume(ordinal))} if ordinal is not None else {}
        return {
            "PATH": f"{self.directory / 'bin'}:/usr/bin:/bin",
            "PORTS": json.dumps(self.ports),
            "METRICS": "127.0.0.1:0",
            "VOLUME": "",
            **pod,
        }

    def start(self, manifests: Manifests, ordinal: int) -> None:
        """Runs its container; `serves` waits for it."""
        self.volume(ordinal).mkdir(exist_ok=True)
        with self.log(ordinal).open("a") as log:
            pod = subprocess.Popen(
                command(one(manifests, "StatefulSet")),
                env=self.environment(ordinal),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.running[ordinal] = pod

    def install(self, helm: str) -> Manifests:
        """Three pods that found a cluster, and all vote; what they were started from."""
        three = parse(template(helm, []))
        for ordinal in range(3):
            self.start(three, ordinal)
        assert [self.serves(ordinal) for ordinal in range(3)] == [1, 2, 3]
        self.voters(3)
        return three

    def serves(self, ordinal: int) -> int:
        """Its node id, once it serves."""
        pod = self.running[ordinal]
        assert pod.stdout is not None
        line = pod.stdout.readline()
        assert line, self.log(ordinal).read_text()
        return int(json.loads(line)["node_id"])

    def end(self, ordinal: int) -> None:
        """As Kubernetes ends one."""
        pod = self.running.pop(ordinal)
        pod.terminate()
        pod.communicate(timeout=SECONDS)
        assert pod.returncode == 0, self.log(ordinal).read_text()

    def close(self) -> None:
        for pod in self.running.values():
            pod.kill()
            pod.communicate()

    def voters(self, count: int) -> dict[int, str]:
        """Node id -> address, when exactly so many members are there and all vote."""

        def all_vote() -> dict[int, str]:
            reply = members.members(self.addresses(3), SECONDS)
            there = [each for each in reply.members if each.role == "voter" and each.instance]
            whole = len(there) == len(reply.members) == count and not reply.joint
            return {each.node_id: each.address for each in there} if whole else {}

        found: dict[int, str] = eventually(all_vote, f"{count} voters")
        return found


def command(manifest: dict[str, Any]) -> list[str]:
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    words: list[str] = container["command"] + container["args"]
    return words


def values(**given: int) -> list[str]:
    return [f"{name}={value}" for name, value in given.items()]


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    pods = Pods(tmp_path)
    try:
        yield pods
    finally:
        pods.close()


@pytest.mark.timeout(0)
def test_three_to_five_to_three(
    helm: str, pods: Pods, start_writers: Callable[..., Any], open_storage: Callable[..., Any]
) -> None:
    three = pods.install(helm)
    with start_writers(2, ",".join(pods.addresses(3)), pause=0.02) as writers:
        writers.more(20)
        five = parse(template(helm, values(replicaCount=5, foundingReplicaCount=3)))
        assert ("Job", f"{NAME}-shrink") not in five
        template_of = one(three, "StatefulSet")["spec"]["template"]
        assert one(five, "StatefulSet")["spec"]["template"] == template_of, "the pods that run would be restarted"
        for ordinal in (3, 4):
            pods.start(five, ordinal)
        new = {pods.serves(ordinal) for ordinal in (3, 4)}
        assert new == {4, 5}
        assert sorted(pods.voters(5).values()) == sorted(pods.addresses(5))
        writers.more(20)

        again = parse(template(helm, values(replicaCount=3, foundingReplicaCount=3, shrinkFrom=5)))
        job = subprocess.run(
            command(one(again, "Job")), env=pods.environment(None), capture_output=True, text=True, timeout=SECONDS
        )
        assert job.returncode == 0, job.stderr
        assert set(pods.voters(3)) == {1, 2, 3}
        for ordinal in (4, 3):
            pods.end(ordinal)
        writers.more(20)
        job = subprocess.run(
            command(one(again, "Job")), env=pods.environment(None), capture_output=True, text=True, timeout=SECONDS
        )
        assert job.returncode == 0, "nobody is left to be taken out, and that is no error"

        # Back to five without a look at the volumes: a removed one says so, an emptied one joins.
        pods.start(five, 3)
        assert pods.running[3].wait(SECONDS) == 5
        assert "was removed from the cluster" in pods.log(3).read_text().splitlines()[-1]
        pods.running[3].communicate()
        shutil.rmtree(pods.volume(3))
        pods.start(five, 3)
        assert pods.serves(3) > 5
        pods.voters(4)
        writers.stop()
    writers.check_all(open_storage(",".join(pods.addresses(3))))


@pytest.mark.timeout(0)
def test_a_leading_founder_that_lost_its_volume_takes_its_place_again(
    helm: str, pods: Pods, start_writers: Callable[..., Any], open_storage: Callable[..., Any]
) -> None:
    three = pods.install(helm)
    with start_writers(2, ",".join(pods.addresses(3)), pause=0.02) as writers:
        writers.more(10)
        # The others have no leader, or count on this one, when it comes back with nothing.
        led = members.members(pods.addresses(3), SECONDS).leader_id - 1
        pods.running[led].kill()
        pods.running[led].communicate()
        shutil.rmtree(pods.volume(led))
        pods.start(three, led)
        assert pods.serves(led) == 4
        places = dict(enumerate(pods.addresses(3), 1))
        places[4] = places.pop(led + 1)
        eventually(lambda: pods.voters(3) == places, "the new node in the old one's place")
        pods.end(led)
        pods.start(three, led)
        assert pods.serves(led) == 4, "whose the volume is counts, not the ordinal"
        writers.more(10)
        writers.stop()
    writers.check_all(open_storage(",".join(pods.addresses(3))))


@pytest.mark.timeout(0)
def test_a_founder_that_nobody_answered_finds_its_place_when_the_others_are_there(
    helm: str, pods: Pods, start_writers: Callable[..., Any], open_storage: Callable[..., Any]
) -> None:
    three = pods.install(helm)
    with start_writers(2, ",".join(pods.addresses(3)), pause=0.02) as writers:
        writers.more(10)
        writers.stop()
    for ordinal in range(3):
        pods.end(ordinal)
    shutil.rmtree(pods.volume(0))
    pods.start(three, 0)
    assert pods.serves(0) == 1, "there is nobody who could tell it from a first start"
    for ordinal in (1, 2):
        pods.start(three, ordinal)
        pods.serves(ordinal)
    assert pods.running[0].wait(SECONDS) == 5
    pods.running[0].communicate()
    pods.start(three, 0)  # as Kubernetes does
    assert pods.serves(0) == 4
    first, second, third = pods.addresses(3)
    eventually(lambda: pods.voters(3) == {2: second, 3: third, 4: first}, "the new node in the old one's place")
    writers.check_all(open_storage(",".join(pods.addresses(3))))


@pytest.mark.timeout(0)
def test_who_founded_alone_asks_those_who_came_later(helm: str, pods: Pods) -> None:
    one_pod = parse(template(helm, values(replicaCount=1)))
    pods.start(one_pod, 0)
    assert pods.serves(0) == 1
    three = parse(template(helm, values(replicaCount=3, foundingReplicaCount=1)))
    for ordinal in (1, 2):
        pods.start(three, ordinal)
        pods.serves(ordinal)
    pods.voters(3)
    pods.running[0].kill()
    pods.running[0].communicate()
    shutil.rmtree(pods.volume(0))
    pods.start(three, 0)
    assert pods.serves(0) == 4
    assert set(pods.voters(3)) == {2, 3, 4}
