"""What a provider gives each requester of its machine: shares among those that wait, and the most that one may have."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from nunet_cli.records.limits import Limits

MOST_SHARES = 64


class Share(Struct, forbid_unknown_fields=True, frozen=True):
    """How many turns requesters have: `who` is the DID of one, or CEL about `peer`; who is not named has one."""

    who: Annotated[str, Limits(min_length=1, max_length=1000)]
    weight: Annotated[float, Limits(ge=0.01, le=1000)] = 1.0


class MostPerRequester(Struct, forbid_unknown_fields=True, frozen=True):
    """The most that one requester's jobs may hold together: a `share` of the machine, and so many `jobs` (0: any)."""

    share: Annotated[float, Limits(gt=0, le=1)] = 1.0
    jobs: Annotated[int, Limits(ge=0, le=100_000)] = 0
