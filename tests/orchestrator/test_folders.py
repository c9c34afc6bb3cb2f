"""Folders and patterns as inputs and outputs, between real nodes: what arrives, with which modes, and what never does."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from nunet_cli.allocation import part, taking
from nunet_cli.config import LimitsConfig
from nunet_cli.errors import ContractError, NunetError, RejectedMessageError, UsageError
from nunet_cli.groups.group import outputs_of
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.check import decode_spec
from nunet_cli.orchestrator.execute import take_result
from nunet_cli.orchestrator.outputs import write_outputs
from nunet_cli.records.allocations import ALLOCATIONS
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import PROVIDER
from nunet_cli.records.documents import make_document
from nunet_cli.records.jobs import Job
from nunet_cli.records.messaging import GRANTS
from nunet_cli.records.results import OutputFile, Result
from nunet_cli.tokenomics.evidence import export_bundle, read_bundle, verify_bundle
from tests.conftest import Market, add_bytes, config, longest_pause, needs_docker
from tests.images import busybox_image
from tests.network.test_trees import described, forged

MarketOf = Callable[..., Any]
IMAGE = f"nunet-test-folders-{os.getpid()}:busybox"


def spec(command: str, **fields: Any) -> str:
    body = {"name": "test", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1"}
    return json.dumps({**body, "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "64MiB"}, **fields})


async def run(m: Market, text: str) -> Job:
    return await orchestrate_job(m.requester.ctx, await m.post(text))


async def failure(m: Market, text: str) -> str:
    """Return why a job has failed, by its own fault."""
    result = (await run(m, text)).result
    assert result is not None
    assert (result.state, result.fault) == ("failed", "job"), result
    return result.message


async def written(m: Market, job: Job, folder: Path) -> dict[str, Any]:
    """Write a job's outputs as `--output-dir` does; return what is there."""
    await write_outputs(m.requester.ctx, outputs_of(m.requester.ctx, job), {}, folder)
    return described(folder)


def stdout_of(m: Market, job: Job) -> str:
    assert job.result is not None
    return m.requester.ctx.blobs.path(job.result.stdout_cid).read_text()


async def test_who_names_a_content_that_it_does_not_have_gets_nothing_of_it(market: MarketOf) -> None:
    async with market(provider=config(limits=LimitsConfig(input_patience=1))) as m:
        secret = b"somebody else's"
        # it is at the provider, and the requester knows its content id alone
        for node in (m.provider, m.requester):
            cid, _ = await add_bytes(node.ctx.blobs, secret)
        job_id = await m.post(spec("cat x", inputs=[{"cid": cid, "to": "x"}]))
        m.requester.ctx.blobs.path(cid).unlink()
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "failed"
        (allocation,) = m.provider.ctx.store[ALLOCATIONS].by("job_id", job_id)
        assert (allocation.state, allocation.started_at) == ("failed", "")
        # nor does the oracle, which may be a friend of its
        assert m.provider.ctx.blobs.has(cid)
        assert [row.did for row in m.provider.ctx.store[GRANTS].by("cid", cid)] == []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, text, mode in (("run.sh", "#!/bin/sh\necho ran\n", 0o700), ("in/a.csv", "1\n", 0o600),
                             ("in/b.csv", "2\n", 0o664), ("in/c.txt", "3\n", 0o444)):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    (folder / "first").symlink_to("in/a.csv")
    (folder / "empty").mkdir()
    return folder


async def test_a_folder_goes_there_and_back_as_it_is(market: MarketOf, tmp_path: Path, data: Path) -> None:
    async with market() as m:
        text = spec(
            "data/run.sh && cat data/first && echo more >> data/in/b.csv && rm data/in/c.txt && mkdir data/new",
            inputs=[{"path": "data/"}], outputs=[{"path": "data/"}],
        )  # fmt: skip
        job = await run(m, text)
        assert job.state == "settled"
        assert stdout_of(m, job) == "ran\n1\n"
        found = await written(m, job, tmp_path / "out")
        expected = {f"data/{name}": what for name, what in described(data).items() if name != "in/c.txt"}
        new = found.pop("data/new")
        assert new[1] is None
        assert found.pop("data/in/b.csv") == (oct(0o664), b"2\nmore\n")
        del expected["data/in/b.csv"]
        assert found == {"data": (oct(0o755), None), **expected}
        # the user's own folder is as it was
        assert (data / "in" / "b.csv").read_text() == "2\n"


