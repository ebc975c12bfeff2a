from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Field, SQLModel


class Item(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name_b: str


class Basket(SQLModel):
    items: list[Item] = []
    owner: Owner | None = None


class Owner(SQLModel):
    name: str


@dataclass
class Receipt:
    total: int
    owner: Owner | None = None
