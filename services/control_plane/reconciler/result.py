"""What comes of one pass, for whoever decides who passes when."""

from __future__ import annotations

from dataclasses import dataclass

from services.rpc.errors import SupervisorError


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a pass."""

    again: bool = False
    """There is more to do at once."""
    after: float = 0.0
    """There is more to do, after so many seconds; 0 if there isn't."""
    failure: SupervisorError | None = None
    """What is worth another try, after a pause that grows."""
    settled: int = 0
    """Revision of the app that the pass has stored, and after which it has left nothing to do; 0 for none.

    That it was stored is no news to the reconciler then.
    """
    began: bool = False
    """Something was started whose node tells of it in a moment; nothing has ended."""
