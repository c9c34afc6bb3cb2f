"""What a requester may use on this machine: its owner says whom it trusts, and what strangers may run."""

from __future__ import annotations

from typing import Protocol

from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import ContractError
from nunet_cli.executor.process import SANDBOXED
from nunet_cli.matching.accept import unwanted
from nunet_cli.orchestrator.needs import HasAccounting, HasAvailable, HasConfig, HasIdentity


class Trusting(HasConfig, HasIdentity, Protocol):
    """Knows whom this node's owner trusts."""


class Permitting(HasAvailable, Trusting, Protocol):
    """Knows who may use which executor here."""


def trusts(ctx: Trusting, executor: str, requester: str) -> bool:
    """Say whether an executor's owner trusts a requester: this node itself, and whom the configuration names."""
    executors = ctx.config.executor
    named = {"docker": executors.docker.trusted, "process": executors.process.trusted}.get(executor, ())
    return requester == ctx.identity.did or requester in named


def may_use(ctx: Permitting, executor: str, requester: str) -> bool:
    """Say whether a requester's jobs may use an executor here; images and commands of strangers only as configured."""
    if executor not in ctx.available_executors:
        return False
    if executor not in ("docker", "process") or trusts(ctx, executor, requester):
        return True
    if executor == "docker":
        return bool(ctx.config.executor.docker.images)
    process = ctx.config.executor.process
    if process.foreign == "unsandboxed":
        return True
    return process.foreign == "sandboxed" and ctx.available_executors["process"] == SANDBOXED


def check_dealing(ctx: HasAccounting, source: Store | Transaction, did: str) -> None:
    """Refuse a requester with whom the preferences do not deal, or any where this machine is offered no more.

    It is asked at each step that binds this provider: what its owner decides holds at once.

    Raises:
        ContractError: saying which of the two.
    """
    if not ctx.accounting.is_onboarded(source):
        raise ContractError("this machine is offered no more", code="not_offered")
    reasons = unwanted(ctx.accounting.get_preferences(source), did)
    if reasons:
        raise ContractError(f"your jobs are not taken here: {reasons[0]}", code="not_wanted")


def open_to_strangers(ctx: Permitting) -> dict[str, str]:
    """Return what strangers may run here, by executor, in words; nothing for what is closed to them."""
    executors = ctx.config.executor
    words = {
        "docker": f"images {', '.join(executors.docker.images)}",
        "process": f"commands, {executors.process.foreign}",
    }
    return {name: text for name, text in words.items() if may_use(ctx, name, "")}
