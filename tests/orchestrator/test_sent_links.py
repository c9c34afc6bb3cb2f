"""Links among the files that a batch sends: whoever may write to a folder does not choose what is sent from elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nunet_cli.cli.items import ItemFiles
from nunet_cli.errors import UsageError
from nunet_cli.jobs.items import expand_batch
from nunet_cli.jobs.reader import placed, read_spec
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.orchestrator.inputs import check_inputs
from nunet_cli.orchestrator.post import process_job

MarketOf = Callable[..., Any]
OUT = "is a link that leads out of the folder"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a specification, with a key beside it that is nobody's to have."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "spec/in/sub", "spec/linked", "disk", "spec/bad"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / "key").write_text("PRIVATE KEY")
    there = tmp_path / "spec"
    (there / "in" / "a.txt").write_text("a")
    (there / "in" / "sub" / "b.txt").symlink_to("../a.txt")
    (there / "linked" / "c.txt").symlink_to("../in/a.txt")
    (there / "bad" / "k.txt").symlink_to(tmp_path / "home" / "key")
    (there / "bad" / "home").symlink_to(tmp_path / "home")
    (tmp_path / "disk" / "d.txt").write_text("d")
    (tmp_path / "disk" / "k.txt").symlink_to(tmp_path / "home" / "key")
    (there / "disk").symlink_to(tmp_path / "disk")
    (there / "~").mkdir()
    (there / "~" / "key").write_text("not it")
    return there


def text(items: Any, path: str) -> str:
    body = {
        "name": "b", "type": "batch", "price": "1", "batch": {"items": items},
        "executor": {"type": "process", "command": ["cat", "f"]}, "inputs": [{"path": path, "to": "f"}],
    }  # fmt: skip
    return json.dumps(body)


def read(folder: Path, items: Any, path: str) -> JobSpec:
    return read_spec(text(items, path), load=ItemFiles(folder).load)


@pytest.mark.parametrize(
    ("items", "path"),
    [
        ("in/*.txt", "{path}"), ("in/**/*.txt", "{path}"), ("linked/*.txt", "{path}"),
        # what a person wrote may be a link: the folder of a pattern, what stands before the values, an item in place
        ("disk/d*.txt", "{path}"), ("in/*.txt", "disk/d.txt"), ("d.csv", "disk/{f}"), ([{"f": "bad/k.txt"}], "{f}"),
        ("in/*.txt", "bad/k.txt"), ("away.csv", "/{f}"), ("up.csv", "../disk/{f}"), ("~/*", "{path}"),
        ("../disk/d*.txt", "{path}"),
    ],
)  # fmt: skip
def test_a_link_within_the_folder_and_what_a_person_wrote_are_sent(folder: Path, items: Any, path: str) -> None:
    (folder / "d.csv").write_text("f\nd.txt\n")
    (folder / "up.csv").write_text("f\nd.txt\n")
    (folder / "away.csv").write_text(f"f\n{folder.parent / 'disk' / 'd.txt'}\n")
    check_inputs(read(folder, items, path), folder)


@pytest.mark.parametrize(
    ("items", "path", "which"),
    [
        ("bad/*.txt", "{path}", "bad/k.txt"), ("*/k.txt", "{path}", "bad/k.txt"), ("k.csv", "{f}", "bad/k.txt"),
        ("k.jsonl", "bad/{f}", "bad/k.txt"), ("bad/*/key", "{path}", "bad/home/key"),
        ("folder.csv", "{f}", "bad/home"), ("folder.csv", "{f}/k*", "bad/home"), ("disk/*.txt", "{path}", "disk/k.txt"),
    ],
)  # fmt: skip
def test_a_link_that_leads_out_is_refused_with_its_name(folder: Path, items: str, path: str, which: str) -> None:
    (folder / "k.csv").write_text("f\nin/a.txt\nbad/k.txt\n")
    (folder / "k.jsonl").write_text('{"f": "k.txt"}\n')
    (folder / "folder.csv").write_text("f\nbad/home\n")
    with pytest.raises(UsageError, match=f"{which} {OUT}") as caught:
        check_inputs(read(folder, items, path), folder)
    if items == "k.csv":
        error = placed(caught.value, text(items, path), "b.json", ItemFiles(folder).load)
        assert error.message.startswith("k.csv:3: inputs[0].path: item 1: ")


@pytest.mark.parametrize("value", ["../disk/d.txt", "in/../../disk/d.txt", "/disk/d.txt"])
def test_a_file_of_items_names_nothing_elsewhere(folder: Path, value: str) -> None:
    value = value if value.startswith((".", "i")) else f"{folder.parent}{value}"
    (folder / "away.csv").write_text(f"f\nin/a.txt\n{value}\n")
    with pytest.raises(UsageError, match=r"d\.txt leads out of the folder") as caught:
        check_inputs(read(folder, "away.csv", "{f}"), folder)
    assert caught.value.details["path"] == "children[1].inputs[0].path"


def test_a_folder_that_is_called_as_a_home_is_none(folder: Path) -> None:
    check_inputs(read(folder, "*/key", "{path}"), folder)
    assert expand_batch(read(folder, "~/*", "{path}"))[0].inputs[0].path == str(folder.parent / "home" / "key")
    # nor is what stands in a file of items
    (folder / "home.csv").write_text("f\n~/key\n")
    (folder / "~" / "key").unlink()
    with pytest.raises(UsageError, match="there is no file"):
        check_inputs(read(folder, "home.csv", "{f}"), folder)


async def test_a_node_refuses_it_as_well_and_sends_what_is_meant(market: MarketOf, folder: Path) -> None:
    async with market() as m:
        with pytest.raises(UsageError, match=OUT) as caught:
            await process_job(m.requester.ctx, read(folder, "bad/*.txt", "{path}"), folder=folder)
        assert caught.value.details["path"] == "children[0].inputs[0].path"
        job = await process_job(m.requester.ctx, read(folder, "*/key", "{path}"), folder=folder)
        (child,) = job.children.values()
        (kept,) = json.loads(m.job(child).spec)["inputs"]
        assert m.requester.ctx.blobs.path(kept["cid"]).read_text() == "not it"
        assert json.loads(m.job(job.id).spec)["batch"]["read_from"] == ""


def test_nobody_says_where_items_were_read_from() -> None:
    body = json.loads(text([{"f": "a"}], "{f}"))
    body["batch"]["read_from"] = "x.csv"
    with pytest.raises(UsageError, match=r"batch\.read_from: unknown field"):
        read_spec(json.dumps(body))
