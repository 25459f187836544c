from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PeerBatch(_message.Message):
    __slots__ = ("hello", "messages", "status")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    messages: _containers.RepeatedCompositeFieldContainer[RaftMessage]
    status: PeerStatusNote
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[RaftMessage, _Mapping]]] = ..., status: _Optional[_Union[PeerStatusNote, _Mapping]] = ...) -> None: ...

class PeerHello(_message.Message):
    __slots__ = ("protocol_version", "cluster_id", "node_id", "to_node_id", "min_protocol_version", "instance", "address", "version", "software")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TO_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    cluster_id: str
    node_id: int
    to_node_id: int
    min_protocol_version: int
    instance: str
    address: str
    version: int
    software: str
    def __init__(self, protocol_version: _Optional[int] = ..., cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ..., to_node_id: _Optional[int] = ..., min_protocol_version: _Optional[int] = ..., instance: _Optional[str] = ..., address: _Optional[str] = ..., version: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class PeerStatusNote(_message.Message):
    __slots__ = ("disk_full", "applied_index")
    DISK_FULL_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    disk_full: bool
    applied_index: int
    def __init__(self, disk_full: _Optional[bool] = ..., applied_index: _Optional[int] = ...) -> None: ...

class RaftMessage(_message.Message):
    __slots__ = ("type", "from_node", "to_node", "term", "log_index", "log_term", "entries", "commit", "reject", "hint_index", "hint_term", "context", "transfer")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[RaftMessage.Type]
        PRE_VOTE: _ClassVar[RaftMessage.Type]
        PRE_VOTE_REPLY: _ClassVar[RaftMessage.Type]
        VOTE: _ClassVar[RaftMessage.Type]
        VOTE_REPLY: _ClassVar[RaftMessage.Type]
        APPEND: _ClassVar[RaftMessage.Type]
        APPEND_REPLY: _ClassVar[RaftMessage.Type]
        HEARTBEAT: _ClassVar[RaftMessage.Type]
        HEARTBEAT_REPLY: _ClassVar[RaftMessage.Type]
        TIMEOUT_NOW: _ClassVar[RaftMessage.Type]
        READ_INDEX: _ClassVar[RaftMessage.Type]
        READ_INDEX_REPLY: _ClassVar[RaftMessage.Type]
        SNAPSHOT: _ClassVar[RaftMessage.Type]
    TYPE_UNSPECIFIED: RaftMessage.Type
    PRE_VOTE: RaftMessage.Type
    PRE_VOTE_REPLY: RaftMessage.Type
    VOTE: RaftMessage.Type
    VOTE_REPLY: RaftMessage.Type
    APPEND: RaftMessage.Type
    APPEND_REPLY: RaftMessage.Type
    HEARTBEAT: RaftMessage.Type
    HEARTBEAT_REPLY: RaftMessage.Type
    TIMEOUT_NOW: RaftMessage.Type
    READ_INDEX: RaftMessage.Type
    READ_INDEX_REPLY: RaftMessage.Type
    SNAPSHOT: RaftMessage.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FROM_NODE_FIELD_NUMBER: _ClassVar[int]
    TO_NODE_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    LOG_TERM_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    HINT_INDEX_FIELD_NUMBER: _ClassVar[int]
    HINT_TERM_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    type: RaftMessage.Type
    from_node: int
    to_node: int
    term: int
    log_index: int
    log_term: int
    entries: _containers.RepeatedCompositeFieldContainer[LogEntry]
    commit: int
    reject: bool
    hint_index: int
    hint_term: int
    context: int
    transfer: bool
    def __init__(self, type: _Optional[_Union[RaftMessage.Type, str]] = ..., from_node: _Optional[int] = ..., to_node: _Optional[int] = ..., term: _Optional[int] = ..., log_index: _Optional[int] = ..., log_term: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[LogEntry, _Mapping]]] = ..., commit: _Optional[int] = ..., reject: _Optional[bool] = ..., hint_index: _Optional[int] = ..., hint_term: _Optional[int] = ..., context: _Optional[int] = ..., transfer: _Optional[bool] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("kind", "term", "index", "data")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[LogEntry.Kind]
        COMMAND: _ClassVar[LogEntry.Kind]
        NOOP: _ClassVar[LogEntry.Kind]
        MEMBERSHIP: _ClassVar[LogEntry.Kind]
    KIND_UNSPECIFIED: LogEntry.Kind
    COMMAND: LogEntry.Kind
    NOOP: LogEntry.Kind
    MEMBERSHIP: LogEntry.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    kind: LogEntry.Kind
    term: int
    index: int
    data: bytes
    def __init__(self, kind: _Optional[_Union[LogEntry.Kind, str]] = ..., term: _Optional[int] = ..., index: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("hello", "snapshot_id", "have")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    snapshot_id: str
    have: _containers.RepeatedCompositeFieldContainer[SnapshotPosition]
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., snapshot_id: _Optional[str] = ..., have: _Optional[_Iterable[_Union[SnapshotPosition, _Mapping]]] = ...) -> None: ...

class SnapshotPosition(_message.Message):
    __slots__ = ("file", "bytes")
    FILE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    file: str
    bytes: int
    def __init__(self, file: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("manifest", "data")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    manifest: SnapshotManifest
    data: SnapshotData
    def __init__(self, manifest: _Optional[_Union[SnapshotManifest, _Mapping]] = ..., data: _Optional[_Union[SnapshotData, _Mapping]] = ...) -> None: ...

class SnapshotManifest(_message.Message):
    __slots__ = ("snapshot_id", "index", "term", "membership", "files", "format")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    index: int
    term: int
    membership: bytes
    files: _containers.RepeatedCompositeFieldContainer[SnapshotFile]
    format: int
    def __init__(self, snapshot_id: _Optional[str] = ..., index: _Optional[int] = ..., term: _Optional[int] = ..., membership: _Optional[bytes] = ..., files: _Optional[_Iterable[_Union[SnapshotFile, _Mapping]]] = ..., format: _Optional[int] = ...) -> None: ...

class SnapshotFile(_message.Message):
    __slots__ = ("name", "size", "crc32c")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    crc32c: int
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class SnapshotData(_message.Message):
    __slots__ = ("file", "offset", "data", "crc32c")
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    file: str
    offset: int
    data: bytes
    crc32c: int
    def __init__(self, file: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...
