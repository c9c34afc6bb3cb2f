"""A hundred runs of `kill -9`: a paid job, a process of one role killed at a random moment, and what the books say then.

    python -m tests.endurance.kills --runs 100 --seed 1 --verbose
    python -m tests.endurance.kills --runs 5 --only-lost-provider

The nodes are processes with homes of their own, the same ones for all runs, so that what one run leaves behind is found
by the next. Each run posts a job, kills one process and starts it again, or leaves a provider away until the job is
settled elsewhere; then the stores are read. What a run does follows from the seed and its number; what it meets also
from the machine. It ends with 1 where something was wrong, and keeps the homes.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nunet_cli.errors import NunetError
from nunet_cli.records.bids import BIDS
from nunet_cli.records.jobs import JOB, JOB_ENDS, JOBS
from tests.endurance import books
from tests.endurance.market import DATABASE, NAMES, ORACLE, PROVIDERS, REQUESTER, Late, Market, wait_for

PROVIDER = "provider"
ROLES = (REQUESTER, PROVIDER, DATABASE, ORACLE)
# whose events are watched for whom to kill, and from which one to which one: a job's way has 17 at the requester, eight at
# its provider, two at the contract database; the last ones are noted when the work is done
MOMENTS: dict[str, tuple[tuple[str, int, int], ...]] = {
    REQUESTER: ((REQUESTER, 1, 15), (REQUESTER, 8, 17), (DATABASE, 1, 2)),
    PROVIDER: ((REQUESTER, 3, 14), (PROVIDER, 1, 8), (PROVIDER, 1, 8), (DATABASE, 1, 1)),
    DATABASE: ((REQUESTER, 4, 10), (REQUESTER, 11, 16), (PROVIDER, 2, 8), (DATABASE, 1, 2)),
    ORACLE: ((REQUESTER, 6, 14), (REQUESTER, 13, 14), (PROVIDER, 7, 8), (ORACLE, 1, 1)),
}
LOST_MOMENTS = ((REQUESTER, 10, 13), (PROVIDER, 3, 7), (PROVIDER, 7, 8))
# a job ends so long after the process is back, the books are the same so long after that, in seconds
JOB_END, TOLD, SETTLED_ELSEWHERE = 120.0, 60.0, 60.0
# of the providers so many are lost; of the others so many are away for longer than an answer is waited for
LOST, LONG = 0.15, 0.1
STATES = list(JOB.states)


@dataclass(frozen=True)
class Plan:
    """What a run does: times in seconds, the longest duration of the job as it is written."""

    role: str
    lost: bool
    watched: str
    event: int
    pause: float
    away: float
    executor: str
    length: float
    max_duration: str

    @classmethod
    def draw(cls, seed: int, number: int, roles: Sequence[str], *, only_lost: bool, long: float = LONG) -> Plan:
        """Return the plan of a run: alike for the same seed and number."""
        dice = random.Random(f"{seed}/{number}")
        role = PROVIDER if only_lost else dice.choice(roles)
        lost = only_lost or (role == PROVIDER and dice.random() < LOST)
        watched, least, most = dice.choice(LOST_MOMENTS if lost else MOMENTS[role])
        # a moment after an event is within the transaction that follows; a longer one is in the middle of the work
        pause = dice.choice([0.0, dice.uniform(0, 0.02), dice.uniform(0, 0.02), dice.uniform(0, 1)])
        away = dice.uniform(11, 15) if dice.random() < long else dice.choice([0.0, dice.uniform(0, 1)])
        return cls(
            role, lost, watched, dice.randint(least, most), pause, away, dice.choice(["process", "process", "null"]),
            dice.choice([0.0, dice.uniform(0, 1.5)]), dice.choice(["8s", "60s"]),
        )  # fmt: skip

    def job(self, number: int) -> dict[str, Any]:
        """Return the specification of the run's job."""
        if self.executor == "null":
            executor: dict[str, Any] = {"type": "null", "env": {"NULL_SECONDS": f"{self.length:.3f}"}}
            outputs = []
        else:
            command = ["sh", "-c", f"sleep {self.length:.3f}; echo {text_of(number)} > out.txt"]
            executor, outputs = {"type": "process", "command": command}, [{"path": "out.txt"}]
        return {
            "name": f"run-{number}", "executor": executor, "outputs": outputs, "price": 2, "retry": {"attempts": 2},
            "resources": {"cpu": 0.1, "memory": "64MiB", "disk": "16MiB"}, "time": {"max_duration": self.max_duration},
        }  # fmt: skip


