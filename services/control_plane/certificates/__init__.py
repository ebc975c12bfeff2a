"""TLS certificates: what is asked and told about them. Free of gRPC."""
