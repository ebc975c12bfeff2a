"""python-socketio's ASGI app, as published, with one event. It answers under any path."""

import ledger
import socketio


def create_app(context):
    server = socketio.AsyncServer(async_mode="asgi")

    @server.event
    async def add(sid, text):
        ledger.add(context.database_url, text)
        return ledger.texts(context.database_url)

    return socketio.ASGIApp(server, socketio_path=None)
