"""Text as MLflow may have it: no credentials, no absolute paths, names and lengths that it accepts."""

from __future__ import annotations

import re
from pathlib import Path

SECRETS = "token|key|secret|passw|pwd|auth|credential|sig"  # in the names of a URL's parameters
CAUSES = (  # of HTTP and database errors, which wrap the one that matters up to three times
    r"\[Errno -?\d+\] ([\w ]+)",
    r"Error\(\d+, '([\w ]+)'\)",
    r"\(\w+\.\w*Error\) (.+)",
    r"Caused by \w+\('([\w ]+)'",
    r"Caused by (\w+)",
)


def safe_name(name: str) -> str:
    """Return `name` with `-` for each character that MLflow refuses in names (such as `@`), cut to 250 characters."""
    return re.sub(r"[^/\w.\- :]", "-", name)[:250]


def public(text: str) -> str:
    """Return `text` without the credentials of URLs, and with only the last part of each absolute path."""
    text = re.sub(r"://\S*@", "://***@", text)
    text = re.sub(rf"([?&][^=&\s]*(?:{SECRETS})[^=&\s]*=)[^&\s]+", r"\1***", text, flags=re.I)
    if text.startswith(("/", "~")) and "\n" not in text:
        return f".../{Path(text).name}"
    return re.sub(r"(?<![\w/:.~*-])[/~][^\s'\"]*/([^\s'\"/]+)", r".../\1", text)


def reason(error: Exception) -> str:
    """Return the cause that an exception of MLflow wraps, in one line: `Connection refused`."""
    text = str(error)
    if "timed out" in text.lower():
        return "no answer in time"
    if cause := next(filter(None, (re.search(pattern, text) for pattern in CAUSES)), None):
        return public(cause[1])
    return public(text.splitlines()[0])[:200] if text else type(error).__name__
