"""`nunet status` and `nunet doctor`: the node on one screen, and what keeps it from working."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from nunet_cli.cli.output import Format, OutputOption, clean, dump, fields, hanging
from nunet_cli.cli.state import STATE, connect
from nunet_cli.errors import NodeError, NunetError

if TYPE_CHECKING:
    from nunet_cli.api.client import ApiClient


def status(output: OutputOption = Format.table) -> None:
    """Show on one screen whether this node works, what it does, what it has earned or spent, and what to do next."""
    running = STATE.running() is not None
    with connect(read_only=True) as client:
        document = {"running": running, **client.get("/status")}
        document["next"] = [*(_restart(client, document) if running else []), *advice(document)]
    if output is not Format.table:
        dump(document, output)
        return
    jobs, allocations, peers = document["jobs"], document["allocations"], document["peers"]
    fields(
        {
            "node": f"running since {document['started_at'][:19].replace('T', ' ')} UTC" if running else "not running",
            "peer id": document["peer_id"], "home": document["home"],
            "network": f"{document['network']}, "
            + (f"{peers['connected']} peers connected of {peers['known']} known" if running
               else f"{peers['known']} peers known"),
            "listens on": document["listen"] if running else None,
            "roles": document["roles"] or ["requester"] if running else None,
            "offers": offer(document),
            "jobs": _counts(jobs, ("open", "settled", "failed", "cancelled", "disputed")),
            "allocations": f"{allocations['running']} running, {allocations['all']} in all",
            "money": money(document),
        }
    )  # fmt: skip
    for row in jobs["now"]:
        waiting = f", waiting: {row['waiting']['for']}" if row["waiting"] else ""
        typer.echo(clean(f"  job {row['id']}  {row['name']}  {row['state']}{waiting}"))
    for row in allocations["now"]:
        typer.echo(clean(f"  allocation {row['id']}  {row['state']}"))
    for text in document["next"]:
        typer.echo(f"next: {text}")


def doctor(output: OutputOption = Format.table) -> None:
    """Look for what keeps this node from working, and say what to do: keys, disk, clock, network, executors, peers."""
    import msgspec

    from nunet_cli.cli.state import passphrase
    from nunet_cli.node.doctor import diagnose

    client = STATE.running()
    status = None
    if client is not None:
        status = {**client.get("/status"), "settings": _settings(client)}
    found = diagnose(STATE.folder, STATE.config_file, status, passphrase())
    problems = [finding for finding in found if finding.state == "problem"]
    if output is Format.table:
        marks = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}
        for finding in found:
            typer.echo(hanging(f"{marks[finding.state]} {finding.check:<18} ", clean(finding.message)))
            if finding.hint:
                typer.echo(hanging(f"{'':<28}", clean(finding.hint)))
    else:
        dump(msgspec.to_builtins(found), output)
    if problems:
        raise NodeError(f"{len(problems)} problems: {', '.join(finding.check for finding in problems)}", code="unwell")


def _settings(client: ApiClient) -> dict[str, Any]:
    """Return what a running node was started with; nothing of another machine's, or of an older one."""
    try:
        return dict(client.get("/configuration")["settings"]) if not STATE.node else {}
    except NunetError:
        return {}


def _restart(client: ApiClient, document: dict[str, Any]) -> list[str]:
    from nunet_cli.node.settings import waiting_for_restart

    changed = waiting_for_restart(_settings(client), STATE.config(), document["known_roles"])
    told = f"restart the node, which has another {', '.join(changed)}: nunet node stop && nunet node start"
    return [told] if changed else []


def offer(document: dict[str, Any]) -> str:
    """Return what a node offers, for people."""
    if not document["onboarded"]:
        return "nothing (not onboarded)"
    if not document["running"]:
        return "onboarded, but the node does not run"
    if short := document["machine"]["short_of"]:
        return f"nothing just now: the machine is short of {', and of '.join(short)}"
    return (f"{', '.join(document['executors']) or 'no executor works'}; {document['load']:.0%} taken;"
            f" strangers may run: {'; '.join(document['strangers'].values()) or 'nothing'}")  # fmt: skip


def money(document: dict[str, Any]) -> str:
    """Return what a node has, has earned and has spent, for people."""
    here = document["known_roles"]["contract-database"]
    # a home may have accounts at others, too: that of a --local job is one
    rows = [row for row in document["balances"] if row["id"] == here] or document["balances"]
    balance = [f"balance {row['balance']} NTX" for row in rows]
    return ", ".join([*balance, f"earned {document['earned']} NTX", f"spent {document['spent']} NTX"])


def _counts(counts: dict[str, Any], names: tuple[str, ...]) -> str:
    said = [f"{counts[name]} {name}" for name in names if counts[name]]
    return ", ".join(said) or "none yet"


def advice(document: dict[str, Any]) -> list[str]:
    """Return what to do next, the most pressing first."""
    jobs = document["jobs"]
    if not document["running"]:
        begun = document["onboarded"] or jobs["open"]
        return ["nunet node start", *([] if begun else ["nunet run --local -- echo hello"])]
    found = []
    if not document["peers"]["connected"]:
        found.append("no peer is connected; see: nunet doctor; add one with: nunet peer add PEER@HOST:PORT")
    for role in document["undecided"]:
        key = role.replace("-", "_")
        found.append(f"several nodes act as {role} (see: nunet doctor); choose one: nunet config set {key} DID")
    if jobs["disputed"]:
        found.append("a job is disputed: nunet job list --filter state=disputed")
    if document["onboarded"] and not document["executors"]:
        found.append("no executor works; see: nunet doctor")
    waiting = [row for row in jobs["now"] if row["waiting"]]
    if waiting:
        found.append(f"nunet job explain {waiting[0]['id']}")
    if not document["onboarded"]:
        found.append("offer this machine: nunet onboard")
    found.append("run a job: nunet job run JOB.yaml")
    return found
