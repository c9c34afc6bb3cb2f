"""Running again by a specification that was mended: with other inputs, and another command."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from nunet_cli.errors import NunetError, StateError, UsageError
from nunet_cli.groups.group import earlier_of, logs_of, outputs_of
from nunet_cli.groups.mended import mend
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.jobs.check import decode_spec
from nunet_cli.jobs.reader import read_spec
from nunet_cli.orchestrator.outputs import take_away_earlier, write_outputs
from tests.conftest import Market
from tests.orchestrator.test_again import settled
from tests.orchestrator.test_group_failures import failed, group, program, states

MarketOf = Callable[..., Any]
ITEMS = [{"point": "a"}, {"point": "b"}, {"point": "c"}]


def sweep(command: str = "test -s in && cat in > o", items: list[dict[str, str]] = ITEMS, **fields: Any) -> str:
    return json.dumps({
        **program("sweep", command, inputs=[{"path": "{point}.txt", "to": "in"}], outputs=[{"path": "o"}]),
        "type": "batch", "batch": {"items": items, "name": "point-{point}"}, **fields,
    })  # fmt: skip


async def outputs(m: Market, job_id: str) -> dict[str, str]:
    ctx = m.requester.ctx
    return {
        name: ctx.blobs.path(output.cid).read_text() for name, output in outputs_of(ctx, m.job(job_id)).items()
    }  # fmt: skip


async def test_what_failed_in_a_batch_has_the_inputs_that_are_there_now(market: MarketOf) -> None:
    async with market() as m:
        for name in "abc":
            (m.folder / f"{name}.txt").write_text("" if name == "b" else f"old {name}")
        job_id = await m.post(sweep())
        await failed(m, job_id)
        (m.folder / "b.txt").write_text("mended b")
        # it has settled, and stays as it was, also where its input is there no more
        (m.folder / "a.txt").write_text("new a")
        (m.folder / "c.txt").unlink()
        other = [{"point": "b"}, {"point": "c"}, {"point": "a"}]
        mended = await mend(m.requester.ctx, job_id, read_spec(sweep("cat in >> o; echo {index}", other)), m.folder)
        assert (await m.requester.retry_job(job_id, mended)).runs == 1
        await settled(m, job_id)
        assert await outputs(m, job_id) == {
            "point-a/o": "old a", "point-b/o": "mended b", "point-c/o": "old c"
        }  # fmt: skip
        child = m.job(m.job(job_id).children["point-b"])
        assert (child.attempt, child.item) == (2, {"point": "b", "index": "0"})
        assert decode_spec(child.spec).executor.command[-1] == "cat in >> o; echo 0"  # type: ignore[union-attr]


async def test_a_single_job_has_its_input_and_its_price_anew(market: MarketOf) -> None:
    async with market() as m:
        (m.folder / "in").write_text("")
        text = program("one", "test -s in && cat in > o", inputs=[{"path": "in"}], outputs=[{"path": "o"}])
        job_id = await m.post(json.dumps(text))
        assert (await orchestrate_job(m.requester.ctx, job_id)).state == "failed"
        (m.folder / "in").write_text("mended")
        mended = await mend(m.requester.ctx, job_id, read_spec(json.dumps({**text, "price": "2"})), m.folder)
        await m.requester.retry_job(job_id, mended)
        job = await settled(m, job_id)
        assert await outputs(m, job_id) == {"o": "mended"}
        assert job.limit == 2_000_000


async def test_another_specification_and_what_has_parts_are_refused(market: MarketOf) -> None:
    async with market() as m:
        for name in "abc":
            (m.folder / f"{name}.txt").write_text("")
        job_id = await m.post(sweep())

        async def refused(text: str, job: str = job_id) -> NunetError:
            with pytest.raises(NunetError) as caught:
                await mend(m.requester.ctx, job, read_spec(text), m.folder)
            return caught.value

        assert isinstance(await refused(sweep()), StateError)
        await failed(m, job_id)
        assert "has no item point-c" in (await refused(sweep(items=ITEMS[:2]))).message
        assert "not of sweep" in (await refused(sweep(name="other"))).message
        assert "not of sweep" in (await refused(json.dumps(program("sweep", "true")))).message
        assert "part of another" in (await refused(sweep(), m.job(job_id).children["point-a"])).message
        (m.folder / "a.txt").unlink()
        assert isinstance(await refused(sweep()), UsageError)
        # nothing of it was kept
        assert states(m, job_id) == {"point-a": "failed", "point-b": "failed", "point-c": "failed"}
        whole = group(program("x", "exit 1"), program("y", "true"), links=[])
        many = await m.post(whole)
        await failed(m, many)
        assert "single job" in f"{await refused(whole, many)} {(await refused(whole, many)).hint}"


async def test_of_an_earlier_attempt_no_log_stays_in_the_folder_of_outputs(market: MarketOf) -> None:
    async with market() as m:
        ctx, folder = m.requester.ctx, m.folder / "results"

        async def write(job_id: str) -> list[str]:
            job = m.job(job_id)
            await take_away_earlier(ctx, earlier_of(ctx, job), folder)
            await write_outputs(ctx, outputs_of(ctx, job), logs_of(ctx, job), folder)
            return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

        async def again(job_id: str, text: dict[str, Any]) -> list[str]:
            mended = await mend(ctx, job_id, read_spec(json.dumps(text)), m.folder)
            await m.requester.retry_job(job_id, mended)
            await settled(m, job_id)
            return await write(job_id)

        fails, later = (program("b", command, outputs=[{"path": "o"}]) for command in ("echo >&2; exit 3", "echo > o"))
        one = await m.post(json.dumps(fails))
        assert (await orchestrate_job(ctx, one)).state == "failed"
        assert await write(one) == ["stderr"]
        assert await again(one, later) == ["o"]
        (folder / "o").unlink()
        items = {"type": "batch", "batch": {"count": 2}}
        batch = await m.post(json.dumps({**fails, **items}))
        await failed(m, batch)
        assert await write(batch) == ["b-0/stderr", "b-1/stderr"]
        # this one is not what was written any more
        (folder / "b-1" / "stderr").write_text("why?")
        assert await again(batch, {**later, **items}) == ["b-0/o", "b-1/o", "b-1/stderr"]
