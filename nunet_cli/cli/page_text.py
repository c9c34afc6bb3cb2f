"""What the man pages and the list of commands are written with."""

from __future__ import annotations

import re
from typing import Any


def metavar(param: Any, command: Any) -> str:
    """Return how the value of an option or argument is shown."""
    choices = getattr(param.type, "choices", None)
    if choices:
        return "|".join(str(getattr(choice, "value", choice)) for choice in choices)
    return str(param.metavar or param.make_metavar(context_of(command)))


def context_of(command: Any) -> Any:
    """Return what a command is parsed in, which its parameters are asked with."""
    return command.context_class(command)


def escape(text: str) -> str:
    """Return a text as roff prints it unchanged."""
    text = text.replace("\\", "\\\\").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)
