"""The catalog's tables. What is asked for by value is a column; the rest is the serialized message.

Times are microseconds since the Unix epoch. A change here needs a migration; a test compares both.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, ForeignKey, LargeBinary, Table
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

SCHEMA = registry()
"""Of its own, so that apps imported beside the control plane cannot clash with its table names."""

CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}
"""SQLite keeps the row in the primary key's tree: one tree to write, and a range is read in order."""


def _big(**arguments: Any) -> Any:
    return Field(sa_type=BigInteger, **arguments)


class CatalogTable(SQLModel, registry=SCHEMA):
    """Base of the catalog's tables."""

    model_config = {"defer_build": True}  # rows are not validated: what does it need not be made


class MetaRow(CatalogTable, table=True):
    """The one row about the catalog itself."""

    __tablename__ = "meta"

    id: int = Field(primary_key=True)
    catalog_id: str
    revision: int = _big()
    """The newest revision."""
    oldest_revision: int = _big()
    """The newest revision that the change log has forgotten; a reader can resume after it."""
    time: int = _big()
    """Time of the newest transaction."""
    history: str
    """The history that the newest revisions belong to."""
    term: int = _big()
    """The newest leader's term: beside the revision, so that one lock guards both."""


class HistoryRow(CatalogTable, table=True):
    """One history: what one connection began, and others went on with."""

    __tablename__ = "histories"

    id: str = Field(primary_key=True)
    after: int = _big()
    """The revision after which it began."""
    time: int = _big()


class WriterRow(CatalogTable, table=True):
    """One writing process, and its last commit: how it learns what became of one that was never answered."""

    __tablename__ = "writers"

    id: str = Field(primary_key=True)
    number: int = _big()
    """Of its last commit, counted by itself."""
    revision: int = _big()
    time: int = _big()


class LeadershipRow(CatalogTable, table=True):
    """The one row about who leads; `meta.term` is the term that counts."""

    __tablename__ = "leadership"

    id: int = Field(primary_key=True)
    holder: str
    """The leading process; empty if nobody has led or the last one has left."""
    address: str
    """Where it serves."""
    term: int = _big()
    expire_time: int = _big()
    """By the database's clock; until then nobody else may lead."""


class ChangeRow(CatalogTable, table=True):
    """The change log: which keys each revision changed."""

    __tablename__ = "changes"
    __table_args__: ClassVar[Any] = CLUSTERED

    revision: int = _big(primary_key=True)
    kind: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    deleted: bool
    time: int = _big()


class EnvironmentRow(CatalogTable, table=True):
    """One environment."""

    __tablename__ = "environments"

    name: str = Field(primary_key=True)
    body: bytes = Field(sa_type=LargeBinary)
    revision: int = _big()


class DatabaseServerRow(CatalogTable, table=True):
    """One server on which apps have databases of their own."""

    __tablename__ = "database_servers"

    name: str = Field(primary_key=True)
    body: bytes = Field(sa_type=LargeBinary)
    admin_url: str
    key: bytes = Field(sa_type=LargeBinary)
    revision: int = _big()


class CertificateRow(CatalogTable, table=True):
    """One TLS certificate with its private key."""

    __tablename__ = "certificates"

    name: str = Field(primary_key=True)
    body: bytes = Field(sa_type=LargeBinary)
    private_key: str
    revision: int = _big()


class NodeRow(CatalogTable, table=True):
    """One node."""

    __tablename__ = "nodes"

    name: str = Field(primary_key=True)
    environment: str = Field(foreign_key="environments.name", index=True)
    body: bytes = Field(sa_type=LargeBinary)
    revision: int = _big()


class AppRow(CatalogTable, table=True):
    """One app."""

    __tablename__ = "apps"

    name: str = Field(primary_key=True)
    uid: str = Field(unique=True)
    environment: str = Field(foreign_key="environments.name", index=True)
    desired_state: int
    generation: int = _big()
    target_generation: int = _big()
    target_epoch: int = _big()
    failed_generation: int | None = _big(default=None)
    failed_epoch: int | None = _big(default=None)
    deleting: int
    spec: bytes = Field(sa_type=LargeBinary)
    status: bytes = Field(sa_type=LargeBinary)
    create_time: int = _big()
    update_time: int = _big()
    history: str
    revision: int = _big()


class AppDomainRow(CatalogTable, table=True):
    """One custom domain and the app that has it."""

    __tablename__ = "app_domains"
    __table_args__: ClassVar[Any] = CLUSTERED

    domain: str = Field(primary_key=True)
    app: str = Field(
        sa_column=Column(ForeignKey("apps.name", ondelete="CASCADE"), nullable=False, index=True)
    )


class PlacementRow(CatalogTable, table=True):
    """One copy of an app on one node."""

    __tablename__ = "placements"

    name: str = Field(primary_key=True)
    app: str = Field(
        sa_column=Column(ForeignKey("apps.name", ondelete="CASCADE"), nullable=False, index=True)
    )
    app_uid: str
    replica: int
    generation: int = _big()
    epoch: int = _big()
    node: str
    role: int
    spec: bytes = Field(sa_type=LargeBinary)
    why: str
    has_data: bool
    since: int = _big()
    revision: int = _big()


class RetainedDataRow(CatalogTable, table=True):
    """What an app has left on a node."""

    __tablename__ = "retained_data"

    name: str = Field(primary_key=True)
    generation: int = _big()
    body: bytes = Field(sa_type=LargeBinary)
    revision: int = _big()


class OperationRow(CatalogTable, table=True):
    """One long-running operation."""

    __tablename__ = "operations"

    name: str = Field(primary_key=True)
    app: str
    app_uid: str
    verb: str
    goal_generation: int = _big()
    goal_epoch: int = _big()
    progress: bytes = Field(sa_type=LargeBinary)
    """The operation's metadata message."""
    create_time: int = _big()
    deadline: int = _big()
    done: bool
    error: bytes | None = Field(default=None, sa_type=LargeBinary)
    response: bytes | None = Field(default=None, sa_type=LargeBinary)
    expire_time: int = _big(index=True)
    revision: int = _big()


class BatchRow(CatalogTable, table=True):
    """What is left to do of a batch operation."""

    __tablename__ = "batches"

    name: str = Field(primary_key=True)
    requests: bytes = Field(sa_type=LargeBinary)
    finished: int
    results: bytes = Field(sa_type=LargeBinary)
    revision: int = _big()


class AppEventRow(CatalogTable, table=True):
    """One entry of an app's timeline."""

    __tablename__ = "app_events"
    __table_args__: ClassVar[Any] = CLUSTERED

    app: str = Field(primary_key=True)
    id: int = _big(primary_key=True, index=True)
    """Its command's revision times `EVENTS_PER_COMMAND`, plus its number in the command."""
    body: bytes = Field(sa_type=LargeBinary)


class RequestRow(CatalogTable, table=True):
    """The first result of a request that carried a request id."""

    __tablename__ = "requests"
    __table_args__: ClassVar[Any] = CLUSTERED

    request_id: str = Field(primary_key=True)
    digest: str
    response: bytes = Field(sa_type=LargeBinary)
    expire_time: int = _big(index=True)


def table_of(row: type[CatalogTable]) -> Table:
    """Return the Core table of a row class: rows are written in bulk, past the unit of work."""
    return SCHEMA.metadata.tables[str(row.__tablename__)]
