"""Thin gRPC adapters over the core: a request in, one call, a response out."""
