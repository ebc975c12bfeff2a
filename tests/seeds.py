"""The seed of everything that tests draw: the same in every run, a new one where CHAOS_ROUNDS is set.

`make chaos` and CI's slow part set that; CHAOS_SEED repeats such a run. Each run prints its seed first.
"""

import os
import secrets

NEW = "CHAOS_ROUNDS" in os.environ
# Written down, so that processes that share the tests among them draw from one seed.
SEED = int(os.environ.setdefault("CHAOS_SEED", str(secrets.randbits(32) if NEW else 1)))


def described() -> str:
    """Say which seed a run has, and how to have it again."""
    repeat = f"CHAOS_ROUNDS={os.environ['CHAOS_ROUNDS']} CHAOS_SEED={SEED} repeats it" if NEW else "fixed"
    return f"seed of what is drawn: {SEED} ({repeat})"
