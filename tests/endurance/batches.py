"""Batches and `kill -9`: in the middle of a batch one process is killed, and the batch goes on to its end.

    python -m tests.endurance.batches --items 200 --runs 5 --seed 1 --verbose
    python -m tests.endurance.batches --items 40 --runs 3 --role provider

The market is that of `kills`, with the same nodes for all runs. Each run posts a batch of short items, each with an
output file, a few of which fail by themselves; once as many have ended as is drawn, one process is killed and started
again, or a provider stays away until the batch is over. Then each item has to have ended as it had to, with the right
output, paid at most once, and nothing may be held any more. It ends with 1 where something was wrong, and keeps the
homes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nunet_cli.errors import NunetError
from nunet_cli.records.jobs import JOB_ENDS, JOBS, Job
from tests.endurance import books
from tests.endurance.kills import PROVIDER, ROLES, _leave, final_check
from tests.endurance.market import DATABASE, NAMES, ORACLE, PROVIDERS, REQUESTER, Late, Market, wait_for

# of a batch so many items fail by themselves, with this exit code
FAILING, EXIT_CODE = 0.05, 3
# an item takes so long at most, in seconds; a batch ends so long after the kill, and so much longer for each item; the
# books are the same so long after that
LONGEST, BATCH_END, ITEM_END, TOLD = 0.6, 120.0, 1.0, 90.0
# of the providers so many are lost; of the others so many are away for longer than an answer is waited for
LOST, LONG = 0.15, 0.15
# items whose evidence is looked at
LOOKED_AT = 3


@dataclass(frozen=True)
class Plan:
    """What a run does; times in seconds, `after` is the share of the items that have ended when a process is killed."""

    role: str
    victim: str
    lost: bool
    after: float
    pause: float
    away: float
    cores: float
    retries: int
    failing: frozenset[int]
    lengths: tuple[float, ...]

    @classmethod
    def draw(cls, seed: int, number: int, roles: Sequence[str], items: int, *, long: float = LONG) -> Plan:
        """Return the plan of a run: alike for the same seed, number and count of items."""
        dice = random.Random(f"{seed}/{number}")
        # each in its turn
        role = roles[number % len(roles)]
        victim = dice.choice(PROVIDERS) if role == PROVIDER else role
        lost = role == PROVIDER and dice.random() < LOST
        away = dice.uniform(11, 15) if dice.random() < long else dice.choice([0.0, dice.uniform(0, 1)])
        failing = frozenset(dice.sample(range(items), max(1, round(items * FAILING))))
        # short ones: the next item's contract is made while the one before runs
        lengths = tuple(dice.choice([0.0, dice.uniform(0, LONGEST)]) for _ in range(items))
        return cls(
            role, victim, lost, dice.uniform(0, 0.9), dice.choice([0.0, dice.uniform(0, 0.3)]), away,
            # what a provider has lost is to be tried again; nobody else's absence is an item's failure
            dice.choice([0.1, 0.25, 0.5]), 2 if role == PROVIDER else 0, failing, lengths,
        )  # fmt: skip

    def job(self, number: int) -> dict[str, Any]:
        """Return the specification of the run's batch."""
        items = [
            {
                "length": f"{length:.3f}",
                "said": text_of(number, index),
                "code": str(EXIT_CODE * (index in self.failing)),
            }
            for index, length in enumerate(self.lengths)
        ]
        command = ["sh", "-c", "sleep {length}; [ {code} = 0 ] || exit {code}; echo {said} > out.txt"]
        return {
            "name": f"batch-{number}", "type": "batch", "batch": {"items": items},
            "executor": {"type": "process", "command": command}, "outputs": [{"path": "out.txt"}], "price": 2,
            "retry": {"attempts": self.retries}, "time": {"max_duration": "30s"},
            "resources": {"cpu": self.cores, "memory": "64MiB", "disk": "16MiB"},
        }  # fmt: skip


def text_of(number: int, index: int) -> str:
    """Return what an item writes into its output."""
    return f"run-{number}-item-{index}"