async def test_a_pattern_goes_there_and_back(market: MarketOf, tmp_path: Path, data: Path) -> None:
    async with market() as m:
        text = spec(
            "cat *.csv tables/in/*.csv > sum; mkdir -p o/deep; cp a.csv o/x.csv; cp b.csv o/y.csv; cp b.csv o/deep/z.csv; ls",
            inputs=[{"path": "data/in/*.csv"}, {"path": "data/**/*.csv", "to": "tables/"}],
            outputs=[{"path": "o/*.csv"}, {"path": "o/**/*.csv", "name": "all"}, {"path": "sum"}],
        )  # fmt: skip
        job = await run(m, text)
        assert stdout_of(m, job).split() == ["a.csv", "b.csv", "o", "sum", "tables"]
        found = await written(m, job, tmp_path / "out")
        assert {name: what[1] for name, what in found.items() if what[1] is not None} == {
            "x.csv": b"1\n", "y.csv": b"2\n", "sum": b"1\n2\n1\n2\n", "all/x.csv": b"1\n", "all/y.csv": b"2\n",
            "all/deep/z.csv": b"2\n",
        }  # fmt: skip


async def test_what_a_pattern_does_not_find_is_missing(market: MarketOf) -> None:
    async with market() as m:
        assert re.search(
            r"did not write o/\*\.csv, nowhere",
            await failure(m, spec("mkdir o", outputs=[{"path": "o/*.csv"}, {"path": "o"}, {"path": "nowhere/"}])),
        )


async def test_links_that_lead_out_are_left_out_of_outputs(market: MarketOf, tmp_path: Path) -> None:
    async with market() as m:
        command = ("mkdir -p o/d; ln -s /etc/passwd o/p; ln -s ../../../stdout o/up; ln -s d o/in; ln -s .. o/d/back; "
                   "ln -s / o/root; mkfifo o/pipe; echo x > o/d/x; ln -s /etc e")  # fmt: skip
        job = await run(m, spec(command, outputs=[{"path": "o"}]))
        found = await written(m, job, tmp_path / "out")
        assert {name: what if isinstance(what, str) else what[1] for name, what in found.items()} == {
            "o": None, "o/d": None, "o/d/back": "..", "o/d/x": b"x\n", "o/in": "d",
        }  # fmt: skip
        assert re.search("did not write e", await failure(m, spec(command, outputs=[{"path": "e"}])))
        assert re.search(r"did not write e/\*", await failure(m, spec(command, outputs=[{"path": "e/*"}])))


async def test_a_folder_is_counted_with_the_jobs_disk(market: MarketOf, tmp_path: Path) -> None:
    async with market() as m:
        # holes are what reading them gives
        assert re.search(
            "did not write o",
            await failure(m, spec("mkdir o; for i in 1 2 3; do truncate -s 60M o/$i; done", outputs=[{"path": "o"}])),
        )
        many = tmp_path / "many"
        many.mkdir()
        for number in range(300):
            (many / str(number)).touch()
        small = {"cpu": 0.2, "memory": "64MiB", "disk": "1MiB"}
        assert re.search(
            "more than the job's disk", await failure(m, spec("true", inputs=[{"path": "many"}], resources=small))
        )


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [("leads", "leads", r"leads: out: it is a link that leads out"), ("none/*.x", "x", "there is no file"),
     ("data/*.x", "x", r"no file matches \*\.x"), ("data/first/*", "x", "is not a folder"), ("data/first", ".", "is a file")],
)  # fmt: skip
async def test_what_cannot_be_sent_is_said_with_its_field(
    market: MarketOf, tmp_path: Path, data: Path, path: str, to: str, message: str
) -> None:
    (tmp_path / "leads").mkdir()
    (tmp_path / "leads" / "out").symlink_to("/etc/passwd")
    async with market() as m:
        with pytest.raises(UsageError, match=message) as caught:
            await m.post(spec("true", inputs=[{"path": "data"}, {"path": path, "to": to}]))
        assert caught.value.details["path"].startswith("inputs[1].")


