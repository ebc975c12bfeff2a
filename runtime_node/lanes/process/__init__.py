"""The PROCESS lane: each app in a process of its own, forked from a warm zygote.

`zygote` (node side) ↔ `nursery` (the zygote process) ↔ `guest` (one app); `proxy` carries requests.
Nothing here but `lane` and `proxy` runs in the node alone, and nothing imports gRPC.
"""