@dataclass
class Outcome:
    """What a run did and found; times in seconds."""

    plan: Plan
    batch_id: str = ""
    ended: int = 0
    in_line: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    searches: int = 0
    contracts: int = 0
    took: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def line(self, number: int) -> str:
        away = "gone" if self.plan.lost else f"away {self.plan.away:.1f} s"
        ends = ", ".join(f"{count} {state}" for state, count in self.ends.most_common()) or "no end"
        said = (
            f"{self.plan.victim} killed after {self.ended} items, {self.in_line} in line, {away}: {ends};"
            f" {self.searches} searches, {self.contracts} contracts, {self.attempts} items tried again"
        )
        wrong = "".join(f"\n      WRONG: {text}" for text in self.wrong)
        return f"{number:>4}  {self.took:5.1f} s  {said}{wrong}"


class Run:
    """One run on a market whose nodes are all up; afterwards they are again, unless something is wrong."""

    def __init__(self, market: Market, number: int, plan: Plan) -> None:
        self.market, self.number, self.outcome = market, number, Outcome(plan)

    def go(self) -> Outcome:
        """Do what is planned, and return what came of it."""
        begin = time.monotonic()
        outcome, plan, market = self.outcome, self.outcome.plan, self.market
        try:
            spec = plan.job(self.number)
            outcome.batch_id = market.api(REQUESTER).post("/orchestrator/postJob", {"spec": spec})["id"]
            wait_for(self._is_moment, self._patience(), "the moment of the kill", pause=0.01)
            # not a wait for something: the moment is what is drawn
            time.sleep(plan.pause)
            market.kill(plan.victim)
            outcome.ended = self._ended()
            outcome.in_line = sum(len(_places(market.home(name))) for name in PROVIDERS)
            outcome.wrong += books.at_any_moment(market, plan.victim)
            if plan.lost:
                wait_for(self._has_gone_on, self._patience(), "the batch goes on without a lost provider", pause=0.2)
            else:
                time.sleep(plan.away)
            market.start(plan.victim)
            self._wait_end("after the restart")
            self._check()
        except (Late, NunetError) as error:
            outcome.wrong.append(str(error))
        outcome.wrong += market.unexpected()
        outcome.took = time.monotonic() - begin
        return outcome

    def _patience(self) -> float:
        return BATCH_END + ITEM_END * len(self.outcome.plan.lengths)

    def _items(self) -> list[Job]:
        with books.looking(self.market.home(REQUESTER)) as store:
            return list(store[JOBS].by("parent", self.outcome.batch_id))

    def _ended(self) -> int:
        with books.looking(self.market.home(REQUESTER)) as store:
            return store[JOBS].page(0, parent=self.outcome.batch_id, state=tuple(JOB_ENDS)).total

    def _is_moment(self) -> bool:
        return self._ended() >= self.outcome.plan.after * len(self.outcome.plan.lengths)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _has_ended(self) -> bool:
        job = books.find(self.market.home(REQUESTER), "jobs", self.outcome.batch_id)
        return job is not None and job["state"] in JOB_ENDS

    def _has_gone_on(self) -> bool:
        """Say whether all items have ended but those whose results the lost provider has, and did not deliver."""
        return all(item.state in JOB_ENDS or item.state == "completed" for item in self._items())

    def _wait_end(self, when: str) -> None:
        try:
            wait_for(self._has_ended, self._patience(), f"the end of the batch {when}", pause=0.2)
        except Late as error:
            states = Counter(item.state for item in self._items())
            raise Late(f"{error}: its items are {dict(states)}") from None

    def _check(self) -> None:
        market, outcome, plan = self.market, self.outcome, self.outcome.plan
        items = self._items()
        outcome.ends = Counter(item.state for item in items)
        outcome.attempts = sum(item.attempt > 1 for item in items)
        if len(items) != len(plan.lengths):
            outcome.wrong.append(f"the batch has {len(items)} items")
        for name in NAMES:
            outcome.wrong += books.at_any_moment(market, name)
        found: list[str] = []

        def is_told() -> bool:
            self._resolve_disputes()
            found[:] = books.in_the_end(market)
            return not found

        try:
            wait_for(is_told, TOLD, "the same books everywhere", pause=0.5)
        except Late:
            outcome.wrong += found
        self._check_items(items)
        mine = {item.id for item in items}
        outcome.contracts = sum(
            row["job_id"] in mine for row in books.rows(market.home(DATABASE), "registered_contracts")
        )
        with books.looking(market.home(REQUESTER)) as store:
            outcome.searches = sum(
                books.events(store, key).count("bid_request_sent") for key in (outcome.batch_id, *mine)
            )
        settled = [item.id for item in items if item.state == "settled"]
        for key in settled[:: max(1, len(settled) // LOOKED_AT)][:LOOKED_AT]:
            outcome.wrong += books.evidence(market, key)

    def _check_items(self, items: list[Job]) -> None:
        """Check how each item ended, and what was written."""
        outcome, plan = self.outcome, self.outcome.plan
        index_of = {item.name: int(item.name.rpartition("-")[2]) for item in items}
        for item in items:
            expected = "failed" if index_of[item.name] in plan.failing else "settled"
            if item.state != expected:
                reason = item.error.message if item.error is not None else item.called_off
                outcome.wrong.append(f"the item {item.name} is {item.state}, not {expected}: {reason}")
            elif expected == "failed" and (item.result is None or item.result.exit_code != EXIT_CODE):
                reason = item.error.message if item.error is not None else ""
                outcome.wrong.append(f"the item {item.name} failed of something else: {reason}")
        with tempfile.TemporaryDirectory() as folder:
            for item in items:
                if item.state != "settled":
                    continue
                target = Path(folder) / item.id
                self.market.api(REQUESTER).post(f"/jobs/{item.id}/outputs", {"folder": str(target)}, timeout=TOLD)
                file = target / "out.txt"
                said = file.read_text().strip() if file.exists() else "not there"
                if said != text_of(self.number, index_of[item.name]):
                    outcome.wrong.append(f"the output of the item {item.name} is {said!r}")

    def _resolve_disputes(self) -> None:
        """As the operator, give the deposit back where a lost provider's result came after the item had gone on."""
        for row in books.rows(self.market.home(DATABASE), "registered_contracts"):
            if row["state"] == "disputed":
                body = {"decision": "refund", "share": "0.5"}
                self.market.api(DATABASE).post(f"/contracts/{row['id']}/resolve", body)


def _places(home: Path) -> list[dict[str, Any]]:
    return [row for row in books.rows(home, "holdings") if row.get("kind") == "place"]


# -- many runs ---------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.batches", description="kill -9 during batches.")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first", type=int, default=1, help="the number of the first run, to do one again")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--role", action="append", choices=ROLES, help="whom to kill; may be repeated")
    parser.add_argument("--long", type=float, default=LONG, help="the share of runs with a process away for 11 to 15 s")
    parser.add_argument("--away", type=float, help="let whoever is killed be away for so many seconds, always")
    parser.add_argument("--folder", type=Path, help="for the homes; a temporary one by default")
    parser.add_argument("--verbose", action="store_true", help="a line for each run")
    asked = parser.parse_args(arguments)
    top = asked.folder or Path(tempfile.mkdtemp(prefix="batches-"))
    print(f"seed {asked.seed}, homes below {top}", flush=True)
    # ended by a time limit, it leaves no process behind either
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcomes: list[Outcome] = []
    markets: list[Market] = []
    kept: dict[Path, str] = {}
    roles = asked.role or (REQUESTER, PROVIDER, DATABASE, ORACLE)
    try:
        for number in range(asked.first, asked.first + asked.runs):
            if not markets or markets[-1].folder in kept:
                # what is wrong in the books of a market would be found wrong by every run that follows
                markets.append(Market(top / f"m{number}"))
                markets[-1].start(*NAMES)
            market = markets[-1]
            plan = Plan.draw(asked.seed, number, roles, asked.items, long=asked.long)
            if asked.away is not None:
                plan = replace(plan, away=asked.away, lost=False)
            outcome = Run(market, number, plan).go()
            outcomes.append(outcome)
            if not outcome.wrong and number == asked.first + asked.runs - 1:
                outcome.wrong += final_check(market)
            if asked.verbose or outcome.wrong:
                print(outcome.line(number), flush=True)
            if outcome.wrong:
                kept[market.folder] = f"run {number} of seed {asked.seed}: {market.folder}"
                _leave(market)
    finally:
        # also of runs that were interrupted
        for market in markets:
            _leave(market)
        violations = sum(len(outcome.wrong) for outcome in outcomes)
        print("\n".join([f"runs: {len(outcomes)}; violations: {violations}", *kept.values()]), flush=True)
    for market in markets:
        if market.folder not in kept:
            shutil.rmtree(market.folder)
    if not kept and not asked.folder:
        top.rmdir()
    return 1 if kept else 0


if __name__ == "__main__":
    sys.exit(main())
