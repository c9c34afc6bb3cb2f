"""All tables of the store."""

from __future__ import annotations

from typing import Any

from nunet_cli.records.allocations import ALLOCATIONS, HOLDINGS
from nunet_cli.records.bids import BID_REQUESTS, BIDS
from nunet_cli.records.books import ACCOUNTS, LEDGER, LOG, LOG_HEAD, PRESENCE, REGISTRY
from nunet_cli.records.contract_records import (
    BALANCES,
    COMPLETIONS,
    CONTRACTS,
    LATE_RESULTS,
    PINNED_ROLES,
    REGISTERED_CONTRACTS,
    STATEMENTS,
    VERDICTS,
)
from nunet_cli.records.disputes import DISPUTES
from nunet_cli.records.events import EVENTS
from nunet_cli.records.jobs import JOBS
from nunet_cli.records.messaging import GRANTS, INBOX, OUTBOX, PEERS
from nunet_cli.records.offers import ACTS_AS, OFFERS, PREFERENCES, REGISTERED_CAPABILITY
from nunet_cli.records.table import Table

TABLES: tuple[Table[Any], ...] = (
    JOBS, BID_REQUESTS, BIDS, CONTRACTS, STATEMENTS, BALANCES, LATE_RESULTS, PINNED_ROLES, ALLOCATIONS, HOLDINGS,
    REGISTERED_CAPABILITY, OFFERS, PREFERENCES, ACTS_AS, REGISTERED_CONTRACTS, DISPUTES, ACCOUNTS, LEDGER, LOG,
    LOG_HEAD, PRESENCE, REGISTRY, VERDICTS, COMPLETIONS, INBOX, OUTBOX, GRANTS, PEERS, EVENTS,
)  # fmt: skip
