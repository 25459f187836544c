"""What a simulated client commits: what `client/storage/tpc.py` makes of a ZODB transaction, without ZODB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from raftstorage.client.cluster.bodies import Body, Record, make_body
from raftstorage.client.cluster.policy import Z64
from raftstorage.proto import storage_pb2 as pb

from tests.simulation.choices import Change, Values
from tests.simulation.records import unwrap, wrap


class Transaction:
    """`writes`: what `change` makes of `values`; `bases`: the revisions that they replace; `checked`: serials of
    the oids in `checks`. `part_bytes`: see make_body. `blobs`: of what is written, by oid."""

    def __init__(
        self,
        identity: bytes,
        user: str,
        change: Change,
        values: Values,
        checks: Sequence[bytes],
        part_bytes: int,
        blobs: Mapping[bytes, pb.Blob],
    ) -> None:
        self.identity = identity
        self._user = user
        self._change = change
        self._values = values
        self._part_bytes = part_bytes
        self._blobs = blobs
        self.checked = {oid: self._serial(oid) for oid in checks}
        self._make()

    def _serial(self, oid: bytes) -> bytes:
        found = self._values.get(oid)
        return found[1] if found is not None else Z64

    def _make(self) -> None:
        self.writes = self._change(self._values)
        self.bases = {oid: self._serial(oid) for oid in self.writes}
        records = {oid: self._record(oid, data) for oid, data in self.writes.items()}
        head = pb.Transaction(user=self._user.encode(), description=self.identity)
        self.body: Body = make_body(head, records, self.checked, True, self._part_bytes)

    def _record(self, oid: bytes, data: bytes | None) -> Record:
        whole = b"" if data is None else wrap(data)
        return Record(oid, self.bases[oid], whole, no_data=data is None, blob=self._blobs.get(oid))

    def resolve(self, conflicts: Iterable[pb.Failure]) -> bool:
        """Makes it anew from the revisions that others have committed; False when that cannot be done."""
        if self._blobs:
            return False
        for conflict in conflicts:
            if conflict.reason != pb.CONFLICT or Z64 in (conflict.serial, self.bases[conflict.oid]):
                return False
            if not conflict.data:  # deleted
                return False
            self._values[conflict.oid] = (unwrap(conflict.data), conflict.serial)
        self._make()
        return True
