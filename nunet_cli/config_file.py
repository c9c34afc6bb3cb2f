"""Settings by their dotted keys: from the TOML file, `NUNET_*` variables and options, and into the file."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from nunet_cli import quantities
from nunet_cli.config import Config
from nunet_cli.errors import UsageError

_DURATIONS = {
    "default_search_timeout", "lock_lease", "bid_timeout", "network.handshake_timeout", "network.idle_timeout",
    "limits.answer_timeout", "limits.heartbeat", "limits.settlement_window",
    "limits.input_patience", "limits.silence", "limits.stall",
    "retention.jobs", "retention.bids", "retention.contracts",
}  # fmt: skip
_SIZES = {
    "network.max_frame",
    "limits.input_size",
    "limits.output_size",
    "limits.log_size",
    "limits.memory_reserve",
    "limits.disk_reserve",
}
# what a value that has to be of a form looks like
_FORMS = {
    "network.listen": "HOST:PORT, for example 0.0.0.0:9000",
    "network.topics": "names such as /gpu, of printable letters and no spaces",
    "api.listen": "127.0.0.1:PORT, [::1]:PORT or localhost:PORT",
    "default_orchestration_type": "pull or push",
    "executor.process.foreign": "off, sandboxed or unsandboxed",
    "registry.admission": "open or approval",
}
SECRET = ("network.secret", "api.token")
# whose value is a table: what is in it has a key of its own, such as `kyc.verifiers.acme-bank`
_TABLES = ("kyc.verifiers",)
# looks at what the form of a value does not say, such as the DID in it
Check = Callable[["Config"], None]


def keys(kind: type[Struct] = Config, prefix: str = "") -> list[str]:
    """Return every dotted key that the configuration has, in order."""
    found: list[str] = []
    for info in msgspec.structs.fields(kind):
        if isinstance(info.type, type) and issubclass(info.type, Struct):
            found += keys(info.type, f"{prefix}{info.name}.")
        else:
            found.append(prefix + info.name)
    return found


def load(
    path: Path,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    check: Check | None = None,
) -> Config:
    """Return the configuration of a file, then the environment, then `overrides` (dotted key → value).

    Args:
        path: the file; there may be none.
        environment: instead of this process's.
        overrides: what wins over both.
        check: looks at what each of them gives, and raises what is wrong with it.

    Raises:
        UsageError: an unknown key or a value that does not validate; the message names file or variable, and key.
    """
    document: dict[str, Any] = {}
    if path.exists():
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise UsageError(f"{path}: not TOML: {error}") from None
        _validate(document, str(path), check)
    environment = os.environ if environment is None else environment
    for variable, key in from_environment(environment).items():
        put(document, key, parse_value(key, environment[variable]))
        _validate(document, variable, check)
    for key, value in (overrides or {}).items():
        put(document, key, value)
    return _validate(document, "options", check)


def from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that set something, each with its key."""
    known = {"NUNET_" + key.replace(".", "_").upper(): key for key in keys()}
    return {variable: known[variable] for variable in environment if variable in known}


def shown(config: Config) -> dict[str, Any]:
    """Return every key with its value; of what is secret, only whether it is set."""
    return {key: shown_value(config, key) for key in keys()}


def shown_value(config: Config, key: str) -> Any:
    """Return the value of a key; of what is secret, only whether it is set."""
    value = get(config, key)
    return "(set)" if value and key in SECRET else value


