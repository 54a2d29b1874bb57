"""Why a process ends, where torchrun shows it last.

torchrun prints a page of its own for any exit code but 0, a traceback of itself among it, after which what a process said before
is hard to find. It gives each process a file for its error, and the root cause's is the last thing that it prints.
"""

import contextlib
import json
import os
import time
from pathlib import Path

# torch.distributed.elastic's name for it; there is none without torchrun.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def leave(text: str) -> None:
    """Writes it for torchrun, if that started this process. Of several processes, the first to do so is shown."""
    path = os.environ.get(ERROR_FILE)
    if path:
        error = {"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(error), encoding="utf-8")
