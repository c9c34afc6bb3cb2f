"""What was written into a folder before is taken away as far as it is still that; nothing else is, and no link led."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nunet_cli.network.data.trees import look, opened, pack, unpack
from nunet_cli.network.data.written import Written, take_away
from nunet_cli.records.identifiers import content_id

LOG = b"Traceback: no mass\n"


def taken_from(folder: Path, *written: Written) -> list[str]:
    """Take something away, and return what is left."""
    with opened(folder) as root:
        take_away(root, written)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def log(path: str = "point-1/stderr") -> Written:
    return Written(path, content_id(LOG), len(LOG))


def test_a_file_goes_with_the_folder_that_is_empty_then(tmp_path: Path) -> None:
    (tmp_path / "point-1").mkdir()
    (tmp_path / "point-1" / "stderr").write_bytes(LOG)
    assert taken_from(tmp_path, log()) == []
    # it is there no more, and neither is what it stood in
    assert taken_from(tmp_path, log(), log("point-2/stderr"), log("stderr")) == []


@pytest.mark.parametrize("text", [b"what its user wrote\n", LOG[:-1], LOG + b"\n", b"X" + LOG[1:]])
def test_a_file_that_is_another_stays(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "point-1").mkdir()
    (tmp_path / "point-1" / "stderr").write_bytes(text)
    assert taken_from(tmp_path, log()) == ["point-1", "point-1/stderr"]


def test_a_file_beside_keeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / "point-1").mkdir()
    (tmp_path / "point-1" / "stderr").write_bytes(LOG)
    (tmp_path / "point-1" / "notes").write_text("mine")
    assert taken_from(tmp_path, log()) == ["point-1", "point-1/notes"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "stderr").write_bytes(LOG)
    there = tmp_path / "there"
    there.mkdir()
    (there / "point-1").symlink_to(other)
    (there / "stderr").symlink_to(other / "stderr")
    (there / "point-2").mkdir()
    os.mkfifo(there / "point-2" / "stderr")
    assert taken_from(there, log(), log("stderr"), log("point-2/stderr")) == [
        "point-1", "point-2", "point-2/stderr", "stderr"
    ]  # fmt: skip
    assert (other / "stderr").read_bytes() == LOG


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of two files, a folder in it and a link, packed."""
    source = tmp_path / "source"
    (source / "in" / "deep").mkdir(parents=True)
    (source / "a").write_bytes(b"a")
    (source / "in" / "b").write_bytes(b"bb" * 1000)
    (source / "in" / "deep" / "c").write_bytes(b"")
    (source / "link").symlink_to("in/b")
    packed = tmp_path / "packed"
    with opened(source) as root, packed.open("wb") as file:
        pack(root, look(root), file)
    return packed


@pytest.mark.parametrize(("inside", "change", "left"), [
    ("", lambda _: None, []),
    ("point-1/out", lambda _: None, []),
    ("point-1/out", lambda there: (there / "in" / "b").write_bytes(b"cc" * 1000),
     ["point-1", "point-1/out", "point-1/out/in", "point-1/out/in/b"]),
    ("", lambda there: (there / "in" / "mine").write_text("mine"), ["in", "in/mine"]),
    ("", lambda there: ((there / "link").unlink(), (there / "link").symlink_to("elsewhere")), ["link"]),
])  # fmt: skip
def test_of_a_folder_goes_what_it_had(
    tmp_path: Path, tree: Path, inside: str, change: Callable[[Path], object], left: list[str]
) -> None:
    folder = tmp_path / "results"
    (folder / inside).mkdir(parents=True)
    with opened(folder / inside) as root:
        unpack(tree, root)
    change(folder / inside)
    found = taken_from(folder, Written(inside, "", 0, tree))
    if not left and inside:
        # what it was written into stays: it may be anything
        left = ["point-1", "point-1/out"]
    assert found == left
