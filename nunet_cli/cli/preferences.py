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
            "weights": [f"{name} {value:g}" for name, value in row["weights"].items()],
        }
    )  # fmt: skip
    for name, rules in (("accept jobs if", row["rules"]), ("take bids if", row["bid_rules"])):
        for rule in rules:
            typer.echo(f"{name}: {rule}")


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
    clear: Annotated[bool, typer.Option("--clear", help="Begin with no rules and lists.")] = False,
    output: OutputOption = Format.table,
) -> None:
    """Change the preferences; lists that are given replace those that were there.

    Expressions are CEL. They may name node, job, price, peer, bid and machine: for example
    --rule "job.memory < quantity('4GiB') && machine.cpu_load < 0.8".
    """
    body: dict[str, Any] = {"rules": [], "bid_rules": [], "allow": [], "deny": []} if clear else {}
    given = {"rules": rule, "bid_rules": bid_rule, "allow": allow, "deny": deny}
    body |= {name: value for name, value in given.items() if value}
    body |= {name: value for name, value in (("minimum_price", minimum_price), ("price", price)) if value is not None}
    with connect() as client:
        if weight:
            body["weights"] = {**client.get("/preferences")["weights"], **_weights(weight)}
        if not body:
            raise UsageError("say what to change", hint="see: nunet preferences set --help")
        row = client.post("/preferences", body)
    emit(row, output, lambda: _render(row))


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
