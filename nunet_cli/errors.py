"""The errors of the product: one root, so that every caller can turn any of them into one clear message.

Each error carries a stable `code`, a `message` that says what was wrong and where, a `hint` with what to do next,
and the exit code that the command line ends with (documented in `docs/reference.md`).
"""

from __future__ import annotations

from typing import Any

EXIT_JOB_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_NODE = 3
EXIT_NO_BID = 4
EXIT_DECLINED = 5
EXIT_CONTRACT = 6
EXIT_DISPUTED = 7
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class NunetError(Exception):
    """Root of all errors that a user may see.

    Args:
        message: what was wrong, and where.
        code: stable machine-readable reason, snake_case.
        hint: what to do next, or an empty string.
        details: structured context, JSON-ready.
    """

    exit_code = EXIT_USAGE
    default_code = "error"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.details = details or {}


class UsageError(NunetError):
    """Wrong input from the user: a bad file, field, flag or id."""

    default_code = "bad_input"


# the code of the error which says that nobody has kept what a job wrote
LOGS_GONE = "logs_gone"


class NotFoundError(UsageError):
    """The id or name that was given is not known here."""

    default_code = "not_found"


class StateError(UsageError):
    """What was asked does not fit the state things are in."""

    default_code = "wrong_state"


class NodeError(NunetError):
    """No node answers, or the node cannot start."""

    exit_code = EXIT_NO_NODE
    default_code = "no_node"


class FatalError(NodeError):
    """What a running node must not survive: it ends, with this message. Everything else ends one task only."""

    default_code = "fatal"


class NoSpaceError(NodeError):
    """The disk of the node's home is full: nothing was changed, and the same may be tried again later."""

    default_code = "no_space"


class NoBidError(NunetError):
    """The search ended without an acceptable bid."""

    exit_code = EXIT_NO_BID
    default_code = "no_bid"


class DeclinedError(NunetError):
    """Every provider on the shortlist declined, or did not answer in time."""

    exit_code = EXIT_DECLINED
    default_code = "declined"


class PeerError(DeclinedError):
    """A peer cannot be reached, or did not answer in time."""

    default_code = "peer_unreachable"


class ContractError(NunetError):
    """A contract or its settlement was refused."""

    exit_code = EXIT_CONTRACT
    default_code = "contract_refused"


class DisputedError(NunetError):
    """The result was not verified: the contract is disputed."""

    exit_code = EXIT_DISPUTED
    default_code = "disputed"


class JobFailedError(NunetError):
    """The job ran and failed, or its allocation could not run it."""

    exit_code = EXIT_JOB_FAILED
    default_code = "job_failed"


class IdentityError(NodeError):
    """A key, identifier or signature is malformed."""

    default_code = "bad_identity"


class RejectedMessageError(NunetError):
    """A message from a peer that is not accepted; `code` is the reason that is counted."""

    default_code = "rejected"