async def test_two_inputs_in_one_place_are_the_jobs_fault(market: MarketOf, data: Path) -> None:
    async with market() as m:
        both = [{"path": "data", "to": "d"}, {"path": "data/in/a.csv", "to": "d/in/a.csv"}]
        assert "'d' cannot be in the job's folder: File exists" in await failure(m, spec("true", inputs=both))
        job = await run(m, spec("cat *.csv c.txt", inputs=[{"path": "data/in/*.csv"}, {"path": "data/in/c.txt"}]))
        assert stdout_of(m, job) == "1\n2\n3\n"


async def test_a_content_that_is_no_folder_is_the_jobs_fault(market: MarketOf, tmp_path: Path) -> None:
    async with market() as m:
        for content in (b"not a folder", forged(("../../evil", "file", 0o644, 4), data=b"evil")):
            cid, _ = await add_bytes(m.requester.ctx.blobs, content)
            assert re.search(
                "no folder", await failure(m, spec("true", inputs=[{"cid": cid, "kind": "folder", "to": "d"}]))
            )
    assert not list(tmp_path.rglob("evil"))


async def test_data_links_bring_folders_along(market: MarketOf) -> None:
    async with market() as m:
        make = json.loads(spec("mkdir o; echo 1 > o/x.csv; echo 2 > o/y.csv; echo 3 > z",
                               outputs=[{"path": "o"}, {"path": "o/*.csv"}, {"path": "z"}]))  # fmt: skip
        look = "find . -type f | sort; cat $(find . -type f | sort)"
        children = [{**make, "name": "make"}] + [
            {**json.loads(spec(look)), "name": name} for name in ("all", "one", "loose")
        ]
        links = [{"from": "make", "to": "all", "kind": "data", "path": "in"},
                 {"from": "make", "to": "one", "kind": "data", "output": "o", "path": "deep/o2"},
                 {"from": "make", "to": "loose", "kind": "data", "output": "*.csv"}]  # fmt: skip
        for pod in (False, True):
            group = {"name": "group", "children": children, "links": links, "pod": pod}
            job = await run(m, json.dumps(group))
            said = "".join(
                stdout_of(m, m.requester.get_job(child)) for child in list(job.children.values())[1:]
            ) if not pod else stdout_of(m, job)  # fmt: skip
            for part in ("./in/o/x.csv\n./in/o/y.csv\n./in/x.csv\n./in/y.csv\n./in/z\n1\n2\n1\n2\n3\n",
                         "./deep/o2/x.csv\n./deep/o2/y.csv\n1\n2\n", "./x.csv\n./y.csv\n1\n2\n"):  # fmt: skip
                assert part in said


