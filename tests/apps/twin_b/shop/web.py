"""Imports in every way an app may: absolute, relative, late, by a string, from another thread."""

from __future__ import annotations

import importlib
import inspect
import logging.config
import pickle
import sys
import threading
import typing

from fastapi import FastAPI
from werkzeug.utils import import_string

import shop
import shop.models as models
from shop import WHO
from shop.models import Basket, Item, Receipt

from . import models as relative_models


def create_app(context):
    app = FastAPI()

    @app.get("/who")
    async def who():
        return {"who": WHO, "package": shop.WHO}

    @app.get("/late")
    async def late():
        import shop.late

        return shop.late.WORD

    @app.get("/late-in-thread")
    def late_in_thread():
        from shop.late import WORD

        words = [WORD]

        def work():
            from shop import settings

            words.append(settings.WORD)
            words.append(importlib.import_module("shop.settings").WORD)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return words

    @app.get("/strings")
    async def strings():
        return [
            importlib.import_module("shop.settings").WORD,
            importlib.import_module(".settings", "shop").WORD,
            importlib.import_module(".settings", __package__).WORD,
            import_string("shop.settings").WORD,
            import_string("shop.settings:WORD"),
            logging.config.BaseConfigurator({}).resolve("shop.settings.WORD"),
        ]

    @app.get("/types")
    async def types():
        basket = Basket.model_validate({"items": [{f"name_{WHO[-1]}": "tea"}], "owner": {"name": "ann"}})
        hints = typing.get_type_hints(Receipt)
        return {
            "same": models is relative_models is sys.modules[Item.__module__],
            "owner": typing.get_args(hints["owner"])[0] is models.Owner,
            "fields": sorted(Item.model_fields),
            "tables": [list(table.columns.keys()) for table in Item.metadata.tables.values()],
            "basket": basket.model_dump(),
            "source": "twin" if "twin" in inspect.getsourcefile(Item) else "",
        }

    @app.get("/pickle")
    async def pickled():
        receipt = pickle.loads(pickle.dumps(Receipt(3)))
        return {"total": receipt.total, "own": type(receipt) is Receipt}

    @app.post("/baskets")
    async def put(basket: Basket) -> Basket:
        return basket

    return app
