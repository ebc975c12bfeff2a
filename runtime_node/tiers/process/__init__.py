"""The PROCESS tier: each app in a process of its own, forked from a warm zygote.

`zygote` (node side) ↔ `zygote server` (the zygote process) ↔ `guest` (one app); `proxy` carries requests.
Nothing here but `tier` and `proxy` runs in the node alone, and nothing imports gRPC.
"""
