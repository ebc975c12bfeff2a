"""A chat room: WebSockets on Starlette. Each instance is a room of its own."""

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

PAGE = """<!doctype html><title>Chat</title><ul id=said></ul><form><input name=text autofocus></form><script>
const socket = new WebSocket(location.href.replace(/^http/, 'ws') + 'ws');
socket.onmessage = (event) => {
  const line = document.createElement('li');
  line.textContent = event.data;
  said.append(line);
};
document.forms[0].onsubmit = (event) => {
  event.preventDefault();
  socket.send(event.target.text.value);
  event.target.reset();
};
</script>"""


def create_app(context):
    guests: set[WebSocket] = set()
    said = 0

    async def talk(socket: WebSocket) -> None:
        nonlocal said
        await socket.accept()
        guests.add(socket)
        try:
            async for text in socket.iter_text():
                said += 1
                for guest in list(guests):
                    try:
                        await guest.send_text(text)
                    except (RuntimeError, WebSocketDisconnect):
                        guests.discard(guest)
        finally:
            guests.discard(socket)

    async def page(_) -> HTMLResponse:
        return HTMLResponse(PAGE)

    async def figures(_) -> JSONResponse:
        return JSONResponse({"room": context.app, "said": said, "guests": len(guests)})

    return Starlette(routes=[Route("/", page), Route("/figures", figures), WebSocketRoute("/ws", talk)])
