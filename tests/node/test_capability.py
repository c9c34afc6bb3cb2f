from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from nunet_cli.database.store import Store, Transaction
from nunet_cli.errors import StateError, UsageError
from nunet_cli.jobs.spec import ExecutorSpec, JobSpec
from nunet_cli.jobs.tree import required_capability
from nunet_cli.node import onboarding
from nunet_cli.node.benchmark import probe_machine, run_benchmark
from nunet_cli.node.capability import CapabilityAccounting
from nunet_cli.node.monitor import Monitor
from nunet_cli.node.onboarding import plan_onboarding
from nunet_cli.records.allocations import HOLDINGS
from nunet_cli.records.capability import LEAST_CORES, Capability, Cpu, Gpu, Resources
from nunet_cli.records.offers import OnboardOptions
from tests.together import held

TOTAL = Resources(Cpu(4), 100, 100, (Gpu(vram=8), Gpu(vram=16)))
LATER, PAST = "2999-01-01T00:00:00.000Z", "2000-01-01T00:00:00.000Z"
WANTED = st.builds(
    Resources, cpu=st.builds(Cpu, cores=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])), memory=st.integers(0, 60),
    disk=st.integers(0, 60), gpus=st.lists(st.builds(Gpu, vram=st.sampled_from([0, 8, 16])), max_size=2).map(tuple),
)  # fmt: skip
NAMES = st.sampled_from(["b1", "b2", "b3", "b4"])


