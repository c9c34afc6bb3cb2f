"""Arguments that name something by its id: an empty one, as a variable that was never set gives, names nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from nunet_cli.errors import UsageError


def id_argument(what: str, autocompletion: Any, *, help: str = "", metavar: str = "") -> Any:
    """Return the argument for the id of a job, a bid, a contract, an allocation or a peer."""
    return typer.Argument(
        help=help or f"The {what}'s id, or its beginning.",
        metavar=metavar or what.upper(),
        autocompletion=autocompletion,
        callback=given_id(what),
    )


def given_id(what: str, *, hint: str = "") -> Callable[[typer.Context, typer.CallbackParam, Any], Any]:
    """Return what looks at the ids of an argument or an option before any node is asked.

    Raises:
        UsageError: one that was written is empty, or has letters that no id has.
    """
    hint = hint or f"see: nunet {what} list"

    def check(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        source = ctx.get_parameter_source(param.name or "")
        if source is None or source.name != "COMMANDLINE":
            return value
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if not text.strip():
                option = next((name for name in param.opts if name.startswith("-")), "")
                where = f"{option}: " if option else ""
                raise UsageError(f"{where}no {what} id given, only an empty text", hint=hint)
            if not text.isprintable() or any(letter in text for letter in "/?#% "):
                raise UsageError(f"no {what} {text[:100]!r} here", hint=hint)
        return value

    return check
