from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    PROTOCOL_MISMATCH: _ClassVar[Reason]
    WRONG_CLUSTER: _ClassVar[Reason]
    INVALID: _ClassVar[Reason]
    TOO_LARGE: _ClassVar[Reason]
    NOT_LEADER: _ClassVar[Reason]
    LAGGING: _ClassVar[Reason]
    NO_SUCH_OBJECT: _ClassVar[Reason]
    CONFLICT: _ClassVar[Reason]
    READ_CONFLICT: _ClassVar[Reason]
    UNKNOWN_VOTE: _ClassVar[Reason]
    LEASE_EXPIRED: _ClassVar[Reason]
    READ_ONLY: _ClassVar[Reason]
    BUSY: _ClassVar[Reason]
    LEADERSHIP_LOST: _ClassVar[Reason]
    STALE_TID: _ClassVar[Reason]
    INTERNAL: _ClassVar[Reason]
    STOPPING: _ClassVar[Reason]
    STORAGE_FULL: _ClassVar[Reason]
    PACKED: _ClassVar[Reason]
    NO_UPLOAD: _ClassVar[Reason]
    UNDO_REFUSED: _ClassVar[Reason]
    UNSUPPORTED: _ClassVar[Reason]
REASON_UNSPECIFIED: Reason
PROTOCOL_MISMATCH: Reason
WRONG_CLUSTER: Reason
INVALID: Reason
TOO_LARGE: Reason
NOT_LEADER: Reason
LAGGING: Reason
NO_SUCH_OBJECT: Reason
CONFLICT: Reason
READ_CONFLICT: Reason
UNKNOWN_VOTE: Reason
LEASE_EXPIRED: Reason
READ_ONLY: Reason
BUSY: Reason
LEADERSHIP_LOST: Reason
STALE_TID: Reason
INTERNAL: Reason
STOPPING: Reason
STORAGE_FULL: Reason
PACKED: Reason
NO_UPLOAD: Reason
UNDO_REFUSED: Reason
UNSUPPORTED: Reason