class NeverOverCommitted(RuleBasedStateMachine):
    """However locks, allocations and releases come, nothing is handed out twice and nothing gets lost."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(Path(":memory-not-used:"), read_only=True)
        self.store.read_only = False
        self.accounting = CapabilityAccounting(self.store, Monitor(Path("/")))
        self.run(lambda: self.accounting.set_registered_capability(Capability(resources=TOTAL), None))

    @staticmethod
    def run(make):  # type: ignore[no-untyped-def]
        async def main():  # type: ignore[no-untyped-def]
            return await make()

        return trio.run(main)

    def change(self, act) -> None:  # type: ignore[no-untyped-def]
        before = self.accounting.get_available_capability()
        try:
            self.run(lambda: self.store.change(act))
        except StateError:
            assert self.accounting.get_available_capability() == before

    @rule(name=NAMES, wanted=WANTED, until=st.sampled_from([LATER, PAST]))
    def lock(self, name: str, wanted: Resources, until: str) -> None:
        self.change(lambda t: self.accounting.lock_capability(t, name, "job", wanted, until))

    @rule(name=NAMES, wanted=WANTED)
    def allocate(self, name: str, wanted: Resources) -> None:
        self.change(lambda t: self.accounting.allocate(t, name, f"allocation-{name}", wanted))

    @rule(name=NAMES, allocated=st.booleans())
    def release(self, name: str, allocated: bool) -> None:
        self.change(lambda t: self.accounting.release(t, f"allocation-{name}" if allocated else name))

    @invariant()
    def adds_up(self) -> None:
        left = self.accounting.get_available_capability().resources
        assert min(left.cpu.cores, left.memory, left.disk) >= 0
        taken = [row.resources for row in self.accounting.taken(self.store)]
        assert round(sum(item.cpu.cores for item in taken) + left.cpu.cores, 3) == 4
        assert sum(item.memory for item in taken) + left.memory == 100
        assert sum(len(item.gpus) for item in taken) + len(left.gpus) == 2


TestNeverOverCommitted = NeverOverCommitted.TestCase
TestNeverOverCommitted.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


def test_a_lapsed_lock_gives_its_capability_back() -> None:
    machine = NeverOverCommitted()
    machine.lock("b1", Resources(memory=60), PAST)
    assert machine.accounting.get_available_capability().resources.memory == 100
    assert not machine.accounting.is_locked(machine.store, "b1")


def test_headroom_and_refusals_name_the_flag(tmp_path: Path) -> None:
    machine = probe_machine(tmp_path)
    offered, _, _ = plan_onboarding(tmp_path, OnboardOptions())
    assert offered.resources.memory <= machine.memory * 0.9
    for options, text in (
        (OnboardOptions(cpu=10_000), "--cpu: 10000 cores is more than 90% of"),
        (OnboardOptions(memory="99TiB"), "--memory: 99 TiB is more than"),
        (OnboardOptions(max_share=0.0), "--max-share: 0 is not between"),
        (OnboardOptions(max_share=0.95), "--max-share: 0.95 is not between"),
        (OnboardOptions(gpu=99), "--gpu: 99 asked for, this machine has"),
        (OnboardOptions(cpu=-1), "--cpu: -1 is not more than 0"),
        (OnboardOptions(memory="lots"), "not a size: 'lots'"),
        (OnboardOptions(price="free"), "not an amount of money"),
        (OnboardOptions(localities=("SE",)), "--locality"),
    ):
        with pytest.raises(UsageError) as caught:
            plan_onboarding(tmp_path, options)
        assert text in caught.value.message


def test_the_benchmark_measures_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nunet_cli.node.benchmark.CPU_SECONDS", 0.05)
    monkeypatch.setattr("nunet_cli.node.benchmark.MEMORY_SECONDS", 0.05)
    measured = run_benchmark(tmp_path)
    assert min(measured.cpu_hash, measured.memory_copy, measured.disk_write) > 0
    assert onboarding.HEADROOM == 0.9


async def test_locks_that_have_lapsed_are_let_go(tmp_path: Path) -> None:
    """Every bid request looks through what is locked: a peer that has locked again and again must not slow it down."""
    with Store(tmp_path) as store:
        accounting = CapabilityAccounting(store, Monitor(tmp_path))
        await accounting.set_registered_capability(Capability(resources=TOTAL), None)
        for name in ("b1", "b2", "b3"):
            await store.change(
                lambda t, name=name: accounting.lock_capability(t, name, "job-1", Resources(memory=60), PAST)
            )
        assert [row.id for row in store[HOLDINGS].by("kind", "lock")] == ["b3"]


def test_a_job_that_asks_for_no_processor_takes_a_share_of_it() -> None:
    """However many of them a node took, it had as much left as before."""
    machine = NeverOverCommitted()
    for number in range(100):
        machine.lock(f"b{number}", Resources(), LATER)
        machine.allocate(f"b{number}", Resources())
    taken = machine.accounting.taken(machine.store)
    assert len(taken) == round(4 / LEAST_CORES)
    assert machine.accounting.get_available_capability().resources.cpu.cores == 0


def test_what_a_job_needs_has_a_share_of_the_processor_for_each_program() -> None:
    idle = JobSpec(name="idle", executor=ExecutorSpec(type="null"), resources=Resources(memory=1))
    assert required_capability(idle).resources == Resources(Cpu(LEAST_CORES), 1)
    pod = JobSpec(name="pod", pod=True, children=tuple(structs.replace(idle, name=name) for name in "abc"))
    assert required_capability(pod).resources == Resources(Cpu(round(3 * LEAST_CORES, 3)), 3)


async def test_no_less_is_offered_than_is_locked_just_then(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        accounting = CapabilityAccounting(store, Monitor(tmp_path))
        await accounting.set_registered_capability(Capability(resources=TOTAL), None)
        less = Capability(resources=Resources(Cpu(1), 10, 10))

        def lock(t: Transaction) -> None:
            accounting.lock_capability(t, "b1", "job", TOTAL, LATER)

        async with held(store) as go_on, trio.open_nursery() as nursery:
            nursery.start_soon(store.change, lock)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(_refused, accounting, less)
            await trio.testing.wait_all_tasks_blocked()
            go_on()
        assert accounting.get_registered_capability().resources == TOTAL
        assert not accounting.get_available_capability().resources.memory


async def _refused(accounting: CapabilityAccounting, less: Capability) -> None:
    with pytest.raises(StateError, match="is taken than there is"):
        await accounting.set_registered_capability(less, None)
