"""Turns a fault of an app's code into a typed error with a traceback that starts in the app's code.

Never keeps the exception itself: its frames would pin the app's modules for as long as the error lives.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path

from runtime_node.isolation.refusals import RefusedError
from runtime_node.masking import Masker
from runtime_node.raised import cut, encodable, message_of, type_name
from services.rpc.errors import SupervisorError

MAX_DETAIL_BYTES = 16 * 1024
_CUT = "\n  […]\n"
_OWN = str(Path(__file__).resolve().parents[1]) + "/"
_MACHINERY = ("<frozen importlib", "<frozen runpy", "/importlib/__init__.py", "/asyncio/", "/threading.py")
_CAUSE, _CONTEXT = (vars(BaseException)[name] for name in ("__cause__", "__context__"))
# A secret shorter than this is a word that occurs by chance; blanking it would garble the traceback.
_SHORTEST_SECRET = 4


def failure(
    reason: str,
    message: str,
    fault: BaseException | None = None,
    *,
    secrets: Iterable[str] = (),
) -> SupervisorError:
    """Return the error for `fault` with its traceback in `metadata["detail"]`, secrets blanked out."""
    metadata = {} if fault is None else {"detail": describe(fault, secrets)}
    return SupervisorError(reason, encodable(redact(message, secrets)), metadata=metadata)


def describe(fault: BaseException, secrets: Iterable[str] = ()) -> str:
    """Format `fault` as a traceback of at most 16 KiB, without our own leading frames or any values."""
    try:
        summary = traceback.TracebackException.from_exception(fault, limit=-100, compact=True)
        _trim(summary)
        text = "".join(summary.format())
    except BaseException:  # noqa: BLE001 - of the app's
        text = f"{type_name(fault)}: {message_of(fault)}"
    return bounded(cut(text).rstrip(), secrets)


def one_line(fault: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return `Type: first line of the message`, at most 300 characters, for an error's sentence."""
    name = type_name(fault)
    # Before it is cut: of half a secret nobody could tell that it is one.
    text = redact(message_of(fault).strip(), secrets)
    line = text.splitlines()[0] if text else ""
    return f"{name}: {line}"[:300] if line else name


def with_refusal(fault: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return `one_line`, and behind it what the app was refused, if a library has wrapped that fault."""
    line = one_line(fault, secrets)
    refused = _refused(fault)
    return line if refused is None else f"{line}, caused by {one_line(refused, secrets)}"


def _refused(fault: BaseException) -> RefusedError | None:
    seen: set[int] = set()
    cause: BaseException | None = fault
    while cause is not None and id(cause) not in seen:
        # By its class, and as it was raised: an exception may have attributes of its own making.
        if issubclass(type(cause), RefusedError) and cause is not fault:
            return cause  # type: ignore[return-value]
        seen.add(id(cause))
        cause = _CAUSE.__get__(cause) or _CONTEXT.__get__(cause)
    return None


def redact(text: str, secrets: Iterable[str]) -> str:
    """Replace each secret's value in `text` by `***`, also as it looks in a repr, in JSON and in a URL."""
    return Masker(secrets, _SHORTEST_SECRET)(text)


def _trim(whole: traceback.TracebackException) -> None:
    seen: set[int] = set()
    left = [whole]
    while left:
        summary = left.pop()
        if id(summary) in seen:
            continue
        seen.add(id(summary))
        first = next((i for i, frame in enumerate(summary.stack) if not _is_ours(frame)), len(summary.stack))
        kept = [frame for frame in summary.stack[first:] if not _is_import(frame)]
        summary.stack = traceback.StackSummary.from_list(kept)
        chained = (summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ()))
        left += [other for other in chained if other is not None]


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_OWN) or any(mark in frame.filename for mark in _MACHINERY)


def _is_import(frame: traceback.FrameSummary) -> bool:
    return "<frozen importlib" in frame.filename or frame.filename.startswith(_OWN + "loader/")


def bounded(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a traceback without secrets, cut to 16 KiB from its middle."""
    text = redact(text, secrets)
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= MAX_DETAIL_BYTES:
        return data.decode()
    # The end names the fault and the place it was raised at; the beginning says where the app began.
    tail = MAX_DETAIL_BYTES * 3 // 4
    head = MAX_DETAIL_BYTES - tail - len(_CUT.encode())
    return data[:head].decode(errors="ignore") + _CUT + data[-tail:].decode(errors="ignore")
