"""`nunet preferences`: what this node accepts, as a provider and as a requester."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from nunet_cli.cli.output import Format, OutputOption, emit, fields, price_text
from nunet_cli.cli.state import connect
from nunet_cli.errors import UsageError

app = typer.Typer()
WEIGHTS = ("price", "start", "load", "distance")


def _render(row: dict[str, Any]) -> None:
    fields(
        {
            "price": price_text(row["price"]), "minimum price": f"{row['minimum_price']} NTX a job",
            "allow": row["allow"], "deny": row["deny"],
            "shares": [f"{share['who']} {share['weight']:g}" for share in row["shares"]],
            "most per requester": _most_text(row["most_per_requester"]),
            "weights": [f"{name} {value:g}" for name, value in row["weights"].items()],
        }
    )  # fmt: skip
    for name, rules in (("accept jobs if", row["rules"]), ("take bids if", row["bid_rules"])):
        for rule in rules:
            typer.echo(f"{name}: {rule}")


def _most_text(most: dict[str, Any]) -> list[str]:
    share = [f"{most['share']:.0%} of the machine"] if most["share"] < 1 else []
    return share + ([f"{most['jobs']} jobs"] if most["jobs"] else [])


@app.command("show")
def show(output: OutputOption = Format.table) -> None:
    """Show the preferences."""
    with connect(read_only=True) as client:
        row = client.get("/preferences")
    emit(row, output, lambda: _render(row))


@app.command("set")
def set_preferences(
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="As a provider, accept a job only if this CEL holds.", metavar="CEL"),
    ] = None,
    bid_rule: Annotated[
        list[str] | None,
        typer.Option("--bid-rule", help="As a requester, take a bid only if this holds.", metavar="CEL"),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", help="Points for price, start, load or distance.", metavar="NAME=POINTS"),
    ] = None,
    minimum_price: Annotated[str | None, typer.Option("--minimum-price", help="NTX a job.", metavar="NTX")] = None,
    price: Annotated[
        str | None, typer.Option("--price", help="The price asked: '0.5', or '1.5/h'.", metavar="NTX")
    ] = None,
    allow: Annotated[list[str] | None, typer.Option("--allow", help="Deal with these only.", metavar="DID")] = None,
    deny: Annotated[list[str] | None, typer.Option("--deny", help="Never deal with this one.", metavar="DID")] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(
            "--share",
            help="As a provider, let this requester, or those for whom the CEL holds, have so many turns for one.",
            metavar="WHO=WEIGHT",
        ),
    ] = None,
    most: Annotated[
        str | None,
        typer.Option(
            "--most-per-requester",
            help="The most that one requester's jobs hold: share=0.5 of the machine, jobs=4 at a time, or both.",
            metavar="LIMITS",
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Begin with no rules, lists and limits.")] = False,
    output: OutputOption = Format.table,
) -> None:
    """Change the preferences; lists that are given replace those that were there.

    Expressions are CEL. They may name node, job, price, peer, bid and machine: for example
    --rule "job.memory < quantity('4GiB') && machine.cpu_load < 0.8".
    """
    body: dict[str, Any] = {}
    if clear:
        body = {"rules": [], "bid_rules": [], "allow": [], "deny": [], "shares": [], "most_per_requester": {}}
    given = {"rules": rule, "bid_rules": bid_rule, "allow": allow, "deny": deny}
    body |= {name: value for name, value in given.items() if value}
    body |= {name: value for name, value in (("minimum_price", minimum_price), ("price", price)) if value is not None}
    if share:
        body["shares"] = [_share(text) for text in share]
    if most is not None:
        body["most_per_requester"] = _most(most)
    with connect() as client:
        if weight:
            body["weights"] = {**client.get("/preferences")["weights"], **_weights(weight)}
        if not body:
            raise UsageError("say what to change", hint="see: nunet preferences set --help")
        row = client.post("/preferences", body)
    emit(row, output, lambda: _render(row))


def _share(text: str) -> dict[str, Any]:
    who, _, weight = text.rpartition("=")
    try:
        return {"who": who.strip(), "weight": float(weight)}
    except ValueError:
        raise UsageError(f"--share: {text!r}", hint="write WHO=WEIGHT, for example did:key:z6Mk…=3") from None


def _most(text: str) -> dict[str, Any]:
    """Return the limits of `share=0.5,jobs=4`; an empty text is for none."""
    found: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = part.partition("=")
        try:
            found[name] = {"share": float, "jobs": int}[name](value)
        except (KeyError, ValueError):
            hint = "write share=0.5, jobs=4, or share=0.5,jobs=4"
            raise UsageError(f"--most-per-requester: {part!r}", hint=hint) from None
    return found


def _weights(texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, points = text.partition("=")
        try:
            found[name] = float(points)
        except ValueError:
            raise UsageError(f"--weight: {text!r}", hint="write NAME=POINTS, for example price=60") from None
        if name not in WEIGHTS:
            raise UsageError(f"--weight: no weight {name!r}", hint=f"one of {', '.join(WEIGHTS)}")
        if not math.isfinite(found[name]) or found[name] < 0:
            raise UsageError(f"--weight: {text!r}: points are 0 or more", hint="for example price=60")
    return found