def parse_value(key: str, text: str) -> Any:
    """Return a text from a shell as the type that the key has; lists and tables are comma-separated."""
    key, name = split(key)
    if name:
        return text.strip()
    current = get(Config(), key)
    if isinstance(current, dict):
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if not all(name.strip() and value.strip() for name, _, value in pairs):
            raise UsageError(f"{key}: expected NAME=VALUE, comma-separated, got {text!r}")
        return {name.strip(): value.strip() for name, _, value in pairs}
    if isinstance(current, bool):
        lowered = text.strip().lower()
        if lowered not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            raise UsageError(f"{key}: expected true or false, got {text!r}")
        return lowered in ("true", "yes", "on", "1")
    if isinstance(current, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(current, int) and key not in _DURATIONS | _SIZES:
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{key}: expected a whole number, got {text!r}") from None
    return text


def get(config: Config, key: str) -> Any:
    """Return the value of a dotted key.

    Raises:
        UsageError: unknown key, with the nearest right one.
    """
    check_key(key)
    key, name = split(key)
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value.get(name, "") if name else value


def split(key: str) -> tuple[str, str]:
    """Return a key, and what it names in its value where that is a table; a name may have dots."""
    for table in _TABLES:
        if key.startswith(table + ".") and key != table + ".":
            return table, key[len(table) + 1 :]
    return key, ""


def check_key(key: str) -> None:
    """Refuse a key that the configuration does not have.

    Raises:
        UsageError: with the nearest right key.
    """
    known = keys()
    if split(key)[0] not in known:
        near = difflib.get_close_matches(key, known, 1)
        raise UsageError(f"unknown key {key!r}", hint=f"did you mean {near[0]}?" if near else "see: nunet config list")


def put(document: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested document, in place; an empty value takes a name out of a table."""
    key, inside = split(key)
    *sections, name = key.split(".")
    if inside:
        sections, name = [*sections, name], inside
    for section in sections:
        document = document.setdefault(section, {})
    if inside and not value:
        document.pop(name, None)
    else:
        document[name] = list(value) if isinstance(value, tuple) else value


def check_value(key: str, value: Any, name: str = "", check: Check | None = None) -> None:
    """Refuse a value that a key cannot have.

    Args:
        key: the dotted key.
        value: as `parse_value` gives it.
        name: what the message calls it, where a person did not write the key.
        check: as of `load`.

    Raises:
        UsageError: unknown key, or a value that does not validate.
    """
    check_key(key)
    document: dict[str, Any] = {}
    put(document, key, value)
    try:
        _validate(document, "", check)
    except UsageError as error:
        value = [f"{name}={text}" for name, text in value.items()] if isinstance(value, dict) else value
        shown = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        reason = error.message.removeprefix(f"{key}: ")
        said = "" if repr(shown) in reason or f"'{shown}'" in reason else f"{shown[:100]!r}: "
        raise UsageError(f"{name or key}: {said}{reason}", hint=error.hint) from None


def set_in_file(path: Path, key: str, value: Any, check: Check | None = None) -> None:
    """Set one key in the file, keeping comments and order; refuse a value that does not validate.

    Raises:
        UsageError: unknown key, or a value that does not validate; the file is left as it was.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    check_value(key, value, check=check)
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    except (TOMLKitError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    put(document, key, value)
    _validate(document.unwrap(), str(path), check)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(tomlkit.dumps(document))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _validate(document: dict[str, Any], source: str, check: Check | None = None) -> Config:
    where = f"{source}: " if source else ""
    for names, parse in ((_DURATIONS, quantities.parse_duration), (_SIZES, quantities.parse_size)):
        for key in names:
            _convert(document, key, parse, where)
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        text = str(error)
        unknown = text.split("unknown field `")[1].split("`")[0] if "unknown field `" in text else ""
        near = difflib.get_close_matches(unknown, [key.rsplit(".", 1)[-1] for key in keys()], 1) if unknown else []
        hint = f"did you mean {near[0]}?" if near else "see: nunet config list"
        if unknown:
            raise UsageError(f"{where}{text.replace('$.', '')}", hint=hint) from None
        raise UsageError(f"{where}{_reason(text)}", hint=hint) from None
    try:
        quantities.parse_amount(config.registry.opening_balance)
    except UsageError as error:
        raise UsageError(f"{where}registry.opening_balance: {error.message}", hint=error.hint) from None
    if check is not None:
        try:
            check(config)
        except UsageError as error:
            raise UsageError(f"{where}{error.message}", hint=error.hint) from None
    return config


def _reason(text: str) -> str:
    """Return a complaint of the decoder's with the key in front, and with the form that a value has to have."""
    reason, _, place = text.partition(" - at `$.")
    key = re.sub(r"\[.*?\]", "", place.removesuffix("`"))
    if key in _FORMS and ("matching regex" in reason or "enum value" in reason):
        reason = f"expected {_FORMS[key]}"
    return f"{key}: {reason[:1].lower()}{reason[1:]}" if key else reason


def _convert(document: dict[str, Any], key: str, parse: Callable[[str], int], where: str) -> None:
    *sections, name = key.split(".")
    part: Any = document
    for section in sections:
        part = part.get(section) if isinstance(part, dict) else None
    if isinstance(part, dict) and isinstance(part.get(name), str):
        try:
            part[name] = parse(part[name])
        except UsageError as error:
            raise UsageError(f"{where}{key}: {error.message}", hint=error.hint) from None
