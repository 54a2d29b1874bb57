"""Sessions of callers over HTTP: each an environment's `Session`, found by the token that its caller keeps as a cookie."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

# Many times the rollouts that a trainer has under way. A session is a few tuples until something is written in it.
MOST = 10_000
# Seconds without a call after which a rollout is gone; a model may think for long.
IDLE = 3600.0


class Sessions:
    """At most `most` at a time, the one that was not called for longest going first; each for `idle` seconds after its last call.
    One that has `close` is closed when it goes.

    clock: seconds, for tests.
    """

    def __init__(self, most: int = MOST, idle: float = IDLE, clock: Callable[[], float] = time.monotonic):
        self.most, self.idle, self.clock = most, idle, clock
        # The one that was called last stands last.
        self._open: OrderedDict[str, tuple[object, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, session) -> str:
        """Its token, which nobody can guess."""
        self._tidy(self.most - 1)
        token = secrets.token_hex(16)
        self._open[token] = session, self.clock()
        return token

    def get(self, token: str | None):
        """The session, or None where there is none of that token, or none any more."""
        self._tidy(self.most)
        session, _ = self._open.pop(token, (None, 0.0))
        if session is not None:
            self._open[token] = session, self.clock()
        return session

    def end(self, token: str | None) -> None:
        """Forgets it, if it is there."""
        session, _ = self._open.pop(token, (None, 0.0))
        if hasattr(session, "close"):
            session.close()

    def end_all(self) -> None:
        """Forgets all."""
        for token in list(self._open):
            self.end(token)

    def _tidy(self, most: int) -> None:
        while self._open:
            oldest, (_, called) = next(iter(self._open.items()))
            if len(self._open) <= most and self.clock() - called <= self.idle:
                break
            self.end(oldest)
