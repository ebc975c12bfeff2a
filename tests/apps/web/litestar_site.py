"""A Litestar app object with an async and a sync handler."""

from litestar import Litestar, get


@get("/")
async def hello() -> str:
    return "hello from litestar"


@get("/sync", sync_to_thread=True)
def in_thread() -> str:
    return "hello from a thread"


app = Litestar([hello, in_thread])
