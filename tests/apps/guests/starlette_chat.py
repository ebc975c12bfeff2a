"""A Starlette app with a WebSocket: what one client says is kept and told to all."""

import asyncio
import os

import ledger
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect


def create_app(context):
    listeners = set()

    async def say(text):
        await asyncio.to_thread(ledger.add, context.database_url, text)
        for listener in list(listeners):
            await listener.send_text(text)

    async def notes(request):
        if request.method == "POST":
            await say((await request.body()).decode())
            return Response(status_code=201)
        return JSONResponse(await asyncio.to_thread(ledger.texts, context.database_url))

    async def about(request):
        path = request.url_for("about").path
        return JSONResponse({"motto": context.env.get("MOTTO", ""), "self": path, "pid": os.getpid()})

    async def room(websocket):
        await websocket.accept()
        listeners.add(websocket)
        try:
            while True:
                await say(await websocket.receive_text())
        except WebSocketDisconnect:
            pass
        finally:
            listeners.discard(websocket)

    routes = [
        Route("/notes", notes, methods=["GET", "POST"]),
        Route("/about", about, name="about"),
        WebSocketRoute("/room", room),
    ]
    return Starlette(routes=routes)