@dataclass
class Outcome:
    """What a run did and found; times in seconds."""

    plan: Plan
    job_id: str = ""
    victim: str = ""
    state: str = ""
    event: str = ""
    end: str = ""
    attempts: int = 0
    elsewhere: float | None = None
    lapsing: int = 0
    took: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def line(self, number: int) -> str:
        lost = f", settled elsewhere after {self.elsewhere:.1f} s" if self.elsewhere is not None else ""
        said = f"{self.victim} killed when the job was {self.state or 'not there'} (after {self.event or 'nothing'})"
        away = "gone" if self.plan.lost else f"away {self.plan.away:.1f} s"
        wrong = "".join(f"\n      WRONG: {text}" for text in self.wrong)
        return f"{number:>4}  {self.took:5.1f} s  {said}, {away}: {self.end or 'no end'}{lost}{wrong}"


def text_of(number: int) -> str:
    """Return what the job of a run writes into its output."""
    return f"output of run {number}"


class Run:
    """One run on a market whose nodes are all up; afterwards they are again, unless something is wrong."""

    def __init__(self, market: Market, number: int, plan: Plan) -> None:
        self.market, self.number, self.outcome = market, number, Outcome(plan)
        self._killed_at = 0.0

    def go(self) -> Outcome:
        """Do what is planned, and return what came of it."""
        begin = time.monotonic()
        outcome, plan = self.outcome, self.outcome.plan
        try:
            spec = plan.job(self.number)
            outcome.job_id = self.market.api(REQUESTER).post("/orchestrator/postJob", {"spec": spec})["id"]
            self._wait_moment()
            self._kill()
            if plan.lost:
                self._wait_elsewhere()
            else:
                time.sleep(plan.away)
            self.market.start(outcome.victim)
            self._wait_end()
            self._check()
        except (Late, NunetError) as error:
            outcome.wrong.append(str(error))
        outcome.wrong += self.market.unexpected()
        outcome.took = time.monotonic() - begin
        return outcome

    # -- the moment --------------------------------------------------------------------------------------------------

    def _expected_provider(self) -> str:
        """Return who runs the job, or is about to."""
        job = self._job()
        with books.looking(self.market.home(REQUESTER)) as store:
            bid = store[BIDS].get(job["bid_id"] or next(iter(job["shortlist"]), ""))
        if bid is not None:
            return self.market.name_of(bid.did)
        return PROVIDERS[1] if self.outcome.plan.max_duration == "8s" else PROVIDERS[0]

    def _wait_moment(self) -> None:
        """Wait until the node that is watched has noted the event, or nothing more is to come."""
        plan, outcome = self.outcome.plan, self.outcome
        watched = self._expected_provider() if plan.watched == PROVIDER else plan.watched
        with books.looking(self.market.home(watched)) as store, books.looking(self.market.home(REQUESTER)) as jobs:

            def is_reached() -> bool:
                seen = books.events(store, outcome.job_id)[: plan.event]
                outcome.event = f"{watched}: {seen[-1]}" if seen else ""
                job = jobs[JOBS].get(outcome.job_id)
                return len(seen) >= plan.event or (job is not None and job.state in JOB_ENDS)

            wait_for(is_reached, JOB_END, f"event {plan.event} at {watched}", pause=0.004)
        # not a wait for something: the moment is what is drawn
        time.sleep(plan.pause)

    def _kill(self) -> None:
        outcome = self.outcome
        outcome.victim = self._expected_provider() if outcome.plan.role == PROVIDER else outcome.plan.role
        self.market.kill(outcome.victim)
        self._killed_at = time.monotonic()
        outcome.state = self._job()["state"]
        outcome.wrong += books.at_any_moment(self.market, outcome.victim)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _job(self) -> dict[str, Any]:
        job = books.find(self.market.home(REQUESTER), "jobs", self.outcome.job_id)
        assert job is not None, "a job whose post was answered is in the store"
        return job

    def _has_ended(self) -> bool:
        return self._job()["state"] in JOB_ENDS

    def _wait_elsewhere(self) -> None:
        """Wait until the job of a provider that is gone has ended all the same."""
        had_ended = self.outcome.state in JOB_ENDS
        try:
            wait_for(
                self._has_ended, JOB_END, f"the end of a job that was {self.outcome.state} when its provider was lost"
            )
        except Late as error:
            # what becomes of it when the provider is back after all is looked at, too
            self.outcome.wrong.append(f"{error}: it is {self._job()['state']} ({self._stuck()})")
            return
        if not had_ended:
            self.outcome.elsewhere = time.monotonic() - self._killed_at
            if self.outcome.elsewhere > SETTLED_ELSEWHERE:
                self.outcome.wrong.append(f"it took {self.outcome.elsewhere:.1f} s until the job was settled elsewhere")

    def _stuck(self) -> str:
        with books.looking(self.market.home(REQUESTER)) as store:
            said = [
                event.data.get("message", "")
                for _, event in store.log(self.outcome.job_id)
                if event.type == "job_stuck"
            ]
        return said[-1] if said else "the node is at it"

    def _wait_end(self) -> None:
        try:
            wait_for(self._has_ended, JOB_END, "the job's end")
        except Late as error:
            raise Late(f"{error}: it is {self._job()['state']} ({self._stuck()})") from None
        job = self._job()
        self.outcome.end, self.outcome.attempts = job["state"], job["attempts"]
        if job["state"] != "settled":
            reason = (job.get("error") or {}).get("message", "")
            self.outcome.wrong.append(f"a restart ended the job: it is {job['state']}: {reason}")

    def _check(self) -> None:
        """Check what must hold at once, and what must hold once everybody was told."""
        market, outcome = self.market, self.outcome
        found: list[str] = []

        def is_told() -> bool:
            self._resolve_disputes()
            found[:] = books.in_the_end(market)
            return not found

        for name in NAMES:
            outcome.wrong += books.at_any_moment(market, name)
        try:
            wait_for(is_told, TOLD, "the same books everywhere")
        except Late:
            outcome.wrong += found
        outcome.lapsing = books.lapsing(market)
        outcome.wrong += books.evidence(market, outcome.job_id)
        if outcome.end == "settled" and outcome.plan.executor != "null":
            self._check_output()

    def _resolve_disputes(self) -> None:
        """As the operator, give the deposit back where a lost provider's result came after the job had gone on."""
        if self.outcome.plan.lost:
            for row in books.rows(self.market.home(DATABASE), "registered_contracts"):
                if row["state"] == "disputed" and row["job_id"] == self.outcome.job_id:
                    body = {"decision": "refund", "share": "0.5"}
                    self.market.api(DATABASE).post(f"/contracts/{row['id']}/resolve", body)

    def _check_output(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = f"/jobs/{self.outcome.job_id}/outputs"
            self.market.api(REQUESTER).post(path, {"folder": folder}, timeout=TOLD)
            file = Path(folder) / "out.txt"
            said = file.read_text().strip() if file.exists() else "not there"
        if said != text_of(self.number):
            self.outcome.wrong.append(f"the output of a settled job is {said!r}")


# -- many runs ---------------------------------------------------------------------------------------------------------


def table(outcomes: list[Outcome], more: list[str]) -> str:
    """Return the counts of many runs as text."""
    states = sorted({outcome.state for outcome in outcomes}, key=lambda state: STATES.index(state) if state else -1)
    kills = Counter((outcome.victim, outcome.state) for outcome in outcomes)
    lines = ["killed \\ job was".ljust(20) + "".join(f"{state or '?':>11}" for state in states) + f"{'all':>7}"]
    for name in NAMES:
        counts = [kills[name, state] for state in states]
        lines.append(name.ljust(20) + "".join(f"{count or '':>11}" for count in counts) + f"{sum(counts):>7}")
    ends = Counter(outcome.end or "no end" for outcome in outcomes)
    lines.append("ends: " + ", ".join(f"{count} {end}" for end, count in ends.most_common()))
    again, away = sum(outcome.attempts > 0 for outcome in outcomes), sum(outcome.plan.away > 10 for outcome in outcomes)
    lines.append(f"tried again with another provider: {again}; away for more than 10 s: {away}")
    lines.append(f"locks left to lapse after a run: {max(outcome.lapsing for outcome in outcomes)} at most")
    elsewhere = [outcome.elsewhere for outcome in outcomes if outcome.elsewhere is not None]
    if elsewhere:
        lines.append(f"providers lost: {len(elsewhere)}; settled elsewhere after at most {max(elsewhere):.1f} s")
    took = sorted(outcome.took for outcome in outcomes)
    lines.append(f"a run took {took[len(took) // 2]:.1f} s (median), {took[-1]:.1f} s at most")
    violations = sum(len(outcome.wrong) for outcome in outcomes)
    lines.append(f"runs: {len(outcomes)}; violations: {violations}")
    return "\n".join([*lines, *more])


def final_check(market: Market) -> list[str]:
    """Stop every node, and look at the books once more, with nobody there."""
    try:
        market.stop()
    except Late as error:
        return [str(error)]
    wrong = [text for name in NAMES for text in books.at_any_moment(market, name)]
    return wrong + books.in_the_end(market) + market.unexpected()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.kills", description="kill -9 at random moments.")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=1, help="the number of the first run, to do one again")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--role", action="append", choices=ROLES, help="whom to kill; may be repeated")
    parser.add_argument("--long", type=float, default=LONG, help="the share of runs with a process away for 11 to 15 s")
    parser.add_argument("--only-lost-provider", action="store_true", help="providers that do not come back")
    parser.add_argument("--folder", type=Path, help="for the homes; a temporary one by default")
    parser.add_argument("--verbose", action="store_true", help="a line for each run")
    asked = parser.parse_args(arguments)
    top = asked.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"seed {asked.seed}, homes below {top}", flush=True)
    # ended by a time limit, it leaves no process behind either
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcomes: list[Outcome] = []
    markets: list[Market] = []
    kept: dict[Path, str] = {}
    try:
        for number in range(asked.first, asked.first + asked.runs):
            if not markets or markets[-1].folder in kept:
                # what is wrong in the books of a market would be found wrong by every run that follows
                markets.append(Market(top / f"m{number}"))
                markets[-1].start(*NAMES)
            market = markets[-1]
            plan = Plan.draw(
                asked.seed, number, asked.role or ROLES, only_lost=asked.only_lost_provider, long=asked.long
            )
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
        if outcomes:
            beside = [paid for market in markets for paid in books.paid_beside(market)]
            said = f"paid for time of contracts that were called off: {', '.join(beside) or 'nothing'}"
            print(table(outcomes, [said, *kept.values()]), flush=True)
    for market in markets:
        if market.folder not in kept:
            shutil.rmtree(market.folder)
    if not kept and not asked.folder:
        top.rmdir()
    return 1 if kept else 0


def _leave(market: Market) -> None:
    try:
        market.stop()
    except Late as error:
        print(error)


if __name__ == "__main__":
    sys.exit(main())
