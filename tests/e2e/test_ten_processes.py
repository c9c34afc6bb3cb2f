"""Ten providers as ten processes on loopback, and fifty jobs: each goes where a matcher by brute force says."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest

from nunet_cli import quantities
from nunet_cli.api.client import ApiClient, socket_path
from tests import scenario
from tests.conftest import nunet, wait_until

ENDS = ("settled", "expired", "failed", "cancelled", "disputed")
pytestmark = pytest.mark.skipif(
    psutil.virtual_memory().total < 6 * 2**30, reason="the largest of the ten providers offers 4 GiB of memory"
)


def output(*arguments: str, home: Path) -> Any:
    return json.loads(nunet(*arguments, "--output", "json", home=home).stdout)


def open_provider(machine: scenario.Provider, home: Path) -> None:
    price = f"{machine.price}/{machine.unit}" if machine.unit else machine.price
    nunet("onboard", "--cpu", str(machine.cores), "--memory", str(machine.memory), "--disk", "1GiB", "--price", price,
          "--max-duration", f"{machine.max_duration}s", "--locality", f"country={machine.country}", "--no-benchmark",
          *(("--storage", f"ssd={machine.ssd}") if machine.ssd else ()), home=home)  # fmt: skip
    if machine.rule:
        nunet("preferences", "set", "--rule", machine.rule, home=home)
    nunet("node", "start", home=home)


@pytest.mark.timeout(240)
def test_fifty_jobs_go_where_brute_force_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUNET_NETWORK_NAME", f"ten-{tmp_path.name}-{os.getpid()}")
    homes = {machine.name: tmp_path / machine.name for machine in scenario.providers()}
    authority, requester = tmp_path / "authority", tmp_path / "requester"
    try:
        nunet("node", "start", "--role", "contract-database", "--role", "oracle", home=authority)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda machine: open_provider(machine, homes[machine.name]), scenario.providers()))
        nunet("preferences", "set", "--weight", "distance=0", home=requester)
        nunet("node", "start", home=requester)

        def everybody() -> bool:
            peers = [peer for peer in output("peer", "list", home=requester) if peer["connected"]]
            return sum("provider" in peer["roles"] for peer in peers) == len(homes) and len(peers) == len(homes) + 1

        wait_until(everybody, timeout=30, what="ten providers and the authority in the list")
        names = {output("whoami", home=home)["did"]: name for name, home in homes.items()}
        client = ApiClient(socket_path(requester))
        got: dict[str, str | None] = {}
        for job in scenario.jobs():
            posted = client.post(
                "/orchestrator/postJob",
                {"spec_text": json.dumps(job), "source": "test", "folder": str(tmp_path), "orchestrate": True},
            )
            row = ended(client, posted["id"])
            contract = client.get(f"/contracts/{row['contract_id']}") if row["contract_id"] else None
            assert row["state"] == ("settled" if contract else "expired"), row
            got[job["name"]] = names[contract["provider"]] if contract else None
        assert got == {job["name"]: scenario.expected(job) for job in scenario.jobs()}

        # the ledger of the one who keeps it adds up, and so does each provider's own statement
        audit = output("registry", "audit", home=authority)
        assert (audit["total"], audit["log_problem"]) == ("0", "")
        for machine in scenario.providers():
            if machine.unit == "":
                won = [job for job in scenario.jobs() if got[job["name"]] == machine.name]
                earned = sum((scenario.cost_of(machine, job) for job in won), Fraction(0))
                balance = output("account", "balance", home=homes[machine.name])["balance"]
                assert Fraction(balance) == 100 + earned, machine.name
        assert quantities.parse_amount(
            output("account", "balance", home=requester)["balance"]
        ) < quantities.parse_amount("100")
    finally:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda home: nunet("node", "stop", home=home, check=False),
                          [requester, *homes.values(), authority]))  # fmt: skip


def ended(client: ApiClient, job_id: str) -> Any:
    """Return a job when it has ended."""
    end = time.monotonic() + 30
    for event in client.events(f"/jobs/{job_id}/events", follow=1):
        if event["type"].removeprefix("job_") in ENDS or time.monotonic() > end:
            break
    return client.get(f"/jobs/{job_id}")
