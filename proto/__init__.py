"""The wire: protobuf messages and gRPC stubs, generated from the `.proto` files beside this one."""

#: Peers and clients with another version are refused at their first message.
PROTOCOL_VERSION = 1
