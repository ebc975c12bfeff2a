"""The real Envoy, for tests of the gateway: its package is an extra, which a user may lack."""

import os

import pytest

from services.gateway.envoy import find_envoy


def needed_envoy() -> str:
    """Return the program; without it skip, or where everything is to be checked fail."""
    try:
        return find_envoy("")
    except OSError as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
