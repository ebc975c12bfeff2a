"""The local stack: a control plane, a node and two demo apps on this machine, as `make up` runs them.

Talks to both only as any user would: by their flags, by gRPC and by HTTP.
"""
