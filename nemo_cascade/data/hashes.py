"""sha256 of a file's content and of JSON values."""

import hashlib
import json
from pathlib import Path

from nemo_cascade import heartbeat


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    heartbeat.beat()
    return digest


def json_hash(values: object) -> str:
    """sha256 (hex) of values as they are when read back from JSON, whatever the order of keys."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(values)), sort_keys=True).encode()).hexdigest()
