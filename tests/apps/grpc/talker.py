"""A gRPC service that tells which of its instances answers, in one answer or in one for each message."""

from calculator import Calculator


class Talker(Calculator):
    """`Say` (unary) and `Talk` (both by turns)."""

    def __init__(self, instance):
        super().__init__()
        self._name = instance.rpartition("/")[2].encode()

    async def say(self, call):
        async for _ in call.messages():
            await call.answer(self._name)
        await call.end()

    async def talk(self, call):
        async for message in call.messages():
            await call.answer(self._name + b" " + message)
        await call.end()


def create_app(context):
    return Talker(context.instance)
