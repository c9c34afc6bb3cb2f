"""How a node logs: for people, as JSON lines, or as journald takes it."""

from __future__ import annotations

import json
import logging
import os
import re
from typing import Any

from nunet_cli import quantities

# syslog's levels, which journald reads from the beginning of a line (sd-daemon(3))
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


# control characters, line breaks of every kind, what turns writing around, and what no file can hold
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what went wrong."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        document = {
            "time": quantities.utc_now(), "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(),
        }  # fmt: skip
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


class PlainFormatter(logging.Formatter):
    """One line for each message, whatever a peer wrote into it: it neither forges lines nor commands a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.message = _CONTROL.sub(_escaped, record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Return the lines of an exception."""
        return "\n".join(_CONTROL.sub(_escaped, line) for line in super().formatException(ei).split("\n"))


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


class JournalFormatter(PlainFormatter):
    """Lines with a priority and without a time, which the journal has itself."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines, each with the priority."""
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up(log_format: str, *, verbose: bool) -> None:
    """Begin to log to standard error.

    Args:
        log_format: `auto`, `text`, `json` or `journal`; auto is `journal` where journald listens, else `text`.
        verbose: log everything.
    """
    if log_format == "auto":
        log_format = "journal" if os.environ.get("JOURNAL_STREAM") else "text"
    handler = logging.StreamHandler()
    formatters = {
        "json": JsonFormatter(), "journal": JournalFormatter("%(name)s: %(message)s"),
        "text": PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"),
    }  # fmt: skip
    handler.setFormatter(formatters[log_format])
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    for name in ("hypercorn", "docker", "urllib3", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
