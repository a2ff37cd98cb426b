"""The API key file: one key a line; ``#`` begins a comment. Only digests stay in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from contract.faults import Fault, FaultKind

MIN_KEY_LENGTH = 8


def digest(key: str) -> str:
    """What is kept of a key, and compared."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_api_keys(path: Path) -> frozenset[str]:
    """Digests of all keys of the file. Raises ``Fault`` INVALID_CONFIG when it has none or a bad one."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = "name a text file that the daemon's user may read, one key a line"
        raise Fault(FaultKind.INVALID_CONFIG, f"API key file {path} cannot be read: {reason}", hint) from None
    keys: set[str] = set()
    for number, line in enumerate(lines, 1):
        key = line.partition("#")[0].strip()
        if not key:
            continue
        if len(key) < MIN_KEY_LENGTH or not key.isascii() or " " in key:
            message = f"{path}:{number}: a key is at least {MIN_KEY_LENGTH} ASCII characters without spaces"
            raise Fault(FaultKind.INVALID_CONFIG, message, "make one with: openssl rand -hex 24")
        keys.add(digest(key))
    if not keys:
        hint = "make one with: openssl rand -hex 24"
        raise Fault(FaultKind.INVALID_CONFIG, f"API key file {path} holds no key", hint)
    return frozenset(keys)
