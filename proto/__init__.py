"""The wire: protobuf messages and gRPC stubs, generated from the `.proto` files beside this one."""

#: Newest and oldest version that this software speaks. Peers and clients with none of these are refused at their
#: first message; of several the newest that both speak is used.
PROTOCOL_VERSION = 1
MIN_PROTOCOL_VERSION = 1

#: A serialized Transaction above this travels in Parts, each at most as large, but for a single larger record.
PART_BYTES = 256 << 10
#: Records and checks in one Part together, at most.
PART_OBJECTS = 1000
#: From this level of a cluster on (Welcome.level) its log may hold fragments.
PARTS_LEVEL = 1
#: From this level on there are undo, deletes, packs and blobs.
HISTORY_LEVEL = 2

#: A blob travels, and is stored, in chunks of at most so many bytes.
BLOB_CHUNK_BYTES = 256 << 10
