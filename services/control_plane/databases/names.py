"""What an app's database and its logins are called on their server, and the URL that leads there. Pure.

Names hold the app's uid, so that no app is ever given what was another's of the same name.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit, urlunsplit

_PREFIX = "as_"
_SHOWN = 15
"""Characters of the app's id in its names: with uid and epoch they stay below PostgreSQL's 63 bytes."""


def owner_of(app: str, uid: str) -> str:
    """Return the name of the role that owns all that is an app's, which its schema or database has, too."""
    return f"{_PREFIX}{app.removeprefix('apps/')[:_SHOWN]}_{uid.replace('-', '')}"


def login_of(owner: str, epoch: int) -> str:
    """Return the name of the role under which an epoch of an app logs in."""
    return f"{owner}_e{epoch}"


def move_login_of(owner: str, word: str) -> str:
    """Return the name of the role under which a move reads or writes; `word` has 7 characters."""
    return f"{owner}_em{word}"  # among those of epochs, and shut out with them


def password_of(key: bytes, login: str) -> str:
    """Return a login's password: random to who has not the server's key, and the same at each repeat."""
    return hmac.new(key, login.encode(), hashlib.sha256).hexdigest()


def mark_of(app: str, uid: str) -> str:
    """Return how the comment on an owner begins, which tells whose it is; who leads follows."""
    return f"AppSupervisor: {app} {uid} leader "


def url_of(admin_url: str, login: str, password: str, database: str, address: str = "") -> str:
    """Return the URL of a database for a login: the administrator's scheme, hosts and parameters.

    `address` (`host:port`) takes the place of the hosts, if it is not empty.
    """
    parts = urlsplit(admin_url)
    hosts = address or parts.netloc.rpartition("@")[2]
    own = {"user", "password", "dbname"} | ({"host", "hostaddr", "port"} if address else set())
    kept = [pair for pair in parts.query.split("&") if pair and pair.partition("=")[0] not in own]
    return urlunsplit((parts.scheme, f"{login}:{password}@{hosts}", f"/{database}", "&".join(kept), ""))


def libpq_url(admin_url: str) -> str:
    """Return an administrator's URL as libpq reads it: without a driver in its scheme."""
    scheme, _, rest = admin_url.partition("://")
    return f"{scheme.partition('+')[0]}://{rest}"