class RequestBatch(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[Request]
    def __init__(self, requests: _Optional[_Iterable[_Union[Request, _Mapping]]] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "hello", "load_before", "load_serial", "history", "vote", "finish", "abort", "commit", "allocate_oids", "read_barrier", "read_transactions", "size", "part", "load_many", "current_records", "transaction_log", "pack", "pack_progress", "blob_chunk", "load_blob")
    ID_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LOAD_BEFORE_FIELD_NUMBER: _ClassVar[int]
    LOAD_SERIAL_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ALLOCATE_OIDS_FIELD_NUMBER: _ClassVar[int]
    READ_BARRIER_FIELD_NUMBER: _ClassVar[int]
    READ_TRANSACTIONS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    LOAD_MANY_FIELD_NUMBER: _ClassVar[int]
    CURRENT_RECORDS_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_LOG_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    PACK_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BLOB_CHUNK_FIELD_NUMBER: _ClassVar[int]
    LOAD_BLOB_FIELD_NUMBER: _ClassVar[int]
    id: int
    hello: Hello
    load_before: LoadBefore
    load_serial: LoadSerial
    history: History
    vote: Vote
    finish: Finish
    abort: Abort
    commit: Commit
    allocate_oids: AllocateOids
    read_barrier: ReadBarrier
    read_transactions: ReadTransactions
    size: Size
    part: Part
    load_many: LoadMany
    current_records: CurrentRecords
    transaction_log: TransactionLog
    pack: Pack
    pack_progress: PackProgress
    blob_chunk: BlobChunk
    load_blob: LoadBlob
    def __init__(self, id: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., load_before: _Optional[_Union[LoadBefore, _Mapping]] = ..., load_serial: _Optional[_Union[LoadSerial, _Mapping]] = ..., history: _Optional[_Union[History, _Mapping]] = ..., vote: _Optional[_Union[Vote, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., allocate_oids: _Optional[_Union[AllocateOids, _Mapping]] = ..., read_barrier: _Optional[_Union[ReadBarrier, _Mapping]] = ..., read_transactions: _Optional[_Union[ReadTransactions, _Mapping]] = ..., size: _Optional[_Union[Size, _Mapping]] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., load_many: _Optional[_Union[LoadMany, _Mapping]] = ..., current_records: _Optional[_Union[CurrentRecords, _Mapping]] = ..., transaction_log: _Optional[_Union[TransactionLog, _Mapping]] = ..., pack: _Optional[_Union[Pack, _Mapping]] = ..., pack_progress: _Optional[_Union[PackProgress, _Mapping]] = ..., blob_chunk: _Optional[_Union[BlobChunk, _Mapping]] = ..., load_blob: _Optional[_Union[LoadBlob, _Mapping]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("id", "failure", "welcome", "invalidations", "leader", "record", "history", "vote", "committed", "aborted", "oids", "read_point", "transactions", "size", "records", "current", "heads", "pack", "blob_stored", "blob_data")
    ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    INVALIDATIONS_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    OIDS_FIELD_NUMBER: _ClassVar[int]
    READ_POINT_FIELD_NUMBER: _ClassVar[int]
    TRANSACTIONS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    BLOB_STORED_FIELD_NUMBER: _ClassVar[int]
    BLOB_DATA_FIELD_NUMBER: _ClassVar[int]
    id: int
    failure: Failure
    welcome: Welcome
    invalidations: Invalidations
    leader: Leader
    record: Record
    history: HistoryReply
    vote: VoteReply
    committed: Committed
    aborted: Aborted
    oids: OidRange
    read_point: ReadPoint
    transactions: Transactions
    size: SizeReply
    records: Records
    current: CurrentPage
    heads: TransactionHeads
    pack: PackState
    blob_stored: BlobStored
    blob_data: BlobData
    def __init__(self, id: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., invalidations: _Optional[_Union[Invalidations, _Mapping]] = ..., leader: _Optional[_Union[Leader, _Mapping]] = ..., record: _Optional[_Union[Record, _Mapping]] = ..., history: _Optional[_Union[HistoryReply, _Mapping]] = ..., vote: _Optional[_Union[VoteReply, _Mapping]] = ..., committed: _Optional[_Union[Committed, _Mapping]] = ..., aborted: _Optional[_Union[Aborted, _Mapping]] = ..., oids: _Optional[_Union[OidRange, _Mapping]] = ..., read_point: _Optional[_Union[ReadPoint, _Mapping]] = ..., transactions: _Optional[_Union[Transactions, _Mapping]] = ..., size: _Optional[_Union[SizeReply, _Mapping]] = ..., records: _Optional[_Union[Records, _Mapping]] = ..., current: _Optional[_Union[CurrentPage, _Mapping]] = ..., heads: _Optional[_Union[TransactionHeads, _Mapping]] = ..., pack: _Optional[_Union[PackState, _Mapping]] = ..., blob_stored: _Optional[_Union[BlobStored, _Mapping]] = ..., blob_data: _Optional[_Union[BlobData, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "client_id", "cluster_id", "after_tid", "read_only", "min_protocol_version", "takes_pages")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_TID_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    MIN_PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TAKES_PAGES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    client_id: str
    cluster_id: str
    after_tid: bytes
    read_only: bool
    min_protocol_version: int
    takes_pages: bool
    def __init__(self, protocol_version: _Optional[int] = ..., client_id: _Optional[str] = ..., cluster_id: _Optional[str] = ..., after_tid: _Optional[bytes] = ..., read_only: _Optional[bool] = ..., min_protocol_version: _Optional[int] = ..., takes_pages: _Optional[bool] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol_version", "cluster_id", "node_id", "last_tid", "leader", "max_record_bytes", "max_transaction_bytes", "lease_ms", "min_protocol_version", "level", "packed")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_TID_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    MAX_RECORD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TRANSACTION_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    cluster_id: str
    node_id: int
    last_tid: bytes
    leader: Leader
    max_record_bytes: int
    max_transaction_bytes: int
    lease_ms: int
    min_protocol_version: int
    level: int
    packed: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., cluster_id: _Optional[str] = ..., node_id: _Optional[int] = ..., last_tid: _Optional[bytes] = ..., leader: _Optional[_Union[Leader, _Mapping]] = ..., max_record_bytes: _Optional[int] = ..., max_transaction_bytes: _Optional[int] = ..., lease_ms: _Optional[int] = ..., min_protocol_version: _Optional[int] = ..., level: _Optional[int] = ..., packed: _Optional[bytes] = ...) -> None: ...

class Leader(_message.Message):
    __slots__ = ("term", "node_id", "address", "members", "level")
    TERM_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    term: int
    node_id: int
    address: str
    members: _containers.RepeatedCompositeFieldContainer[Member]
    level: int
    def __init__(self, term: _Optional[int] = ..., node_id: _Optional[int] = ..., address: _Optional[str] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., level: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("node_id", "address", "learner")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    address: str
    learner: bool
    def __init__(self, node_id: _Optional[int] = ..., address: _Optional[str] = ..., learner: _Optional[bool] = ...) -> None: ...

class Invalidations(_message.Message):
    __slots__ = ("transactions",)
    TRANSACTIONS_FIELD_NUMBER: _ClassVar[int]
    transactions: _containers.RepeatedCompositeFieldContainer[Invalidation]
    def __init__(self, transactions: _Optional[_Iterable[_Union[Invalidation, _Mapping]]] = ...) -> None: ...

class Invalidation(_message.Message):
    __slots__ = ("tid", "oids", "more")
    TID_FIELD_NUMBER: _ClassVar[int]
    OIDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    tid: bytes
    oids: _containers.RepeatedScalarFieldContainer[bytes]
    more: bool
    def __init__(self, tid: _Optional[bytes] = ..., oids: _Optional[_Iterable[bytes]] = ..., more: _Optional[bool] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "reason", "message", "oid", "serial", "expected_serial", "leader", "data", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SERIAL_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: Reason
    message: str
    oid: bytes
    serial: bytes
    expected_serial: bytes
    leader: Leader
    data: bytes
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., message: _Optional[str] = ..., oid: _Optional[bytes] = ..., serial: _Optional[bytes] = ..., expected_serial: _Optional[bytes] = ..., leader: _Optional[_Union[Leader, _Mapping]] = ..., data: _Optional[bytes] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class LoadBefore(_message.Message):
    __slots__ = ("oid", "before", "at_least")
    OID_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    oid: bytes
    before: bytes
    at_least: bytes
    def __init__(self, oid: _Optional[bytes] = ..., before: _Optional[bytes] = ..., at_least: _Optional[bytes] = ...) -> None: ...

class LoadSerial(_message.Message):
    __slots__ = ("oid", "serial", "at_least")
    OID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    oid: bytes
    serial: bytes
    at_least: bytes
    def __init__(self, oid: _Optional[bytes] = ..., serial: _Optional[bytes] = ..., at_least: _Optional[bytes] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("data", "serial", "next_serial")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    NEXT_SERIAL_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    serial: bytes
    next_serial: bytes
    def __init__(self, data: _Optional[bytes] = ..., serial: _Optional[bytes] = ..., next_serial: _Optional[bytes] = ...) -> None: ...

class LoadMany(_message.Message):
    __slots__ = ("oids", "before", "at_least", "follow")
    OIDS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    oids: _containers.RepeatedScalarFieldContainer[bytes]
    before: bytes
    at_least: bytes
    follow: int
    def __init__(self, oids: _Optional[_Iterable[bytes]] = ..., before: _Optional[bytes] = ..., at_least: _Optional[bytes] = ..., follow: _Optional[int] = ...) -> None: ...

class Records(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[FoundRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[FoundRecord, _Mapping]]] = ...) -> None: ...

class FoundRecord(_message.Message):
    __slots__ = ("oid", "record")
    OID_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    oid: bytes
    record: Record
    def __init__(self, oid: _Optional[bytes] = ..., record: _Optional[_Union[Record, _Mapping]] = ...) -> None: ...

class CurrentRecords(_message.Message):
    __slots__ = ("start", "before", "max_bytes", "at_least")
    START_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    start: bytes
    before: bytes
    max_bytes: int
    at_least: bytes
    def __init__(self, start: _Optional[bytes] = ..., before: _Optional[bytes] = ..., max_bytes: _Optional[int] = ..., at_least: _Optional[bytes] = ...) -> None: ...

class CurrentPage(_message.Message):
    __slots__ = ("records", "next")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[FoundRecord]
    next: bytes
    def __init__(self, records: _Optional[_Iterable[_Union[FoundRecord, _Mapping]]] = ..., next: _Optional[bytes] = ...) -> None: ...

class TransactionLog(_message.Message):
    __slots__ = ("before", "count", "at_least")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    before: bytes
    count: int
    at_least: bytes
    def __init__(self, before: _Optional[bytes] = ..., count: _Optional[int] = ..., at_least: _Optional[bytes] = ...) -> None: ...

class TransactionHeads(_message.Message):
    __slots__ = ("transactions", "before", "packed")
    TRANSACTIONS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    transactions: _containers.RepeatedCompositeFieldContainer[CommittedTransaction]
    before: bytes
    packed: bytes
    def __init__(self, transactions: _Optional[_Iterable[_Union[CommittedTransaction, _Mapping]]] = ..., before: _Optional[bytes] = ..., packed: _Optional[bytes] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("oid", "size", "at_least")
    OID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    oid: bytes
    size: int
    at_least: bytes
    def __init__(self, oid: _Optional[bytes] = ..., size: _Optional[int] = ..., at_least: _Optional[bytes] = ...) -> None: ...

class HistoryReply(_message.Message):
    __slots__ = ("revisions",)
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    revisions: _containers.RepeatedCompositeFieldContainer[Revision]
    def __init__(self, revisions: _Optional[_Iterable[_Union[Revision, _Mapping]]] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("tid", "user", "description", "extension", "size", "no_data")
    TID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    NO_DATA_FIELD_NUMBER: _ClassVar[int]
    tid: bytes
    user: bytes
    description: bytes
    extension: bytes
    size: int
    no_data: bool
    def __init__(self, tid: _Optional[bytes] = ..., user: _Optional[bytes] = ..., description: _Optional[bytes] = ..., extension: _Optional[bytes] = ..., size: _Optional[int] = ..., no_data: _Optional[bool] = ...) -> None: ...

class ReadBarrier(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadPoint(_message.Message):
    __slots__ = ("last_tid",)
    LAST_TID_FIELD_NUMBER: _ClassVar[int]
    last_tid: bytes
    def __init__(self, last_tid: _Optional[bytes] = ...) -> None: ...

class ReadTransactions(_message.Message):
    __slots__ = ("start", "stop", "max_bytes", "at_least")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    start: bytes
    stop: bytes
    max_bytes: int
    at_least: bytes
    def __init__(self, start: _Optional[bytes] = ..., stop: _Optional[bytes] = ..., max_bytes: _Optional[int] = ..., at_least: _Optional[bytes] = ...) -> None: ...

class Transactions(_message.Message):
    __slots__ = ("transactions", "more")
    TRANSACTIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    transactions: _containers.RepeatedCompositeFieldContainer[CommittedTransaction]
    more: bool
    def __init__(self, transactions: _Optional[_Iterable[_Union[CommittedTransaction, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class CommittedTransaction(_message.Message):
    __slots__ = ("tid", "status", "user", "description", "extension", "records")
    TID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    tid: bytes
    status: bytes
    user: bytes
    description: bytes
    extension: bytes
    records: _containers.RepeatedCompositeFieldContainer[StoredRecord]
    def __init__(self, tid: _Optional[bytes] = ..., status: _Optional[bytes] = ..., user: _Optional[bytes] = ..., description: _Optional[bytes] = ..., extension: _Optional[bytes] = ..., records: _Optional[_Iterable[_Union[StoredRecord, _Mapping]]] = ...) -> None: ...

class StoredRecord(_message.Message):
    __slots__ = ("oid", "data", "no_data", "data_tid", "blob")
    OID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    NO_DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_TID_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    oid: bytes
    data: bytes
    no_data: bool
    data_tid: bytes
    blob: Blob
    def __init__(self, oid: _Optional[bytes] = ..., data: _Optional[bytes] = ..., no_data: _Optional[bool] = ..., data_tid: _Optional[bytes] = ..., blob: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class Size(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SizeReply(_message.Message):
    __slots__ = ("bytes", "objects", "packed")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    objects: int
    packed: bytes
    def __init__(self, bytes: _Optional[int] = ..., objects: _Optional[int] = ..., packed: _Optional[bytes] = ...) -> None: ...

class Pack(_message.Message):
    __slots__ = ("pack_id", "tid", "collect")
    PACK_ID_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    pack_id: bytes
    tid: bytes
    collect: bool
    def __init__(self, pack_id: _Optional[bytes] = ..., tid: _Optional[bytes] = ..., collect: _Optional[bool] = ...) -> None: ...

class PackProgress(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PackState(_message.Message):
    __slots__ = ("pack_id", "tid", "collect", "phase", "done", "total", "unit", "removed_records", "removed_objects", "removed_bytes", "problem")
    PACK_ID_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    REMOVED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    pack_id: bytes
    tid: bytes
    collect: bool
    phase: str
    done: int
    total: int
    unit: str
    removed_records: int
    removed_objects: int
    removed_bytes: int
    problem: str
    def __init__(self, pack_id: _Optional[bytes] = ..., tid: _Optional[bytes] = ..., collect: _Optional[bool] = ..., phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ..., removed_records: _Optional[int] = ..., removed_objects: _Optional[int] = ..., removed_bytes: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class BlobChunk(_message.Message):
    __slots__ = ("upload_id", "offset", "data", "crc32c")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    upload_id: bytes
    offset: int
    data: bytes
    crc32c: int
    def __init__(self, upload_id: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class BlobStored(_message.Message):
    __slots__ = ("upload_id", "size")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    upload_id: bytes
    size: int
    def __init__(self, upload_id: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("upload_id", "size", "crc32c", "same_as")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    SAME_AS_FIELD_NUMBER: _ClassVar[int]
    upload_id: bytes
    size: int
    crc32c: int
    same_as: bytes
    def __init__(self, upload_id: _Optional[bytes] = ..., size: _Optional[int] = ..., crc32c: _Optional[int] = ..., same_as: _Optional[bytes] = ...) -> None: ...

class LoadBlob(_message.Message):
    __slots__ = ("oid", "serial", "offset", "max_bytes", "at_least")
    OID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    oid: bytes
    serial: bytes
    offset: int
    max_bytes: int
    at_least: bytes
    def __init__(self, oid: _Optional[bytes] = ..., serial: _Optional[bytes] = ..., offset: _Optional[int] = ..., max_bytes: _Optional[int] = ..., at_least: _Optional[bytes] = ...) -> None: ...

class BlobData(_message.Message):
    __slots__ = ("data", "size", "crc32c")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    size: int
    crc32c: int
    def __init__(self, data: _Optional[bytes] = ..., size: _Optional[int] = ..., crc32c: _Optional[int] = ...) -> None: ...

class Transaction(_message.Message):
    __slots__ = ("user", "description", "extension", "records", "checks", "tid", "status")
    USER_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    user: bytes
    description: bytes
    extension: bytes
    records: _containers.RepeatedCompositeFieldContainer[NewRecord]
    checks: _containers.RepeatedCompositeFieldContainer[Check]
    tid: bytes
    status: bytes
    def __init__(self, user: _Optional[bytes] = ..., description: _Optional[bytes] = ..., extension: _Optional[bytes] = ..., records: _Optional[_Iterable[_Union[NewRecord, _Mapping]]] = ..., checks: _Optional[_Iterable[_Union[Check, _Mapping]]] = ..., tid: _Optional[bytes] = ..., status: _Optional[bytes] = ...) -> None: ...

class NewRecord(_message.Message):
    __slots__ = ("oid", "base_serial", "data", "no_data", "data_tid", "more", "blob")
    OID_FIELD_NUMBER: _ClassVar[int]
    BASE_SERIAL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    NO_DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_TID_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    oid: bytes
    base_serial: bytes
    data: bytes
    no_data: bool
    data_tid: bytes
    more: bool
    blob: Blob
    def __init__(self, oid: _Optional[bytes] = ..., base_serial: _Optional[bytes] = ..., data: _Optional[bytes] = ..., no_data: _Optional[bool] = ..., data_tid: _Optional[bytes] = ..., more: _Optional[bool] = ..., blob: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class Check(_message.Message):
    __slots__ = ("oid", "serial")
    OID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    oid: bytes
    serial: bytes
    def __init__(self, oid: _Optional[bytes] = ..., serial: _Optional[bytes] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("transaction_id", "number", "transaction")
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    transaction_id: bytes
    number: int
    transaction: bytes
    def __init__(self, transaction_id: _Optional[bytes] = ..., number: _Optional[int] = ..., transaction: _Optional[bytes] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("transaction_id", "transaction", "parts")
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    transaction_id: bytes
    transaction: bytes
    parts: int
    def __init__(self, transaction_id: _Optional[bytes] = ..., transaction: _Optional[bytes] = ..., parts: _Optional[int] = ...) -> None: ...

class VoteReply(_message.Message):
    __slots__ = ("conflicts",)
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    conflicts: _containers.RepeatedCompositeFieldContainer[Failure]
    def __init__(self, conflicts: _Optional[_Iterable[_Union[Failure, _Mapping]]] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("transaction_id",)
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    transaction_id: bytes
    def __init__(self, transaction_id: _Optional[bytes] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("transaction_id",)
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    transaction_id: bytes
    def __init__(self, transaction_id: _Optional[bytes] = ...) -> None: ...

class Aborted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Commit(_message.Message):
    __slots__ = ("transaction_id", "transaction", "parts")
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    transaction_id: bytes
    transaction: bytes
    parts: int
    def __init__(self, transaction_id: _Optional[bytes] = ..., transaction: _Optional[bytes] = ..., parts: _Optional[int] = ...) -> None: ...

class Committed(_message.Message):
    __slots__ = ("tid",)
    TID_FIELD_NUMBER: _ClassVar[int]
    tid: bytes
    def __init__(self, tid: _Optional[bytes] = ...) -> None: ...

class AllocateOids(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class OidRange(_message.Message):
    __slots__ = ("first", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: bytes
    count: int
    def __init__(self, first: _Optional[bytes] = ..., count: _Optional[int] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("commit", "allocate", "fragment", "pack", "collect", "blob", "expire_uploads")
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ALLOCATE_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_UPLOADS_FIELD_NUMBER: _ClassVar[int]
    commit: CommitCommand
    allocate: AllocateCommand
    fragment: FragmentCommand
    pack: PackCommand
    collect: CollectCommand
    blob: BlobCommand
    expire_uploads: ExpireUploadsCommand
    def __init__(self, commit: _Optional[_Union[CommitCommand, _Mapping]] = ..., allocate: _Optional[_Union[AllocateCommand, _Mapping]] = ..., fragment: _Optional[_Union[FragmentCommand, _Mapping]] = ..., pack: _Optional[_Union[PackCommand, _Mapping]] = ..., collect: _Optional[_Union[CollectCommand, _Mapping]] = ..., blob: _Optional[_Union[BlobCommand, _Mapping]] = ..., expire_uploads: _Optional[_Union[ExpireUploadsCommand, _Mapping]] = ...) -> None: ...

class PackCommand(_message.Message):
    __slots__ = ("pack_id", "tid", "collect")
    PACK_ID_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    pack_id: bytes
    tid: bytes
    collect: bool
    def __init__(self, pack_id: _Optional[bytes] = ..., tid: _Optional[bytes] = ..., collect: _Optional[bool] = ...) -> None: ...

class CollectCommand(_message.Message):
    __slots__ = ("pack_id", "oids", "last")
    PACK_ID_FIELD_NUMBER: _ClassVar[int]
    OIDS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    pack_id: bytes
    oids: bytes
    last: bool
    def __init__(self, pack_id: _Optional[bytes] = ..., oids: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class BlobCommand(_message.Message):
    __slots__ = ("upload_id", "offset", "data", "stamp")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    upload_id: bytes
    offset: int
    data: bytes
    stamp: int
    def __init__(self, upload_id: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., stamp: _Optional[int] = ...) -> None: ...

class ExpireUploadsCommand(_message.Message):
    __slots__ = ("stamp",)
    STAMP_FIELD_NUMBER: _ClassVar[int]
    stamp: int
    def __init__(self, stamp: _Optional[int] = ...) -> None: ...

class CommitCommand(_message.Message):
    __slots__ = ("transaction_id", "tid", "transaction", "fragments")
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    transaction_id: bytes
    tid: bytes
    transaction: bytes
    fragments: int
    def __init__(self, transaction_id: _Optional[bytes] = ..., tid: _Optional[bytes] = ..., transaction: _Optional[bytes] = ..., fragments: _Optional[int] = ...) -> None: ...

class FragmentCommand(_message.Message):
    __slots__ = ("transaction_id", "tid", "number", "transaction")
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    TID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    transaction_id: bytes
    tid: bytes
    number: int
    transaction: bytes
    def __init__(self, transaction_id: _Optional[bytes] = ..., tid: _Optional[bytes] = ..., number: _Optional[int] = ..., transaction: _Optional[bytes] = ...) -> None: ...

class AllocateCommand(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...
