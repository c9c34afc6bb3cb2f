"""The homes that version 0.1 left behind, with this version's commands: nothing is lost, and work goes on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import old_homes
from tests.conftest import nunet, wait_until

Homes = dict[str, Path]
Before = dict[str, dict[str, list[dict[str, Any]]]]


def output(*arguments: str, home: Path) -> Any:
    return json.loads(nunet(*arguments, "--output", "json", home=home).stdout)


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Homes:
    monkeypatch.setenv("NUNET_NETWORK_NAME", f"test-{tmp_path.name}-{os.getpid()}")
    monkeypatch.setenv("NUNET_NETWORK_DISCOVERY", "false")
    monkeypatch.setenv("NUNET_EXECUTOR_DOCKER_ENABLED", "false")
    return old_homes.unpack(tmp_path)


@pytest.fixture
def before(homes: Homes) -> Before:
    """What the stores had, by node and table."""
    return {
        name: {table: [row for _, row in rows] for table, rows in old_homes.rows(home).items()}
        for name, home in homes.items()
    }


@pytest.fixture
def running(homes: Homes, before: Before) -> Iterator[Homes]:
    """The three nodes, each in a process of its own, connected."""
    assert before
    try:
        nunet("node", "start", "--role", "contract-database", "--role", "oracle", home=homes["authority"])
        addresses = [output("whoami", home=homes["authority"])["address"]]
        for name in ("provider", "requester"):
            nunet("node", "start", home=homes[name])
            for address in addresses:
                nunet("peer", "add", address, home=homes[name])
            addresses.append(output("whoami", home=homes[name])["address"])
        for name in ("provider", "requester"):
            wait_until(
                lambda name=name: sum(peer["connected"] for peer in output("peer", "list", home=homes[name])) == 2,
                what=f"the {name}'s connections",
            )
        yield homes
    finally:
        for home in homes.values():
            nunet("node", "stop", home=home, check=False)


def micro(text: str) -> int:
    return round(float(text) * 10**6)


def job_named(before: Before, name: str) -> dict[str, Any]:
    return next(job for job in before["requester"]["jobs"] if job["name"] == name)


def test_lists_show_what_there_was_before_any_node_runs(homes: Homes, before: Before) -> None:
    files = {name: (home / "store.db").read_bytes() for name, home in homes.items()}
    jobs = {job["id"]: job for job in output("job", "list", "--all", home=homes["requester"])}
    assert {name: job["state"] for name, job in jobs.items()} == {
        job["id"]: job["state"] for job in before["requester"]["jobs"]
    }
    for old in before["requester"]["jobs"]:
        shown = output("job", "show", old["id"], home=homes["requester"])
        assert [shown[name] or "" for name in ("id", "name", "state", "created_at")] == [
            old[name] for name in ("id", "name", "state", "created_at")
        ]
        assert (shown["paid"] or None) == (old.get("paid") or None)
        if old["kind"] == "group":
            # its events are shown with those of its children
            continue
        events = [event["type"] for event in output("job", "events", old["id"], home=homes["requester"])]
        assert events == [event["type"] for event in before["requester"]["events"] if event["job_id"] == old["id"]]
    for name in ("requester", "provider"):
        contracts = {row["id"]: row["state"] for row in output("contract", "list", home=homes[name])}
        assert contracts == {row["id"]: row["state"] for row in before[name]["contracts"]}
        (balance,) = output("status", home=homes[name])["balances"]
        assert balance["balance"] == before[name]["balances"][0]["balance"]
    accounts = output("registry", "audit", home=homes["authority"])["accounts"]
    assert {name: micro(balance) for name, balance in accounts.items()} == {
        row["id"]: row["balance"] for row in before["authority"]["accounts"]
    }
    preferences = output("preferences", "show", home=homes["requester"])
    assert "price < 0.5" in json.dumps(preferences)
    assert {name: (home / "store.db").read_bytes() for name, home in homes.items()} == files


def test_what_was_signed_can_be_exported_and_verified(homes: Homes, before: Before, tmp_path: Path) -> None:
    for contract in before["requester"]["contracts"]:
        if contract["state"] in ("settled", "refunded", "disputed"):
            bundle = tmp_path / f"{contract['id']}.json"
            nunet("contract", "export", contract["id"], "--file", str(bundle), home=homes["requester"])
            nunet("contract", "verify", str(bundle))


def test_what_was_begun_goes_on_and_a_new_job_runs(running: Homes, before: Before, tmp_path: Path) -> None:
    requester, provider, authority = (running[name] for name in old_homes.NODES)
    registry = {row["id"]: row["status"] for row in output("registry", "list", home=authority)}
    assert registry == {row["id"]: row["status"] for row in before["authority"]["registry"]}
    posted = job_named(before, "posted")["id"]
    nunet("job", "run", "--job", posted, "--output-dir", str(tmp_path / "posted"), home=requester)
    assert (tmp_path / "posted" / "stdout").read_text() == "at last\n"
    spec = tmp_path / "new.yaml"
    spec.write_text(
        "name: new\nexecutor: {type: process, command: [sh, -c, echo new]}\n"
        "resources: {cpu: 0.1, memory: 32MiB, disk: 8MiB}\nprice: 0.5\n"
    )
    nunet("job", "run", str(spec), "--output-dir", str(tmp_path / "new"), home=requester)
    assert (tmp_path / "new" / "stdout").read_text() == "new\n"
    # the provider got what two jobs cost, on top of what it had; nothing is made or lost
    did = output("whoami", home=provider)["did"]
    had = next(account["balance"] for account in before["authority"]["accounts"] if account["id"] == did)
    assert micro(output("account", "balance", home=provider)["balance"]) == had + 2 * micro("0.25")
    audit = output("registry", "audit", home=authority)
    assert (audit["total"], audit["log_intact"]) == ("0", True)
    assert audit["log_entries"] > len(before["authority"]["log"])


@pytest.mark.parametrize("name", ["matched", "requested"])
def test_a_job_whose_bid_is_long_over_ends(name: str, running: Homes, before: Before, tmp_path: Path) -> None:
    """Its provider declines what does not stand any more; the job does not wait for ever, and nothing is held for it."""
    job = job_named(before, name)["id"]
    command = ("job", "run", "--job", job, "--output-dir", str(tmp_path))
    done = nunet(*command, home=running["requester"], check=False)
    shown = output("job", "show", job, home=running["requester"])
    assert (done.returncode, shown["state"]) in ((0, "settled"), (5, "failed")), done.stderr
    wait_until(
        lambda: not output("capability", "show", home=running["provider"])["taken"],
        what="the provider's locks given back",
    )


def test_what_was_disputed_can_be_resolved(running: Homes, before: Before) -> None:
    job = next(job for job in before["requester"]["jobs"] if job["state"] == "disputed")
    (dispute,) = [row for row in output("contract", "dispute", home=running["authority"]) if not row["decision"]]
    assert dispute["contract_id"] == job["contract_id"]
    assert [part["text"] for part in dispute["evidence"] if part["text"]] == [
        part["text"]
        for row in before["authority"]["disputes"]
        if row["contract_id"] == job["contract_id"]
        for part in row["evidence"]
        if part["text"]
    ]
    nunet("contract", "resolve", job["contract_id"], "--pay", home=running["authority"])
    wait_until(
        lambda: output("job", "show", job["id"], home=running["requester"])["state"] == "resolved",
        what="the requester's word of it",
    )


def test_outputs_of_before_are_still_here(homes: Homes, before: Before, tmp_path: Path) -> None:
    job = job_named(before, "settled")
    nunet("job", "result", job["id"], "--output-dir", str(tmp_path / "out"), home=homes["requester"])
    assert (tmp_path / "out" / "count.txt").read_text() == "3\n"
    assert (tmp_path / "out" / "stdout").read_text() == "counted\n"


def test_an_offer_with_a_bare_name_of_a_verifier_is_shown(homes: Homes) -> None:
    shown = output("capability", "show", home=homes["provider"])
    assert shown["registered"]["resources"]["cpu"]["cores"] == 1
    assert "civic" in json.dumps(shown["registered"]["kycs"])
