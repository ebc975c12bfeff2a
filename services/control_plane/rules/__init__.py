"""The pure rules of the catalog: names, limits, defaults, masks, filters, orders, tokens.

No I/O, no gRPC and no store; what breaks a rule is told as `Violation`s or a `SupervisorError`.
"""
