from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("version", "protocol_version", "cluster_id", "node_id", "role", "term", "leader_id", "last_index", "commit_index", "applied_index", "last_tid", "log_bytes", "database_bytes", "objects", "uptime_seconds", "sessions", "peers", "first_index", "level", "problems", "disk_free_bytes", "disk_reserve_bytes", "snapshot", "joint", "packed", "pack_phase")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TID_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATABASE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_RESERVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    JOINT_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    PACK_PHASE_FIELD_NUMBER: _ClassVar[int]
    version: str
    protocol_version: int
    cluster_id: str
    node_id: int
    role: str
    term: int
    leader_id: int
    last_index: int
    commit_index: int
    applied_index: int
    last_tid: bytes
    log_bytes: int
    database_bytes: int
    objects: int
    uptime_seconds: float
    sessions: int
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatus]
    first_index: int
    level: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    disk_free_bytes: int
    disk_reserve_bytes: int
    snapshot: Transfer
    joint: bool
    packed: bytes
    pack_phase: str
    def __init__(self, version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ..., role: _Optional[str] = ..., term: _Optional[int] = ..., leader_id: _Optional[int] = ..., last_index: _Optional[int] = ..., commit_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., last_tid: _Optional[bytes] = ..., log_bytes: _Optional[int] = ..., database_bytes: _Optional[int] = ..., objects: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., sessions: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., first_index: _Optional[int] = ..., level: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ..., disk_free_bytes: _Optional[int] = ..., disk_reserve_bytes: _Optional[int] = ..., snapshot: _Optional[_Union[Transfer, _Mapping]] = ..., joint: _Optional[bool] = ..., packed: _Optional[bytes] = ..., pack_phase: _Optional[str] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("tid", "references")
    TID_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    tid: bytes
    references: bool
    def __init__(self, tid: _Optional[bytes] = ..., references: _Optional[bool] = ...) -> None: ...

class VerifyReport(_message.Message):
    __slots__ = ("tid", "packed", "records", "bytes", "blobs", "objects", "problems", "digest", "done")
    TID_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    tid: bytes
    packed: bytes
    records: int
    bytes: int
    blobs: int
    objects: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    digest: bytes
    done: bool
    def __init__(self, tid: _Optional[bytes] = ..., packed: _Optional[bytes] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ..., blobs: _Optional[int] = ..., objects: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ..., digest: _Optional[bytes] = ..., done: _Optional[bool] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("bytes", "total_bytes")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    total_bytes: int
    def __init__(self, bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("node_id", "address", "connected", "match_index", "state", "member_role", "lag_entries", "lag_transactions", "lag_bytes", "lag_seconds", "problem")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    MATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MEMBER_ROLE_FIELD_NUMBER: _ClassVar[int]
    LAG_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    LAG_TRANSACTIONS_FIELD_NUMBER: _ClassVar[int]
    LAG_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAG_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    address: str
    connected: bool
    match_index: int
    state: str
    member_role: str
    lag_entries: int
    lag_transactions: int
    lag_bytes: int
    lag_seconds: float
    problem: str
    def __init__(self, node_id: _Optional[int] = ..., address: _Optional[str] = ..., connected: _Optional[bool] = ..., match_index: _Optional[int] = ..., state: _Optional[str] = ..., member_role: _Optional[str] = ..., lag_entries: _Optional[int] = ..., lag_transactions: _Optional[int] = ..., lag_bytes: _Optional[int] = ..., lag_seconds: _Optional[float] = ..., problem: _Optional[str] = ...) -> None: ...

class TransferLeaderRequest(_message.Message):
    __slots__ = ("to_node",)
    TO_NODE_FIELD_NUMBER: _ClassVar[int]
    to_node: int
    def __init__(self, to_node: _Optional[int] = ...) -> None: ...

class TransferLeaderReply(_message.Message):
    __slots__ = ("leader_id",)
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    leader_id: int
    def __init__(self, leader_id: _Optional[int] = ...) -> None: ...

class MembersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MembersReply(_message.Message):
    __slots__ = ("members", "joint", "index", "leader_id", "level")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    JOINT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[MemberStatus]
    joint: bool
    index: int
    leader_id: int
    level: int
    def __init__(self, members: _Optional[_Iterable[_Union[MemberStatus, _Mapping]]] = ..., joint: _Optional[bool] = ..., index: _Optional[int] = ..., leader_id: _Optional[int] = ..., level: _Optional[int] = ...) -> None: ...

class MemberStatus(_message.Message):
    __slots__ = ("node_id", "address", "role", "instance", "version")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    address: str
    role: str
    instance: str
    version: int
    def __init__(self, node_id: _Optional[int] = ..., address: _Optional[str] = ..., role: _Optional[str] = ..., instance: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ChangeMembersRequest(_message.Message):
    __slots__ = ("add", "add_learner", "promote", "demote", "remove", "replace")
    ADD_FIELD_NUMBER: _ClassVar[int]
    ADD_LEARNER_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    DEMOTE_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    add: str
    add_learner: str
    promote: int
    demote: int
    remove: int
    replace: Replacement
    def __init__(self, add: _Optional[str] = ..., add_learner: _Optional[str] = ..., promote: _Optional[int] = ..., demote: _Optional[int] = ..., remove: _Optional[int] = ..., replace: _Optional[_Union[Replacement, _Mapping]] = ...) -> None: ...

class Replacement(_message.Message):
    __slots__ = ("old", "by")
    OLD_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    old: int
    by: int
    def __init__(self, old: _Optional[int] = ..., by: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("address", "instance", "version", "protocol_version", "min_protocol_version", "oldest_version", "software")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    OLDEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    address: str
    instance: str
    version: int
    protocol_version: int
    min_protocol_version: int
    oldest_version: int
    software: str
    def __init__(self, address: _Optional[str] = ..., instance: _Optional[str] = ..., version: _Optional[int] = ..., protocol_version: _Optional[int] = ..., min_protocol_version: _Optional[int] = ..., oldest_version: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("cluster_id", "node_id", "replaces")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node_id: int
    replaces: int
    def __init__(self, cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ..., replaces: _Optional[int] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("addresses", "learner")
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    learner: bool
    def __init__(self, addresses: _Optional[_Iterable[str]] = ..., learner: _Optional[bool] = ...) -> None: ...

class InviteReply(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class IdentifyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class IdentifyReply(_message.Message):
    __slots__ = ("cluster_id", "node_id", "instance")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    node_id: int
    instance: str
    def __init__(self, cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ..., instance: _Optional[str] = ...) -> None: ...
