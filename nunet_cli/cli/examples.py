"""Two examples for each command, for its help and its man page; a test parses every one of them."""

from __future__ import annotations

from typing import Any

import typer

# longer than this and a list of commands would cut it off
SHORT = 60

EXAMPLES: dict[str, tuple[str, str]] = {
    "": ("nunet job run examples/word-count/job.yaml --local", "nunet onboard --cpu 2 --memory 4GiB --price 0.5"),
    "run": ("nunet run --local -- python3 -c 'print(6 * 7)'",
            "nunet run --price 0.5 -i data.csv -r out.csv python:3.12 -- python3 clean.py data.csv out.csv"),
    "onboard": ("nunet onboard",
                "nunet onboard --cpu 4 --memory 8GiB --disk 50GiB --price 1.5/h --locality country=SE"),
    "offboard": ("nunet offboard", "nunet offboard --force --yes"),
    "status": ("nunet status", "nunet --home /srv/node status --output json"),
    "doctor": ("nunet doctor", "nunet doctor --output json"),
    "top": ("nunet top", "nunet top --once --output json"),
    "dashboard": ("nunet dashboard", "nunet dashboard --port 8080 --no-open"),
    "demo": ("nunet demo", "nunet demo --output json"),
    "whoami": ("nunet whoami", "nunet whoami --quiet"),
    "completion": ("nunet completion bash --install", "nunet completion zsh > _nunet"),
    "schema": ("nunet schema", "nunet schema > output.schema.json"),
    "version": ("nunet version", "nunet version --output json"),
    "node run": ("nunet node run", "nunet --home /srv/authority node run --role contract-database --role oracle"),
    "node start": ("nunet node start", "nunet --home /tmp/a node start --role contract-database --role oracle"),
    "node install-service": ("nunet node install-service", "nunet node install-service --role oracle --print"),
    "node stop": ("nunet node stop", "nunet --home /tmp/a node stop"),
    "node status": ("nunet node status", "nunet node status --output json"),
    "node logs": ("nunet node logs -f", "nunet node logs --lines 200"),
    "node indices": ("nunet node indices", "nunet node indices --output json"),
    "job post": ("nunet job post job.yaml", "nunet job post - --push 12D3KooWMot5 --quiet < job.yaml"),
    "job run": ("nunet job run job.yaml --output-dir results", "nunet job run job.yaml --detach --quiet"),
    "job match": ("nunet job match job-1f2e", "nunet job match job-1f2e --timeout 30s"),
    "job request": ("nunet job request job-1f2e", "nunet job request job-1f2e --output json"),
    "job contract": ("nunet job contract job-1f2e", "nunet job contract job-1f2e --output json"),
    "job invoke": ("nunet job invoke job-1f2e", "nunet job invoke job-1f2e --output json"),
    "job settle": ("nunet job settle job-1f2e", "nunet job settle job-1f2e --output json"),
    "job list": ("nunet job list --watch", "nunet job list --filter state=settled --sort -paid --limit 10"),
    "job show": ("nunet job show job-1f2e", "nunet job show job-1f2e --output json"),
    "job logs": ("nunet job logs -f job-1f2e", "nunet job logs --stderr job-1f2e"),
    "job wait": ("nunet job wait job-1f2e job-77aa --timeout 1h",
                 "nunet job wait $(nunet job list --filter state=running --quiet)"),
    "job result": ("nunet job result job-1f2e --output-dir results", "nunet job result job-1f2e --output json"),
    "job cancel": ("nunet job cancel job-1f2e", "nunet job cancel job-1f2e --output json"),
    "job explain": ("nunet job explain job-1f2e", "nunet job explain job-1f2e --all"),
    "job events": ("nunet job events -f job-1f2e", "nunet job events job-1f2e --output jsonl"),
    "job validate": ("nunet job validate job.yaml", "nunet job init -f - | nunet job validate -"),
    "job schema": ("nunet job schema", "nunet job schema > job.schema.json"),
    "job import": ("nunet job import compose.yaml --file job.yaml",
                   "nunet job import --from bacalhau - < bacalhau.yaml"),
    "job init": ("nunet job init", "nunet job init count --image python:3.12 --command 'python3 count.py' -i count.py"),
    "bids list": ("nunet bids list job-1f2e", "nunet bids list --sort price.amount --output jsonl"),
    "bids show": ("nunet bids show bid-5c", "nunet bids show bid-5c --output json"),
    "contract list": ("nunet contract list", "nunet contract list --filter state=disputed --quiet"),
    "contract show": ("nunet contract show bafkreia", "nunet contract show job-1f2e --check"),
    "contract export": ("nunet contract export job-1f2e --file evidence.json",
                        "nunet contract export bafkreia > evidence.json"),
    "contract verify": ("nunet contract verify evidence.json", "nunet contract verify evidence.json --outputs results"),
    "contract dispute": ("nunet contract dispute job-1f2e --reason 'the output is empty'",
                         "nunet contract dispute job-1f2e --reexecute"),
    "contract resolve": ("nunet contract resolve bafkreia --refund",
                         "nunet contract resolve bafkreia --split 0.5 --yes"),
    "allocation list": ("nunet allocation list", "nunet allocation list --filter state=running"),
    "allocation show": ("nunet allocation show allocation-3c", "nunet allocation show allocation-3c --output json"),
    "capability show": ("nunet capability show", "nunet capability show --output json"),
    "capability benchmark": ("nunet capability benchmark", "nunet capability benchmark --output json"),
    "preferences show": ("nunet preferences show", "nunet preferences show --output json"),
    "preferences set": ("nunet preferences set --rule \"job.memory < quantity('4GiB')\" --minimum-price 0.1",
                        "nunet preferences set --bid-rule 'peer.rtt_ms < 50.0' --weight price=80"),
    "peer list": ("nunet peer list", "nunet peer list --filter roles~provider --output json"),
    "peer show": ("nunet peer show 12D3KooWMot5", "nunet peer show 12D3KooWMot5 --output json"),
    "peer add": ("nunet peer add 12D3KooWMot5M8NfiKTecanq4xvPUjqtxyLxU7QyV3cK7JxfmDEZ@192.0.2.7:9000",
                 "nunet peer add 12D3KooWMot5M8NfiKTecanq4xvPUjqtxyLxU7QyV3cK7JxfmDEZ@[2001:db8::7]:9000"),
    "peer remove": ("nunet peer remove 12D3KooWMot5", "nunet peer remove 12D3KooWMot5 --output json"),
    "peer ping": ("nunet peer ping 12D3KooWMot5", "nunet peer ping 12D3KooWMot5 --output json"),
    "account balance": ("nunet account balance", "nunet account balance --output json"),
    "account history": ("nunet account history", "nunet account history --limit 20 --output jsonl"),
    "account deposit": ("nunet account deposit 50 --to 12D3KooWMot5",
                        "nunet account deposit 0.5 --to did:key:z6MkpTHR8VNs"),
    "registry list": ("nunet registry list", "nunet registry list --filter status=revoked"),
    "registry approve": ("nunet registry approve did:key:z6MkpTHR8VNs",
                         "nunet registry approve 12D3KooWMot5 --note 'lab 3'"),
    "registry audit": ("nunet registry audit", "nunet registry audit --output json"),
    "registry revoke": ("nunet registry revoke did:key:z6MkpTHR8VNs --note 'key was lost'",
                        "nunet registry revoke 12D3KooWMot5 --yes"),
    "config get": ("nunet config get network.name", "nunet config get limits.output_size"),
    "config set": ("nunet config set network.name lab", "nunet config set network.listen 0.0.0.0:9000"),
    "config list": ("nunet config list", "nunet config list --output json"),
    "config path": ("nunet config path", "nunet --home /srv/node config path"),
}  # fmt: skip


def attach(app: typer.Typer, prefix: str = "") -> None:
    """Give every command of a tree its examples, and a line that a list of commands has room for."""
    for info in app.registered_commands:
        name = f"{prefix}{info.name}"
        if name in EXAMPLES:
            # \b keeps the lines as they are
            info.epilog = "\b\nExamples:\n  " + "\n  ".join(EXAMPLES[name])
        if info.callback is not None and info.callback.__doc__:
            info.short_help = brief(info.callback.__doc__)
    for group in app.registered_groups:
        inner: Any = group.typer_instance
        attach(inner, f"{prefix}{group.name} ")


def brief(text: str) -> str:
    """Return the first sentence of a text, or as much of it as stands by itself in a line."""
    first = " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    while len(first) > SHORT:
        cut = max(first.rfind(mark) for mark in (";", ":", ",", " ("))
        if cut < 12:
            break
        first = first[:cut]
    return first + "."
