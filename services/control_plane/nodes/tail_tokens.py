"""Resume tokens of an app's log: one node's own, or of each replica that of its node. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

from services.rpc.errors import SupervisorError

_PREFIX = "r."
_MOST = 1_000


def written(tokens: Mapping[int, str]) -> str:
    """Return the token of a stream; `tokens` are those of its replicas' nodes, by number."""
    if set(tokens) <= {0}:
        return tokens.get(0, "")
    told = json.dumps({str(replica): token for replica, token in sorted(tokens.items())})
    return _PREFIX + base64.urlsafe_b64encode(told.encode()).decode()


def read(token: str) -> dict[int, str]:
    """Return the tokens of each replica's node, by number. Raises SupervisorError INVALID_RESUME_TOKEN."""
    if not token.startswith(_PREFIX):
        return {0: token} if token else {}
    try:
        told = json.loads(base64.urlsafe_b64decode(token.removeprefix(_PREFIX)))
        tokens = {int(replica): str(one) for replica, one in told.items()}
    except (binascii.Error, ValueError, AttributeError, RecursionError):
        tokens = {}
    if not 0 < len(tokens) <= _MOST or min(tokens) < 0:
        raise SupervisorError("INVALID_RESUME_TOKEN", "The resume token is not of a stream of this log.")
    return tokens
