"""The faults: each kind strikes a running cluster, lasts a while, and is over when its method returns.

Damage alone is not undone: the node that suffered it is in `out` from then on, and never more than a minority is.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from raftstorage.ops.local import ClusterError

from tests.e2e.nemesis.clients import Crowd
from tests.e2e.nemesis.cluster import NemesisCluster
from tests.e2e.nemesis.disk import Flip, flip_database, flip_log, why_no_shim
from tests.e2e.nemesis.network import why_no_delay

EXIT_DAMAGED = 3
EXIT_FATAL = 70
BALLAST = 1 << 20
#: Seconds that anything which must happen may take on a slow, busy machine.
PATIENCE = 60.0


class NemesisError(AssertionError):
    """A node or the cluster did not do what it promises."""


@dataclass(frozen=True)
class Fault:
    """What strikes: `kind` is a key of KINDS or NETS, `seed` decides whom and how.

    With `cut`, a key of NETS, that comes along. `leader`: it is the leader that is struck.
    """

    kind: str
    seconds: float
    seed: int
    cut: str = ""
    leader: bool = False

    def __str__(self) -> str:
        return f"{self.kind}{f' and {self.cut}' if self.cut else ''} for {self.seconds:.1f} s"


def log_is_refused(cluster: NemesisCluster, i: int, found: Flip) -> str:
    """Starts node i, whose log was damaged: what it says of the file and the place, ending. NemesisError."""
    said = _refusal(cluster, i)
    if not said:
        raise NemesisError(f"node {i + 1} serves on a log with another byte at {found}")
    for part in (f"exit code {EXIT_DAMAGED}", str(found.file), "offset"):
        if part not in said:
            raise NemesisError(f"node {i + 1} does not say {part!r} of {found}: {said}")
    return said


def database_is_refused(cluster: NemesisCluster, i: int, found: Flip) -> str:
    """Starts node i, whose database was damaged: what it says, ending; empty when it serves. NemesisError."""
    said = _refusal(cluster, i)
    for part in (f"exit code {EXIT_DAMAGED}", "database"):
        if said and part not in said:
            raise NemesisError(f"node {i + 1} does not say {part!r} of {found}: {said}")
    return said


def _refusal(cluster: NemesisCluster, i: int) -> str:
    try:
        cluster.start(i)
    except ClusterError as error:
        return str(error)
    return ""


class Faults:
    """`strike` does one fault. The seed of each fault decides about it; the cluster's state decides who leads."""

    def __init__(self, cluster: NemesisCluster, crowd: Crowd) -> None:
        self.cluster = cluster
        self.crowd = crowd
        self.out: set[int] = set()  # damaged: never started again
        self.scarred: set[int] = set()  # their logs may tell of errors
        self.told: list[str] = []  # what came of faults with more than one good end
        self._rng = random.Random(0)
        self._leader = False
        self._never = threading.Event()

    # ---- whom ------------------------------------------------------------------------------------------

    @property
    def sound(self) -> list[int]:
        return [i for i in range(len(self.cluster)) if i not in self.out]

    def _victim(self) -> int:
        """The leader in half of all cases."""
        if self._leader:
            return self.cluster.leader(timeout=PATIENCE)
        leader = self.cluster.leader() if self._rng.random() < 0.5 else None
        return leader if leader is not None and leader in self.sound else self._rng.choice(self.sound)

    def check_running(self) -> None:
        """NemesisError when a node ended that nobody struck."""
        for i in self.sound:
            if not self.cluster.is_running(i):
                raise NemesisError(f"node {i + 1} ended by itself:\n{self.cluster.log_text(i)[-3000:]}")

    # ---- striking --------------------------------------------------------------------------------------

    def strike(self, fault: Fault) -> None:
        """Returns when the fault is over. NemesisError, ClusterError."""
        self._rng, self._leader = random.Random(fault.seed), fault.leader
        net = NETS.get(fault.cut or fault.kind)
        try:
            if net is not None:
                net(self)
            KINDS.get(fault.kind, Faults._wait)(self, fault.seconds)
        finally:
            self.cluster.network.heal()

    def _wait(self, seconds: float) -> None:
        self._never.wait(seconds)

    def _kill(self, seconds: float) -> None:
        i = self._victim()
        self.cluster.kill(i)
        self._wait(seconds)
        self.cluster.start(i)

    def _stop(self, seconds: float) -> None:
        i = self._victim()
        self.cluster.pause(i)
        self._wait(seconds)
        self.cluster.resume(i)

    def _cold_restart(self, seconds: float) -> None:
        for i in self._rng.sample(self.sound, len(self.sound)):
            self.cluster.kill(i)
        for i in self._rng.sample(self.sound, len(self.sound)):
            self.cluster.start(i)

    def _fail_sync(self, seconds: float) -> None:
        """The node must end, and be as good as new when its disk is."""
        i = self._victim()
        self.scarred.add(i)
        self.cluster.syncs(i).fail()
        code = self.cluster.wait_exit(i, PATIENCE)
        if code != EXIT_FATAL or "Errno 5" not in self.cluster.log_text(i):
            raise NemesisError(f"node {i + 1} ended with {code} when its syncs failed")
        self._wait(seconds)
        self.cluster.syncs(i).work()
        self.cluster.start(i)

    def _hang_sync(self, seconds: float) -> None:
        i = self._victim()
        self.cluster.syncs(i).hang()
        self._wait(seconds)
        self.cluster.syncs(i).work()

    def _full_disk(self, seconds: float) -> None:
        """The node runs until it needs room, then it must end; it may refuse to start before there is some."""
        i = self._rng.choice([i for i in self.cluster.small_disks if i not in self.out])
        self.scarred.add(i)
        disk = self.cluster.disk(i)
        disk.fill()
        self.crowd.ballast = BALLAST
        try:
            code = self.cluster.wait_exit(i, PATIENCE)
        except ClusterError:
            raise NemesisError(f"node {i + 1} goes on without room") from None
        finally:
            self.crowd.ballast = 0
        if code != EXIT_FATAL or "o space left" not in self.cluster.log_text(i):
            raise NemesisError(f"node {i + 1} ended with {code} on a full disk")
        try:
            self.cluster.start(i)
        except ClusterError as error:
            if "o space left" not in str(error):
                raise
            self.told.append("refused to start on a full disk")
        else:
            self.told.append("started on a full disk")
            self.cluster.kill(i)
        self._wait(seconds)
        disk.make_room()
        self.cluster.start(i)

    def _damage_log(self, seconds: float) -> None:
        i = self._victim()
        self.cluster.kill(i)
        self._lose(i)
        log_is_refused(self.cluster, i, flip_log(self.cluster.node_directory(i), self._rng))

    def _damage_database(self, seconds: float) -> None:
        """The node refuses, or goes on and answers right: then it is left running, and clients may ask it."""
        i = self._victim()
        code = self.cluster.stop(i)
        if code:
            raise NemesisError(f"node {i + 1} ended with {code} when it was told to stop")
        self._lose(i)
        kind = self._rng.choice((".sst", ".sst", "MANIFEST"))
        found = flip_database(self.cluster.node_directory(i), self._rng, kind)
        refused = database_is_refused(self.cluster, i, found)
        self.told.append(f"{kind} damaged, then {'refused' if refused else 'serves'}")

    def _lose(self, i: int) -> None:
        self.out.add(i)
        self.scarred.add(i)

    # ---- the net ---------------------------------------------------------------------------------------

    def _isolate(self) -> None:
        self.cluster.network.isolate([self._victim()])

    def _unplug(self) -> None:
        self.cluster.network.unplug(self._victim())

    def _part(self) -> None:
        self.cluster.network.part([self._victim()], self._rng.choice(("drop", "refuse")))

    def _one_way(self) -> None:
        self.cluster.network.one_way(self._victim())

    def _deafen(self) -> None:
        i = self._victim()
        self.cluster.network.cut((other, i) for other in range(len(self.cluster)) if other != i)

    def _bridge(self) -> None:
        self.cluster.network.bridge(self._victim())

    def _minority_with_leader(self) -> None:
        leader = self.cluster.leader(timeout=PATIENCE)
        others = [i for i in self.sound if i != leader]
        size = (len(self.cluster) - 1) // 2
        group = [leader, *self._rng.sample(others, max(0, size - 1))]
        if self._rng.random() < 0.5:
            self.cluster.network.part(group)
        else:
            self.cluster.network.isolate(group)

    def _delay(self) -> None:
        for i in self.sound:
            self.cluster.network.delay(i, self._rng.choice((5, 50, 200)), self._rng.choice((0.0, 2.0, 10.0)))


