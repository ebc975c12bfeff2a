"""An app that makes what belongs to a running loop as it is imported."""

import asyncio

import chaos

app = chaos.app
made_in = asyncio.get_running_loop()
