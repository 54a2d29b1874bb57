"""The one place where model-written code runs.

`Sandbox().run(Program("python", source, stdin=...), Limits(seconds=2))` gives a `Result`, here or, with `RemoteSandbox`, on a
host that runs `nemo-cascade sandbox-serve`. `get()` is the one of this process: NEMO_CASCADE_SANDBOX_URL, or what `use` was told,
else this host. Where no isolation is to be had nothing is run: SandboxUnavailable says why and what to do. How the walls
are built is in docs/sandbox.md.
"""

import os
import threading

from nemo_cascade.sandbox.local import Sandbox
from nemo_cascade.sandbox.programs import MIB, Call, HostFailed, Limits, Program, Result, SandboxError, SandboxUnavailable
from nemo_cascade.sandbox.remote import RemoteSandbox

URL = "NEMO_CASCADE_SANDBOX_URL"

__all__ = [
    "MIB",
    "Call",
    "HostFailed",
    "Limits",
    "Program",
    "RemoteSandbox",
    "Result",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailable",
    "get",
    "use",
]

_lock = threading.Lock()
_chosen: str | None = None
_current: Sandbox | RemoteSandbox | None = None


def use(url: str | None) -> None:
    """Chooses the sandbox of this process: the hosts of one or more URLs with commas between, or None for this host."""
    global _chosen, _current
    with _lock:
        if url != _chosen and _current is not None:
            _current.close()
            _current = None
        _chosen = url


def get() -> Sandbox | RemoteSandbox:
    """The sandbox of this process; it starts nothing before its first run."""
    global _current
    with _lock:
        if _current is None:
            url = _chosen or os.environ.get(URL)
            _current = RemoteSandbox(url) if url else Sandbox()
        return _current


def _forget() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
