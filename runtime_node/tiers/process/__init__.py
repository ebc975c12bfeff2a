"""The PROCESS tier: each app in a process of its own, forked from a warm zygote.

`zygote` (node side) ↔ `zygote_server` (the zygote process) ↔ `guest` (one app); `proxy` carries requests,
`link` reports and commands, `beat` the sign of life. Nothing here imports gRPC, and nothing trusts a guest.
"""
