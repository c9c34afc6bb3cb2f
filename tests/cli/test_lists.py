"""Long lists: a table has their end, programs get them whole, and pages follow each other."""

import json
from pathlib import Path

import pytest
import trio

from nunet_cli.database.store import Store, Transaction
from nunet_cli.records.jobs import JOBS, Job
from tests.cli.test_wizard import at_a_terminal
from tests.conftest import nunet

COUNT, EVENTS = 130, 2500


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with many jobs; the second has a child, and much has happened to both."""
    folder = tmp_path_factory.mktemp("home")

    def fill(t: Transaction) -> None:
        for n in range(COUNT):
            kind, parent = "group" if n == 1 else "job", "job-0001" if n == 2 else ""
            units = {"name-2": "job-0002"} if n == 1 else {}
            job = Job(
                f"job-{n:04}", f"name-{n}", "did:key:z", "{}", "b", "", "", "settled", kind, parent, units, paid=str(n)
            )
            t[JOBS].put(job)
            t.save_event(job.id, "job_posted")
        for n in range(EVENTS):
            t.save_event(f"job-{n % 5:04}", "noted", number=n)

    async def prepare() -> None:
        with Store(folder) as store:
            await store.change(fill)

    trio.run(prepare)
    return folder


def test_a_table_has_the_last_hundred_and_says_so(home: Path) -> None:
    done = nunet("job", "list", "--all", home=home)
    lines = done.stdout.splitlines()
    assert (len(lines), lines[1].split()[0], lines[-1].split()[0]) == (101, "job-0030", "job-0129")
    assert done.stderr == "showing the last 100 of 130; all of them: --limit 0\n"


@pytest.mark.parametrize("options", [("--limit", "0"), ("-q",), ("-o", "jsonl"), ("-q", "--limit", "0")])
def test_programs_get_all_and_so_does_who_asks_for_it(home: Path, options: tuple[str, ...]) -> None:
    done = nunet("job", "list", "--all", *options, home=home)
    assert (len(done.stdout.splitlines()), done.stderr) == (COUNT + (options == ("--limit", "0")), "")


def listed(home: Path, *options: str) -> list[str]:
    return nunet("job", "list", "--all", "-q", *options, home=home).stdout.split()


def test_pages_follow_each_other(home: Path) -> None:
    assert listed(home, "--limit", "3") == ["job-0127", "job-0128", "job-0129"]
    assert listed(home, "--after", "job-0010", "--limit", "2") == ["job-0011", "job-0012"]
    assert listed(home, "--after", "job-0126") == ["job-0127", "job-0128", "job-0129"]
    assert listed(home, "--after", "job-0129") == []
    # what is looked through or put in order is cut afterwards
    assert listed(home, "--filter", "name~name-1", "--limit", "2") == ["job-0128", "job-0129"]
    assert listed(home, "--after", "job-0100", "--filter", "name~9", "--limit", "2") == ["job-0109", "job-0119"]
    assert listed(home, "--sort", "-paid", "--limit", "2") == ["job-0129", "job-0128"]
    done = nunet("job", "list", "--after", "job-none", home=home, check=False)
    assert (done.returncode, "there is no 'job-none' to go on after" in done.stderr) == (2, True)
    done = nunet("job", "list", "--after", "", home=home, check=False)
    assert (done.returncode, "--after: no row id given" in done.stderr) == (2, True)


def test_at_a_terminal_a_page_says_how_it_goes_on(home: Path) -> None:
    _, screen = at_a_terminal("job", "list", "--all", "--limit", "2", home=home, answers=[])
    assert "showing the last 2 of 130; all of them: --limit 0" in screen
    _, screen = at_a_terminal("job", "list", "--all", "--limit", "2", "--after", "job-0004", home=home, answers=[])
    assert "showing 2 of 130; go on with: --after job-0006" in screen
    _, screen = at_a_terminal("job", "list", "--all", "--limit", "2", "--after", "job-0127", home=home, answers=[])
    assert "showing" not in screen
    _, screen = at_a_terminal("job", "list", "--all", "--filter", "name~name-12", "--limit", "2", home=home, answers=[])
    assert "showing the last 2 of 11; all of them: --limit 0" in screen


def test_a_job_below_a_group_has_the_groups_name_though_the_group_is_on_another_page(home: Path) -> None:
    assert "name-1/name-2" in nunet("job", "list", "--all", "--after", "job-0001", "--limit", "1", home=home).stdout


@pytest.mark.parametrize(("job", "members"), [("job-0003", {3}), ("job-0001", {1, 2})])
def test_all_events_are_printed_however_many(home: Path, job: str, members: set[int]) -> None:
    lines = nunet("job", "events", job, "-o", "jsonl", home=home).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    numbers = [event["data"]["number"] for event in events if event["type"] == "noted"]
    assert numbers == [n for n in range(EVENTS) if n % 5 in members]
    assert {event["child"] for event in events} == ({"", "name-2"} if len(members) == 2 else {""})
    assert len(events) == len(numbers) + len(members)


def test_what_is_in_a_group_is_listed_where_it_is_asked_for(home: Path) -> None:
    def listed(*options: str) -> list[str]:
        return nunet("job", "list", "-q", *options, home=home).stdout.split()

    assert listed("--limit", "0", "--in", "job-0001") == ["job-0002"]
    assert set(listed("--all", "--limit", "0")) - set(listed("--limit", "0")) == {"job-0002"}
