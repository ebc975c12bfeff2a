"""A Starlette app object and a factory without parameters."""

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def hello(request):
    return PlainTextResponse("hello from starlette")


def create_app():
    return Starlette(routes=[Route("/", hello)])


app = create_app()