async def test_a_folder_of_very_many_files_goes_there_and_back(market: MarketOf, tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
        for inner in range(100):
            (tmp_path / "many" / str(number) / str(inner)).write_text(f"{number}/{inner}")
    async with market() as m:
        begin = time.monotonic()
        job = await run(m, spec("find many -type f | wc -l", inputs=[{"path": "many"}], outputs=[{"path": "many"}]))
        assert stdout_of(m, job).strip() == "2500"
        await written(m, job, tmp_path / "out")
        assert (tmp_path / "out" / "many" / "24" / "99").read_text() == "24/99"
        # not a promise, but it is no longer a matter of each file
        assert time.monotonic() - begin < 30
        # what came back is what was sent: one content, kept once
        assert job.result is not None
        (sent,) = decode_spec(job.spec).inputs
        assert job.result.outputs == (OutputFile("many", sent.cid, sent.size, "folder"),)


async def test_outputs_on_the_disk_are_held_against_the_result(market: MarketOf, tmp_path: Path) -> None:
    async with market() as m:
        outputs = [{"path": "o"}, {"path": "o/*.csv"}, {"path": "z"}]
        job = await run(m, spec("mkdir -p o/d; echo 1 > o/x.csv; echo 3 > z; echo said", outputs=outputs))
        out = tmp_path / "out"
        result = job.result
        assert result is not None
        await write_outputs(m.requester.ctx, outputs_of(m.requester.ctx, job), {"stdout": result.stdout_cid}, out)
        bundle = read_bundle(export_bundle(m.requester.ctx.store[CONTRACTS].one(job.contract_id), None), "bundle")

        def failed() -> dict[str, str]:
            return {
                c.name: c.detail for c in verify_bundle(bundle, out) if c.name.startswith("output.") and not c.passed
            }

        # nothing was written to it, and an empty file was not asked for
        assert failed() == {"output.stderr": "it is not there"}
        (out / "o" / "d" / "more").touch()
        (out / "y.csv").write_text("more")
        assert failed().keys() == {"output.o", "output.*.csv", "output.stderr"}


async def test_files_that_nobody_asked_for_are_not_taken(market: MarketOf) -> None:
    async with market() as m:
        job = await run(m, spec("echo x > z; mkdir o; echo y > o/y", outputs=[{"path": "z"}, {"path": "o/*"}]))
        contract = m.requester.ctx.store[CONTRACTS].one(job.contract_id)
        assert contract.result is not None
        result = contract.result.read(Result)
        # the files of a folder would be written beside each other, where others may stand
        lie = structs.replace(result, outputs=tuple(structs.replace(o, kind="files") for o in result.outputs))
        document = make_document(lie).sign(m.provider.identity, PROVIDER)
        with pytest.raises(RejectedMessageError, match="nobody asked for: 'z'"):
            await take_result(m.requester.ctx, structs.replace(contract, result=None), document)


@pytest.mark.parametrize("name", ["", "own"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (forged((".bashrc", "file")), "'.bashrc' in it, which the pattern does not find"),
        (forged(("Makefile", "file")), "'Makefile' in it"),
        (forged(("d", "folder"), ("d/a.sh", "file")), "'d' in it"),
        (forged(("a.csv", "file"), ("b.sh", "link", 0, 0, "a.csv")), "'b.sh' in it"),
        (forged(("a.csv", "link", 0, 0, "Makefile")), "'a.csv' in it"),
        (forged(("a.csv", "link", 0, 0, ".git")), "'a.csv' in it"),
        (forged(("a.csv", "link", 0, 0, ".")), "'a.csv' in it"),
        (forged(("a.csv", "link", 0, 0, "b.csv/hooks"), ("b.csv", "link", 0, 0, ".git")), "'a.csv' in it"),
        (forged(("a.csv", "folder"), ("a.csv/up", "link", 0, 0, "../src")), "'a.csv/up' in it"),
        (b"no folder at all", "the content is not a folder"),
    ],
    ids=["hidden", "file", "folder", "link", "beside", "git", "root", "chain", "inside", "none"],
)
async def test_what_a_pattern_does_not_find_is_not_delivered(
    market: MarketOf, content: bytes, why: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market() as m:
        cid, size = await add_bytes(m.provider.ctx.blobs, content)

        async def taken(*_: Any) -> taking.Taken:
            return taking.Taken(cid, size, "folder" if name else "files")

        # another program than ours may send what it likes
        monkeypatch.setattr(part, "take_in", taken)
        job_id = await m.post(
            spec("touch a.csv", outputs=[{"path": "*.csv", "name": name} if name else {"path": "*.csv"}])
        )
        with pytest.raises(ContractError, match=re.escape(why)):
            await orchestrate_job(m.requester.ctx, job_id)
        job = m.job(job_id)
        # it is not paid, unless its provider waits for the deadline and nobody disputes it
        assert (job.state, job.collected, job.paid) == ("completed", False, None)


async def test_outputs_have_no_more_bytes_than_the_disk_that_the_job_asked_for(
    market: MarketOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"cpu": 0.1, "memory": "32MiB", "disk": "1MiB"}
    async with market() as m:
        # the members of a pod have a disk each
        made = "head -c 1000000 /dev/zero > o"
        members = [json.loads(spec(made, name=name, resources=size, outputs=[{"path": "o"}])) for name in "ab"]
        pod = {"name": "pod", "pods": [{"id": "both", "jobs": ["a", "b"]}], "children": members}
        assert (await run(m, json.dumps(pod))).state == "settled"
        cid, length = await add_bytes(m.provider.ctx.blobs, os.urandom(2**20 + 1))

        async def taken(*_: Any) -> taking.Taken:
            return taking.Taken(cid, length)

        # another program than ours may sign what it likes
        monkeypatch.setattr(part, "take_in", taken)
        job_id = await m.post(spec("touch o", resources=size, outputs=[{"path": "o"}]))
        with pytest.raises(ContractError, match=r"1048577 bytes, over the 1048576 of the job's disk") as caught:
            await orchestrate_job(m.requester.ctx, job_id)
        # not a byte of it is fetched, and it is not paid
        assert caught.value.code == "outputs_too_large"
        assert not m.requester.ctx.blobs.has(cid)
        assert m.job(job_id).paid is None


@pytest.mark.parametrize(
    ("pattern", "why"),
    [("o/**/*.txt", ""), ("o/**/" + "*/" * 60 + "*.txt", "takes over 2000000 comparisons with its pattern")],
    ids=["honest", "heavy"],
)
async def test_a_long_list_of_deep_names_does_not_stand_the_requesters_node_still(
    market: MarketOf, pattern: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name is compared once, in a thread, and the comparisons are counted."""
    folders = [("/".join("a" * depth), "folder", 0o755) for depth in range(1, 62)]
    deep = folders[-1][0]
    # held against the pattern from its beginning, this is some ten seconds
    content = forged(*folders, *((f"{deep}/{number:06}.txt", "file") for number in range(40_000)))
    async with market() as m:
        cid, size = await add_bytes(m.provider.ctx.blobs, content)

        async def taken(*_: Any) -> taking.Taken:
            return taking.Taken(cid, size, "files")

        monkeypatch.setattr(part, "take_in", taken)
        job_id = await m.post(spec("true", outputs=[{"path": pattern}]))
        said: list[str] = []

        async def settle() -> None:
            try:
                await orchestrate_job(m.requester.ctx, job_id)
            except ContractError as error:
                said.append(error.message)

        assert await longest_pause(settle) < 2
        assert m.job(job_id).state == ("completed" if why else "settled")
        assert [why in text for text in said] == [True] * bool(why)


async def test_links_that_came_before_are_not_followed(market: MarketOf, tmp_path: Path) -> None:
    """Neither by what a pattern brings, nor by files and folders that have their links' names."""
    async with market() as m:
        mine, out = tmp_path / "mine", tmp_path / "mine" / "out"
        out.mkdir(parents=True)
        for name in ("a.csv", "own", "file", "stdout"):
            (out / name).symlink_to(mine)
        text = spec(
            "mkdir a.csv own; touch a.csv/x own/x file; echo said",
            outputs=[{"path": "*.csv"}, {"path": "own"}, {"path": "file"}],
        )
        job = await run(m, text)
        assert job.result is not None
        (tmp_path / "named").symlink_to(out)
        # the folder itself was named by its user
        files = await write_outputs(
            m.requester.ctx, outputs_of(m.requester.ctx, job), {"stdout": job.result.stdout_cid}, tmp_path / "named"
        )
        assert [str(Path(file).relative_to(tmp_path)) for file in files] == [
            "named/a.csv", "named/own", "named/file", "named/stdout",
        ]  # fmt: skip
        assert [path.name for path in mine.iterdir()] == ["out"]
        assert sorted(name for name in described(out)) == ["a.csv", "a.csv/x", "file", "own", "own/x", "stdout"]


async def test_a_folder_in_a_files_place_is_named_and_nothing_is_left_beside_it(
    market: MarketOf, tmp_path: Path
) -> None:
    async with market() as m:
        cid, _ = await add_bytes(m.requester.ctx.blobs, b"x")
        (tmp_path / "out" / "made").mkdir(parents=True)
        with pytest.raises(IsADirectoryError) as caught:
            await write_outputs(m.requester.ctx, {"made": OutputFile("made", cid, 1)}, {}, tmp_path / "out")
        assert caught.value.filename == str(tmp_path / "out" / "made")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["made"]


async def test_a_member_of_a_pod_is_not_written_through_a_link(market: MarketOf, tmp_path: Path) -> None:
    async with market() as m:
        cid, _ = await add_bytes(m.requester.ctx.blobs, b"x")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "web").symlink_to(tmp_path)
        files = await write_outputs(m.requester.ctx, {"web/made": OutputFile("web/made", cid, 1)}, {}, tmp_path / "out")
        assert files == [str(tmp_path / "out" / "web" / "made")]
        assert (tmp_path / "out" / "web" / "made").read_bytes() == b"x"
        assert not (tmp_path / "made").exists()


async def test_a_pattern_with_a_name_of_its_own_is_always_one(market: MarketOf, tmp_path: Path) -> None:
    async with market() as m:
        for number, command in enumerate(("mkdir 'o*'; touch 'o*/y.sh'", "touch 'o*'")):
            job = await run(m, spec(command, outputs=[{"path": "o*", "name": "all"}]))
            assert job.state == "settled"
            assert "all/o*" in await written(m, job, tmp_path / str(number))


async def test_a_folder_that_has_a_patterns_name_comes_back_as_one(market: MarketOf, tmp_path: Path) -> None:
    async with market() as m:
        job = await run(m, spec("mkdir 'o*'; echo x > 'o*/y.sh'", outputs=[{"path": "o*"}]))
        assert job.state == "settled"
        assert await written(m, job, tmp_path / "out") == {"o*": (oct(0o755), None), "o*/y.sh": (oct(0o644), b"x\n")}


async def test_an_empty_folder_is_an_empty_output(market: MarketOf) -> None:
    async with market() as m:
        strict = {"verify": {"outputs_not_empty": True}, "outputs": [{"path": "o"}]}
        with pytest.raises(NunetError):
            await run(m, spec("mkdir o", **strict))
        assert (await run(m, spec("mkdir o; touch o/x", **strict))).state == "settled"


async def test_the_same_folder_is_sent_once(market: MarketOf, data: Path) -> None:
    async with market() as m:
        sent: list[str] = []
        give = m.requester.ctx.blobs._data
        assert give is not None
        serve = give._give

        async def count(sealed: Any, did: str, asked: bytes) -> bool:
            sent.append(json.loads(asked)["cid"])
            return await serve(sealed, did, asked)

        give._give = count
        for _ in range(3):
            job = await run(m, spec("cat data/first", inputs=[{"path": "data"}]))
            assert stdout_of(m, job) == "1\n"
        assert sent == [decode_spec(job.spec).inputs[0].cid]


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with busybox_image(IMAGE) as name:
        yield name


@pytest.mark.docker
@needs_docker
async def test_a_container_has_its_folder_and_its_files(
    market: MarketOf, tmp_path: Path, data: Path, image: str
) -> None:
    async with market() as m:
        command = ("data/run.sh && cat data/first data/in/b.csv extra/x && echo more >> data/in/b.csv && ! echo no >> extra/x;"
                   "mkdir extra/made; echo y > extra/made/y")  # fmt: skip
        text = json.dumps({
            "name": "test", "executor": {"type": "docker", "image": IMAGE, "command": ["sh", "-c", command]}, "price": "1",
            "resources": {"cpu": 0.2, "memory": "64MiB", "disk": "64MiB"},
            "inputs": [{"path": "data"}, {"path": "data/in/c.txt", "to": "extra/x"}],
            "outputs": [{"path": "data"}, {"path": "extra"}],
        })  # fmt: skip
        job = await run(m, text)
        assert stdout_of(m, job) == "ran\n1\n2\n3\n"
        found = await written(m, job, tmp_path / "out")
        assert found["data/in/b.csv"] == (oct(0o664), b"2\nmore\n")
        # an input file is mounted over an empty one: what comes back is what the job saw
        assert found["extra/x"][1] == b"3\n"
        assert found["extra/made/y"][1] == b"y\n"
        with trio.fail_after(30):
            while m.provider.accounting.taken(m.provider.ctx.store):
                await trio.sleep(0.1)
