"""Configuration: TOML file, `NUNET_*` variables, flags; the later wins.

The file is `config.toml` in the home that `--home` or `NUNET_HOME` names, or else in the platform's config folder.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from nunet_cli import units
from nunet_cli.errors import UsageError

# what the provider of `--local` asks for a job, in NTX
LOCAL_PRICE = "0.1"
Seconds = Annotated[int, Meta(ge=1, le=10**7)]
Age = Annotated[int, Meta(ge=0, le=10**10)]
_PORT = r":(6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[0-5]?\d{1,4})(?!\n)$"
Address = Annotated[str, Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+)" + _PORT)]

Topic = Annotated[str, Meta(pattern=r"^/[\x21-\x7e]{1,199}(?!\n)$")]


class NetworkConfig(Struct, forbid_unknown_fields=True):
    """How this node meets others. Sizes are bytes, rates messages per second."""

    name: Annotated[str, Meta(min_length=1, max_length=100)] = "nunet"
    secret: Annotated[str, Meta(max_length=200)] = ""
    listen: Address = "0.0.0.0:0"
    peers: tuple[str, ...] = ()
    topics: tuple[Topic, ...] = ()
    discovery: bool = True
    max_frame: Annotated[int, Meta(ge=2**16, le=2**26)] = 2**20
    max_connections: Annotated[int, Meta(ge=1, le=10**5)] = 256
    max_connections_per_address: Annotated[int, Meta(ge=1, le=10**5)] = 64
    rate: Annotated[int, Meta(ge=1, le=10**6)] = 200
    handshake_timeout: Seconds = 5
    idle_timeout: Seconds = 45


class DockerConfig(Struct, forbid_unknown_fields=True):
    """The docker executor: `images` holds patterns of what strangers may run: none where it is empty, any with `*`.

    This node's own jobs and those of the requesters in `trusted`, by DID, may use any image.
    """

    enabled: bool = True
    host: str = ""
    images: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()
    pull: bool = False
    max_pids: Annotated[int, Meta(ge=1, le=10**6)] = 256


class ProcessConfig(Struct, forbid_unknown_fields=True):
    """The process executor: `foreign` says what happens to other people's jobs, `trusted` names requesters by DID."""

    enabled: bool = True
    foreign: Literal["off", "sandboxed", "unsandboxed"] = "off"
    trusted: tuple[str, ...] = ()


class ExecutorConfig(Struct, forbid_unknown_fields=True):
    """What may run jobs here."""

    docker: DockerConfig = field(default_factory=DockerConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    null: bool = True


class RegistryConfig(Struct, forbid_unknown_fields=True):
    """The contract database: whom it admits as verified, and what a new account opens with (NTX)."""

    admission: Literal["open", "approval"] = "open"
    opening_balance: Annotated[str, Meta(max_length=40)] = "100"


class KycConfig(Struct, forbid_unknown_fields=True):
    """Whose statements count for a job's `kycs`: the DID of each verifier that jobs may name."""

    verifiers: dict[Annotated[str, Meta(min_length=1, max_length=200)], str] = {}


class ApiConfig(Struct, forbid_unknown_fields=True):
    """The node's API over TCP, beside its Unix socket: where, and the token that opens it (made where it is empty)."""

    listen: Annotated[str, Meta(pattern=r"^$|^(127\.0\.0\.1|\[::1\]|localhost)" + _PORT)] = ""
    token: Annotated[str, Meta(max_length=200)] = ""


class LimitsConfig(Struct, forbid_unknown_fields=True):
    """Bounds on what a job may send here, in bytes, and on how long stages may take, in seconds."""

    input_size: Annotated[int, Meta(ge=0)] = 2**33
    output_size: Annotated[int, Meta(ge=0)] = 2**33
    log_size: Annotated[int, Meta(ge=2**10)] = 2**24
    answer_timeout: Seconds = 10
    heartbeat: Seconds = 2
    settlement_window: Seconds = 600
    input_patience: Seconds = 600
    silence: Seconds = 30


class RetentionConfig(Struct, forbid_unknown_fields=True):
    """How long what is over is kept, in seconds; what is open is never removed.

    `jobs` goes for a requester's jobs and a provider's allocations, with their logs and outputs; `bids` for a
    provider's bids that came to nothing; `contracts` for closed contracts with their evidence, also a contract
    database's.
    """

    jobs: Age = 90 * 86400
    bids: Age = 7 * 86400
    contracts: Age = 730 * 86400


class Config(Struct, forbid_unknown_fields=True):
    """The whole configuration (seed 2 names the first two: `defaultOrchestrationType`, `defaultSearchTimeout`)."""

    default_orchestration_type: Literal["pull", "push"] = "pull"
    default_search_timeout: Seconds = 10
    lock_on_bid: bool = False
    lock_lease: Seconds = 60
    bid_timeout: Seconds = 300
    contract_database: str = ""
    oracle: str = ""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    kyc: KycConfig = field(default_factory=KycConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    api: ApiConfig = field(default_factory=ApiConfig)


_DURATIONS = {
    "default_search_timeout", "lock_lease", "bid_timeout", "network.handshake_timeout", "network.idle_timeout",
    "limits.answer_timeout", "limits.heartbeat", "limits.settlement_window",
    "limits.input_patience", "limits.silence", "retention.jobs", "retention.bids", "retention.contracts",
}  # fmt: skip
_SIZES = {"network.max_frame", "limits.input_size", "limits.output_size", "limits.log_size"}
# what a value that has to be of a form looks like
_FORMS = {
    "network.listen": "HOST:PORT, for example 0.0.0.0:9000",
    "network.topics": "names such as /gpu, of printable letters and no spaces",
    "api.listen": "127.0.0.1:PORT, [::1]:PORT or localhost:PORT",
    "default_orchestration_type": "pull or push",
    "executor.process.foreign": "off, sandboxed or unsandboxed",
    "registry.admission": "open or approval",
}
# whose value is a table: what is in it has a key of its own, such as `kyc.verifiers.acme-bank`
_TABLES = ("kyc.verifiers",)
# looks at what the form of a value does not say, such as the DID in it
Check = Callable[["Config"], None]


def default_home() -> Path:
    """Return the folder of this user's node."""
    import platformdirs

    return Path(platformdirs.user_data_dir("nunet"))


def config_path(home: Path, *, explicit_home: bool) -> Path:
    """Return where the configuration of a home is kept."""
    if explicit_home:
        return home / "config.toml"
    import platformdirs

    return Path(platformdirs.user_config_dir("nunet")) / "config.toml"


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
    values = {key: get(config, key) for key in keys()}
    return values | {key: "(set)" for key in ("network.secret", "api.token") if values[key]}


def parse_value(key: str, text: str) -> Any:
    """Return a text from a shell as the type that the key has; lists and tables are comma-separated."""
    key, name = _split(key)
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
    key, name = _split(key)
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value.get(name, "") if name else value


def _split(key: str) -> tuple[str, str]:
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
    if _split(key)[0] not in known:
        near = difflib.get_close_matches(key, known, 1)
        raise UsageError(f"unknown key {key!r}", hint=f"did you mean {near[0]}?" if near else "see: nunet config list")


def put(document: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested document, in place; an empty value takes a name out of a table."""
    key, inside = _split(key)
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
    for names, parse in ((_DURATIONS, units.parse_duration), (_SIZES, units.parse_size)):
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
        units.parse_amount(config.registry.opening_balance)
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
