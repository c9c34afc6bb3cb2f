"""Changing a setting: by the node that runs, which takes up what it can; in the file where none does."""

from __future__ import annotations

from typing import Any

from nunet_cli.cli.state import STATE
from nunet_cli.errors import NotFoundError, NunetError

# an older node, or one that is here for one command: it has the file from its start on
_NO_SETTINGS = (NotFoundError.default_code, "no_config_file")
LATER = "the running node takes this up when it is restarted"


def change(key: str, value: Any) -> str:
    """Set a key to a value, or to what a person writes for it.

    Returns:
        Why the node that runs does not go by it yet; empty where it does, or where none runs.

    Raises:
        UsageError: unknown key, or a value that does not validate; nothing is changed.
    """
    client = STATE.running()
    # imported here, as all of it: a command that changes nothing does without
    from urllib.parse import quote

    if client is not None:
        try:
            done = client.put(f"/configuration/{quote(key, safe='')}", {"value": value})
        except NunetError as error:
            if STATE.node or error.code not in _NO_SETTINGS:
                raise
        else:
            return "" if done["in_force"] else str(done["reason"])
    # imported here: writing TOML takes a library of its own
    from nunet_cli.config_file import check_key, parse_value, set_in_file
    from nunet_cli.node.settings import check_here, check_settings

    check_key(key)
    parsed = parse_value(key, value) if isinstance(value, str) else value
    check_here(key, parsed)
    set_in_file(STATE.config_file, key, parsed, check_settings)
    return LATER if client is not None else ""
