"""gRPC: the wire contract, health and reflection."""
