"""Datasette, as published, over the app's own database."""

import ledger
from datasette.app import Datasette


def create_app(context):
    ledger.texts(context.database_url)  # Datasette serves files that exist
    file = context.database_url.removeprefix("sqlite:///")
    return Datasette(files=[file], metadata={"title": context.env["MOTTO"]}, settings=context.config).app()
