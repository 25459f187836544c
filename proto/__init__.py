"""The wire: protobuf messages and gRPC stubs, generated from the `.proto` files beside this one."""

#: Newest and oldest version that this software speaks. Peers and clients with none of these are refused at their
#: first message; of several the newest that both speak is used.
PROTOCOL_VERSION = 1
MIN_PROTOCOL_VERSION = 1
