"""Envoy's own administration, over a socket that only this user may use. Blocks; any thread."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from urllib.parse import quote

ADMIN_SECONDS = 2.0


class _LocalConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=ADMIN_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ADMIN_SECONDS)
        self.sock.connect(str(self._path))


class EnvoyAdmin:
    """Asks the Envoy whose administration listens at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, target: str, method: str = "GET") -> str:
        """Return the body of the answer. Raises OSError, also for one that is not 200 or comes too late."""
        connection = _LocalConnection(self.path)
        try:
            connection.request(method, target)
            answer = connection.getresponse()
            body = answer.read().decode("utf-8", "replace")
        except http.client.HTTPException as broken:
            raise OSError(f"Envoy's administration broke off: {broken!r}") from broken
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"Envoy's administration answers {answer.status}: {body[:200]}")
        return body

    def is_live(self) -> bool:
        """Tell whether it serves."""
        try:
            return self.ask("/ready").strip() == "LIVE"
        except OSError:
            return False

    def count(self, name: str) -> int:
        """Return one of its figures by its full name; 0 for one that it does not have. Raises OSError."""
        found = json.loads(self.ask(f"/stats?format=json&filter={quote(f'^{name}$')}"))["stats"]
        return sum(int(one.get("value", 0)) for one in found if one.get("name") == name)

    def metrics(self, pattern: str) -> str:
        """Return the figures whose names match, as Prometheus reads them. Raises OSError."""
        return self.ask(f"/stats/prometheus?usedonly&filter={quote(pattern)}")
