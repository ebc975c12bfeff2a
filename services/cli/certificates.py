"""Commands on the certificates with which a gateway answers HTTPS."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from appsupervisor.catalog.v1 import certificates_pb2 as pb
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from services.cli.apps import confirm
from services.cli.client import PAGE, short
from services.cli.errors import CliError, Exit
from services.cli.output import Column, Format, age, span
from services.cli.session import Session, session_of


def _state(certificate: pb.Certificate) -> str:
    """Return one word: whether clients take it, and for how long."""
    met = {it.type: it.status == Condition.MET for it in certificate.conditions}
    if not met.get("Valid", False):
        return next((it.reason for it in certificate.conditions if it.type == "Valid"), "-")
    return "ExpiresSoon" if met.get("ExpiresSoon") else "Valid"


def _left(certificate: pb.Certificate) -> str:
    left = certificate.expire_time.ToSeconds() - time.time()
    return span(left) if left > 0 else "-"


CERTIFICATES: Sequence[Column[pb.Certificate]] = (
    Column("NAME", lambda it: short(it.name)),
    Column("STATE", _state),
    Column("LEFT", _left),
    Column("DOMAINS", lambda it: ", ".join(it.domains[:4]) + (", …" if len(it.domains) > 4 else "")),
    Column("AGE", lambda it: age(it.create_time)),
    Column("ISSUER", lambda it: it.issuer, wide=True),
    Column("FINGERPRINT", lambda it: it.fingerprint, wide=True),
)

certificates = typer.Typer(no_args_is_help=False, invoke_without_command=True)

NameArgument = Annotated[str, typer.Argument(help="Id of the certificate.", show_default=False)]
ChainFlag = Annotated[
    Path, typer.Option("--chain", "-f", help="File with the certificate, then those that certify it, in PEM.")
]
KeyFlag = Annotated[Path, typer.Option("--key", "-k", help="File with its private key in PEM; - for stdin.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(certificates, name="certificates", rich_help_panel="Fleet")


@certificates.callback()
def _certificates(
    context: typer.Context,
    filter_text: Annotated[
        str, typer.Option("--filter", help="AIP-160, such as domains:shop.example.com")
    ] = "",
) -> None:
    """Show certificates, a line each; upload, replace and forget them.

    Example: appsupervisor certificates -o wide
    """
    if context.invoked_subcommand is None:
        session = session_of(context)
        none = "Nothing matches." if filter_text else "None is kept."
        session.output.many(list(_all(session, filter_text)), CERTIFICATES, none=none)


@certificates.command("create")
def create(context: typer.Context, name: NameArgument, chain: ChainFlag, key: KeyFlag) -> None:
    """Upload a certificate with its private key.

    Example: appsupervisor certificates create shop -f fullchain.pem -k privkey.pem
    """
    session = session_of(context)
    request = pb.CreateCertificateRequest(
        certificate_id=name,
        certificate=pb.Certificate(chain_pem=_read(chain), private_key_pem=_read(key)),
        request_id=str(uuid.uuid4()),
    )
    made = session.client.call(session.client.certificates.CreateCertificate, request)
    session.output.one(made, CERTIFICATES)


@certificates.command("replace")
def replace(context: typer.Context, name: NameArgument, chain: ChainFlag, key: KeyFlag) -> None:
    """Replace a certificate by a renewed one; new connections get it, open ones go on.

    Example: appsupervisor certificates replace shop -f fullchain.pem -k privkey.pem
    """
    session = session_of(context)
    request = pb.UpdateCertificateRequest(
        certificate=pb.Certificate(name=_full(name), chain_pem=_read(chain), private_key_pem=_read(key)),
        request_id=str(uuid.uuid4()),
    )
    request.update_mask.paths.extend(["chain_pem", "private_key_pem"])
    renewed = session.client.call(session.client.certificates.UpdateCertificate, request)
    session.output.one(renewed, CERTIFICATES)


@certificates.command("describe")
def describe(context: typer.Context, name: NameArgument) -> None:
    """Show a certificate: names, issuer, times, conditions. Its private key is never shown.

    Example: appsupervisor certificates describe shop
    """
    session = session_of(context)
    request = pb.GetCertificateRequest(name=_full(name))
    certificate = session.client.call(session.client.certificates.GetCertificate, request)
    if session.output.form is not Format.TABLE:
        session.output.one(certificate, CERTIFICATES)
        return
    table = Table.grid(padding=(0, 2))
    for label, value in (
        ("Name", certificate.name),
        ("Domains", ", ".join(certificate.domains)),
        ("Issuer", certificate.issuer),
        ("Valid from", certificate.start_time.ToJsonString()),
        ("Valid until", f"{certificate.expire_time.ToJsonString()} ({_left(certificate)} left)"),
        ("Fingerprint", certificate.fingerprint),
        *((it.type, f"{Condition.Status.Name(it.status)}: {it.message}") for it in certificate.conditions),
    ):
        table.add_row(label, value)
    session.output.console.print(table)


@certificates.command("delete")
def delete(
    context: typer.Context,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget a certificate and its key. Names that no other certificate has are no longer served over HTTPS.

    Example: appsupervisor certificates delete shop --yes
    """
    session = session_of(context)
    if not yes:
        confirm(session, f"Forget the certificate {name} and its private key?")
    request = pb.DeleteCertificateRequest(name=_full(name))
    session.client.call(session.client.certificates.DeleteCertificate, request)
    session.output.note(f"{name} is forgotten.")


def _all(session: Session, filter_text: str) -> Iterator[pb.Certificate]:
    request = pb.ListCertificatesRequest(page_size=PAGE, filter=filter_text)
    for page in session.client.pages(session.client.certificates.ListCertificates, request):
        yield from page.certificates


def _full(name: str) -> str:
    return name if "/" in name else f"certificates/{name}"


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise CliError(f"{path} cannot be read: {type(unreadable).__name__}.", Exit.USAGE) from None
