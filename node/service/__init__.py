"""What a node exposes through gRPC, and its metrics."""
