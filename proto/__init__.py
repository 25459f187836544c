"""The wire: protobuf messages and gRPC stubs, generated from the `.proto` files beside this one."""

#: Peers and clients with another version are refused at their first message.
PROTOCOL_VERSION = 1

#: A serialized Transaction above this travels in Parts, each at most as large, but for a single larger record.
PART_BYTES = 256 << 10
#: Records and checks in one Part together, at most.
PART_OBJECTS = 1000
#: From this level of a cluster on (Welcome.level) its log may hold fragments.
PARTS_LEVEL = 1
