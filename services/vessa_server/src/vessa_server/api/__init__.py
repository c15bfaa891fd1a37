"""Transports: gRPC and REST over one service."""
