"""Configuration: what there is to set, and its defaults; `config_file` reads and writes it.

The file is `config.toml` in the home that `--home` or `NUNET_HOME` names, or else in the platform's config folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

# what the provider of `--local` asks for a job, in NTX
LOCAL_PRICE = "0.1"
Seconds = Annotated[int, Meta(ge=1, le=10**7)]
Age = Annotated[int, Meta(ge=0, le=10**10)]
_PORT = r":(6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[0-5]?\d{1,4})(?!\n)$"
Address = Annotated[str, Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+)" + _PORT)]
Topic = Annotated[str, Meta(pattern=r"^/[\x21-\x7e]{1,199}(?!\n)$")]
# an introduction names so many, and that of all bid requests; one with more is refused by everybody
MOST_TOPICS = 63


class NetworkConfig(Struct, forbid_unknown_fields=True):
    """How this node meets others. Sizes are bytes, rates messages per second."""

    name: Annotated[str, Meta(min_length=1, max_length=100)] = "nunet"
    secret: Annotated[str, Meta(max_length=200)] = ""
    listen: Address = "0.0.0.0:0"
    peers: tuple[str, ...] = ()
    topics: Annotated[tuple[Topic, ...], Meta(max_length=MOST_TOPICS)] = ()
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
    """Bounds on what a job may send here, in bytes, and on how long stages may take, in seconds.

    Of the machine's memory and disk so many bytes stay free: with less a provider takes no job. What others use of the
    processor counts where `count_others_cpu` says so. A job that does nothing for `stall` is remarked on.
    """

    input_size: Annotated[int, Meta(ge=0)] = 2**33
    output_size: Annotated[int, Meta(ge=0)] = 2**33
    log_size: Annotated[int, Meta(ge=2**10)] = 2**24
    answer_timeout: Seconds = 10
    heartbeat: Seconds = 2
    settlement_window: Seconds = 600
    input_patience: Seconds = 600
    silence: Seconds = 30
    memory_reserve: Annotated[int, Meta(ge=0)] = 2**28
    disk_reserve: Annotated[int, Meta(ge=0)] = 2**29
    count_others_cpu: bool = False
    stall: Seconds = 600


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
    pull_interval: Seconds = 30
    contract_database: str = ""
    oracle: str = ""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    kyc: KycConfig = field(default_factory=KycConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    api: ApiConfig = field(default_factory=ApiConfig)


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
