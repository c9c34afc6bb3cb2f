"""The most that one requester may have of a machine, also when messages arrive together; shares by name and by rule."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli.errors import DeclinedError
from nunet_cli.matching.shares import over_cap, weight_of
from nunet_cli.orchestrator.match import match
from nunet_cli.orchestrator.request import request
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Cpu, Gpu, Resources
from nunet_cli.records.offers import OnboardOptions
from nunet_cli.records.shares import MostPerRequester, Share
from tests.conftest import Market, nunet, open_market

OFFER = OnboardOptions(price="0.2", cpu=0.4, memory="128MiB", disk="64MiB")


def spec(name: str) -> str:
    return json.dumps({
        "name": name, "executor": {"type": "process", "command": ["true"]}, "price": "1",
        "resources": {"cpu": 0.1, "memory": "16MiB", "disk": "1MiB"},
    })  # fmt: skip


def held(m: Market) -> list[str]:
    return [row.requester for row in m.provider.accounting.taken(m.provider.ctx.store)]


@pytest.mark.parametrize("most", [MostPerRequester(jobs=2), MostPerRequester(share=0.5)])
async def test_a_cap_holds_when_job_requests_arrive_together(tmp_path: Path, most: MostPerRequester) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        await m.provider.set_preferences(CapabilityComparator(most_per_requester=most))
        jobs = [await m.post(spec(f"job-{number}")) for number in range(4)]
        for job_id in jobs:
            # each has a bid, as nothing is locked yet
            await match(m.requester.ctx, job_id)
        said: list[Any] = []

        async def ask(job_id: str) -> None:
            try:
                job = await request(m.requester.ctx, job_id)
            except DeclinedError as error:
                said.append(error)
                return
            said.append(job)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for job_id in jobs:
                    nursery.start_soon(ask, job_id)
        states = sorted(m.job(job_id).state for job_id in jobs)
        # who was declined searches again: it is busy there, and not for ever
        assert states == ["matching", "matching", "requested", "requested"], said
        assert held(m) == [m.requester.identity.did] * 2
        refusals = [refusal for job_id in jobs for refusal in m.job(job_id).refusals]
        assert [(refusal.busy, refusal.reason[:21]) for refusal in refusals] == [(True, "one requester may hav")] * 2


async def test_a_cap_that_is_set_later_takes_nothing_back_and_lets_nothing_more_in(tmp_path: Path) -> None:
    async with open_market(tmp_path, onboard=OFFER) as m:
        jobs = [await m.post(spec(f"job-{number}")) for number in range(3)]
        for job_id in jobs:
            await match(m.requester.ctx, job_id)
        for job_id in jobs[:2]:
            await request(m.requester.ctx, job_id)
        await m.provider.set_preferences(CapabilityComparator(most_per_requester=MostPerRequester(jobs=1)))
        assert (await request(m.requester.ctx, jobs[2])).state == "matching"
        assert len(held(m)) == 2
        # what is locked is held to its end
        assert (await request(m.requester.ctx, jobs[0])).state == "requested"


def test_the_first_share_that_names_a_requester_counts() -> None:
    shares = (Share("did:key:a", 3), Share("peer.rtt_ms < 5.0", 2), Share("job.nothing == 1", 9), Share("true", 0.5))
    assert weight_of(shares, "did:key:a", 0.001) == 3
    assert weight_of(shares, "did:key:b", 0.001) == 2
    assert weight_of(shares, "did:key:b", 0.1) == 0.5
    # how far away it is, is not known
    assert weight_of(shares, "did:key:b", None) == 0.5
    assert weight_of((), "did:key:b", None) == 1


def test_a_share_of_the_machine_is_one_in_every_dimension() -> None:
    machine = Resources(Cpu(4), 800, 800, (Gpu(), Gpu()))
    small, half = Resources(Cpu(1), 100, 100), MostPerRequester(share=0.5)
    assert over_cap(half, machine, [small], small) == ""
    assert over_cap(half, machine, [small, small], small) == "one requester may have 50% of the cores here at a time"
    for name, needs in (
        ("memory", structs.replace(small, memory=401)), ("disk", structs.replace(small, disk=401)),
        ("gpus", structs.replace(small, gpus=(Gpu(), Gpu()))),
    ):  # fmt: skip
        assert over_cap(half, machine, [], needs) == f"one requester may have 50% of the {name} here at a time"
    assert over_cap(half, machine, [], structs.replace(small, gpus=(Gpu(),))) == ""
    # a fraction of a core that binary numbers do not have is no reason
    tenths = MostPerRequester(share=0.3)
    tenth = Resources(Cpu(0.1), 0, 0)
    assert over_cap(tenths, Resources(Cpu(1), 1, 1), [tenth, tenth], tenth) == ""
    assert over_cap(MostPerRequester(jobs=1), machine, [small], small) == "one requester may have 1 job here at a time"


def test_shares_and_caps_are_set_and_shown_and_wrong_ones_refused(tmp_path: Path) -> None:
    peer = json.loads(nunet("whoami", "--output", "json", home=tmp_path / "other").stdout)
    home = tmp_path / "home"

    def ask(*arguments: str, ends: int = 0) -> str:
        done = nunet("preferences", *arguments, home=home, check=False)
        assert done.returncode == ends, done.stderr
        return done.stdout + done.stderr

    set_ = ("set", "--share", f"{peer['peer_id']}=3", "--share", "peer.rtt_ms < 5.0=2")
    text = ask(*set_, "--most-per-requester", "share=0.5,jobs=4")
    assert f"{peer['did']} 3, peer.rtt_ms < 5.0 2" in text
    assert "50% of the machine, 4 jobs" in text
    row = json.loads(ask("show", "--output", "json"))
    assert row["shares"] == [{"who": peer["did"], "weight": 3.0}, {"who": "peer.rtt_ms < 5.0", "weight": 2.0}]
    assert row["most_per_requester"] == {"share": 0.5, "jobs": 4}
    # what is not named stays
    assert json.loads(ask("set", "--minimum-price", "0.1", "--output", "json"))["shares"] == row["shares"]
    for wrong, why in (
        (("--share", "peer.rtt_ms <=1"), "shares[0]"), (("--share", "nobody"), "--share: 'nobody'"),
        (("--share", f"{peer['did']}=0"), "weight"), (("--share", f"{peer['did']}=nan"), ""),
        (("--most-per-requester", "share=2"), "share"), (("--most-per-requester", "cores=1"), "'cores=1'"),
        (("--most-per-requester", "jobs=-1"), "jobs"),
    ):  # fmt: skip
        assert why in ask("set", *wrong, ends=2), wrong
    assert json.loads(ask("show", "--output", "json"))["shares"] == row["shares"]
    cleared = json.loads(ask("set", "--clear", "--output", "json"))
    assert (cleared["shares"], cleared["most_per_requester"]) == ([], {"share": 1.0, "jobs": 0})