KINDS: dict[str, Callable[[Faults, float], None]] = {
    "kill": Faults._kill,
    "stop": Faults._stop,
    "cold restart": Faults._cold_restart,
    "failing sync": Faults._fail_sync,
    "hanging sync": Faults._hang_sync,
    "full disk": Faults._full_disk,
    "damaged log": Faults._damage_log,
    "damaged database": Faults._damage_database,
}
NETS: dict[str, Callable[[Faults], None]] = {
    "isolate": Faults._isolate,
    "unplug": Faults._unplug,
    "part": Faults._part,
    "one way": Faults._one_way,
    "deafen": Faults._deafen,
    "bridge": Faults._bridge,
    "minority with the leader": Faults._minority_with_leader,
    "delay": Faults._delay,
}
#: Ways to cut a leader off.
LEADER_CUTS = ("minority with the leader", "part", "isolate", "one way", "unplug", "deafen")
DAMAGE = ("damaged log", "damaged database")
#: Faults that a cut does not keep from their end.
_WITH_CUT = ("kill", "stop", "cold restart", "hanging sync")


def possible_kinds() -> list[str]:
    """All kinds but damage that this machine can do."""
    kinds = [kind for kind in (*KINDS, *NETS) if kind not in DAMAGE]
    if why_no_shim():
        kinds = [kind for kind in kinds if kind not in ("failing sync", "hanging sync")]
    return [kind for kind in kinds if kind != "delay" or not why_no_delay()]


def draw(rng: random.Random, longest: float, kinds: Sequence[str]) -> Iterator[Fault]:
    """Faults without end, of all `kinds` in turns; each lasts up to `longest` seconds."""
    nets = [kind for kind in kinds if kind in NETS]
    while True:
        for kind in rng.sample(list(kinds), len(kinds)):
            yield _fault(rng, kind, longest, rng.choice(nets) if nets and rng.random() < 0.3 else "")


def draw_damage(rng: random.Random, nodes: int) -> list[Fault]:
    """Damage to a minority of the nodes, one after the other."""
    return [_fault(rng, rng.choice(DAMAGE), 0.0, "") for _ in range((nodes - 1) // 2)]


def _fault(rng: random.Random, kind: str, longest: float, cut: str) -> Fault:
    # As likely in each power of two: what is shorter than an election timeout counts as well.
    seconds = longest * 2.0 ** -rng.uniform(0.0, 3.0)
    return Fault(kind, seconds, rng.getrandbits(64), cut if kind in _WITH_CUT else "")
