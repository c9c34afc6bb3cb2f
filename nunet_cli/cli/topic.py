"""`nunet topic`: which bid requests a provider takes beside those that go to all."""

from __future__ import annotations

from typing import Annotated

import typer

from nunet_cli.cli.listing import Listing, list_command
from nunet_cli.cli.output import Format, OutputOption, emit
from nunet_cli.cli.state import STATE, connect

app = typer.Typer()
TopicArgument = Annotated[str, typer.Argument(help="Its name, for example /lab/gpu.", metavar="/TOPIC")]


@list_command(app)
def list_topics() -> Listing:
    """List the topics that this node or a connected peer subscribes to: where `job post --topic` finds somebody."""
    with connect() as client:
        rows = client.get("/topics")
    columns = {
        "topic": lambda row: row["topic"],
        "this node": lambda row: "subscribes" if row["subscribed"] else "-",
        "peers": lambda row: row["peers"],
    }
    return Listing(rows, columns, key="topic", empty="no topics: no provider is connected, and this node takes none")


@app.command("subscribe")
def subscribe(topic: TopicArgument, output: OutputOption = Format.table) -> None:
    """Take the bid requests of a topic, from now on and after a restart."""
    _change(topic, output, subscribed=True)


@app.command("unsubscribe")
def unsubscribe(topic: TopicArgument, output: OutputOption = Format.table) -> None:
    """Take the bid requests of a topic no more."""
    _change(topic, output, subscribed=False)


def _change(topic: str, output: Format, *, subscribed: bool) -> None:
    from nunet_cli.config_file import get, set_in_file

    kept = [name for name in get(STATE.config(), "network.topics") if name != topic]
    set_in_file(STATE.config_file, "network.topics", [*kept, topic] if subscribed else kept)
    with connect(read_only=True) as client:
        # one that runs has read its configuration already
        row = client.post("/topics", {"topic": topic, "subscribed": subscribed})
    emit(row, output, lambda: typer.echo(f"{topic}  {'subscribed' if subscribed else 'unsubscribed'}"), key="topic")
