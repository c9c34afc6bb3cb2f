"""Folders as one content: what is kept, that it is the same each time, and what is refused before it is written."""

import contextlib
import io
import os
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli.jobs.globs import Pattern, split_glob
from nunet_cli.network.data import trees
from nunet_cli.network.data.trees import Found, entries_of, look, opened, pack, strays, unpack
from nunet_cli.records import trees as records
from nunet_cli.records.trees import EMPTY_SIZE, Entry, TreeError, is_inside, read_tree, size_on_disk, tree_head


def packed(folder: Path, glob: str = "") -> tuple[bytes, Found]:
    made = io.BytesIO()
    with opened(folder) as root:
        found = look(root, Pattern(split_glob(glob)[1]) if glob else None)
        pack(root, found, made)
    return made.getvalue(), found


def unpacked(data: bytes, folder: Path, *, replace: bool = False) -> list[str]:
    folder.mkdir(exist_ok=True)
    source = folder.with_name(f"{folder.name}.tree")
    source.write_bytes(data)
    with opened(folder) as root:
        return unpack(source, root, replace=replace)


def described(folder: Path) -> dict[str, Any]:
    """Return what is in a folder: path → mode and bytes, or where a link leads to."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = (oct(path.stat().st_mode & 0o7777), path.read_bytes() if path.is_file() else None)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, text, mode in (("a.csv", "1", 0o644), ("run.sh", "#!/bin/sh\n", 0o755), ("deep/er/b.csv", "22", 0o600),
                             ("deep/empty", "", 0o444), (".hidden", "h", 0o640), ("deep.x", "x", 0o666)):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    (folder / "nothing in it").mkdir(mode=0o750)
    (folder / "link").symlink_to("deep/er/b.csv")
    (folder / "deep" / "up").symlink_to("../a.csv")
    (folder / "deep" / "dangling").symlink_to("nowhere")
    (folder / "deep").chmod(0o555)
    yield folder
    (folder / "deep").chmod(0o755)


def test_names_modes_links_and_empty_folders_come_back(data: Path, tmp_path: Path) -> None:
    content, found = packed(data)
    assert found.left_out == []
    assert unpacked(content, tmp_path / "out") == [
        ".hidden", "a.csv", "deep", "deep.x", "link", "nothing in it", "run.sh",
    ]  # fmt: skip
    assert described(tmp_path / "out") == described(data)
    (tmp_path / "out" / "deep").chmod(0o755)


def test_the_same_folder_is_the_same_content(data: Path, tmp_path: Path) -> None:
    content, _ = packed(data)
    unpacked(content, tmp_path / "again")
    os.utime(tmp_path / "again" / "a.csv", (1, 1))
    assert packed(tmp_path / "again")[0] == content
    (tmp_path / "again" / "a.csv").chmod(0o645)
    assert packed(tmp_path / "again")[0] != content
    (tmp_path / "again" / "deep").chmod(0o755)


def test_an_empty_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    content, _ = packed(tmp_path / "none")
    assert len(content) == EMPTY_SIZE
    assert unpacked(content, tmp_path / "out") == []


@pytest.mark.parametrize(
    ("glob", "expected"),
    [("*.csv", ["a.csv"]), ("**/*.csv", ["a.csv", "deep", "deep/er", "deep/er/b.csv"]), ("d*", [
        "deep", "deep/empty", "deep/er", "deep/er/b.csv", "deep.x"]),
     ("*/*", ["deep", "deep/empty", "deep/er", "deep/er/b.csv"]), ("x*", []),
     ("deep/e*", ["deep", "deep/empty", "deep/er", "deep/er/b.csv"])],
)  # fmt: skip
def test_a_pattern_chooses_with_the_folders_on_the_way(data: Path, glob: str, expected: list[str]) -> None:
    _, found = packed(data, f"[.]/{glob}".removeprefix("[.]/"))
    if glob == "deep/e*":
        with opened(data) as root:
            found = look(root, Pattern(("deep", "e*")))
    assert [entry.path for entry in found.entries] == expected


def test_a_pattern_brings_links_to_what_it_brings_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("a.csv", "src/main.c", "deep/b.csv", "whole.csv/part"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    links = {
        "1.csv": "a.csv", "2.csv": "./deep//b.csv", "deep/3.csv": "../whole.csv/part", "4.csv": "1.csv",
        "whole.csv/up": "../a.csv",
    }  # fmt: skip
    others = {
        "src.csv": "src", "root.csv": ".", "way.csv": "deep", "gone.csv": "missing.csv", "chain.csv": "src.csv",
        "past.csv": "src.csv/main.c", "whole.csv/out": "../src", "lost/only.csv": "../src/main.c",
    }  # fmt: skip
    (folder / "lost").mkdir()
    for name, target in {**links, **others}.items():
        (folder / name).symlink_to(target)
    content, found = packed(folder, "**/*.csv")
    assert {path for path, _ in found.left_out} == others.keys()
    assert {entry.path: entry.target for entry in found.entries if entry.kind == "link"} == links
    assert {entry.path for entry in found.entries if entry.kind == "folder"} == {"deep", "whole.csv"}
    assert strays(found.entries, Pattern(("**", "*.csv"))) == []
    unpacked(content, tmp_path / "out")
    assert all(path.exists() for path in (tmp_path / "out").rglob("*"))


def test_a_long_chain_of_links_is_looked_at_in_time() -> None:
    links = [Entry(f"{number:05}", "link", target=f"{number + 1:05}") for number in range(50_000)]
    begin = time.monotonic()
    assert len(strays(links, Pattern(("*",)))) == len(links)
    assert time.monotonic() - begin < 10


def test_what_leads_out_is_never_followed_and_never_sent(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("key")
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    targets = {"absolute": secret / "key", "folder": secret, "up": "../secret/key", "sub/up": "../../secret",
               "sub/over": "../sub/../../secret", "itself": "sub/../../data"}  # fmt: skip
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        content, found = packed(folder)
    assert {path for path, _ in found.left_out} == {*targets, "pipe", "socket"}
    assert b"key" not in content
    unpacked(content, tmp_path / "out")
    assert described(tmp_path / "out").keys() == {"sub"}


def test_names_that_cannot_be_sent_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in (b"ok", b"not utf\xff", b"line\nbreak", b"esc\x1b[2J", b"del\x7f", "csi\x9b2J".encode()):
        (folder / os.fsdecode(name)).write_bytes(b"")
    _, found = packed(folder)
    assert [entry.path for entry in found.entries] == ["ok"]
    assert len(found.left_out) == 5


def test_a_folder_that_is_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    (folder / "/".join("d" * records.MAX_DEPTH)).mkdir(parents=True)
    packed(folder)
    (folder / "/".join("d" * records.MAX_DEPTH) / "deeper").mkdir()
    with pytest.raises(TreeError, match="deep"):
        packed(folder)
    (folder / "/".join("d" * records.MAX_DEPTH) / "deeper").rmdir()
    monkeypatch.setattr(trees, "MAX_ENTRIES", 10)
    with pytest.raises(TreeError, match="files, folders and links"):
        packed(folder)


def test_a_file_that_changes_while_it_is_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("long enough")
    with opened(tmp_path / "data") as root:
        found = look(root)
        (tmp_path / "data" / "file").write_text("short")
        with pytest.raises(TreeError, match="has changed"):
            pack(root, found, io.BytesIO())


# -- what others may send ----------------------------------------------------------------------------------------------


def forged(*entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return what claims to be a tree."""
    text = msgspec.json.encode({"entries": [list(entry) for entry in entries]})
    size = len(text) if length is None else length
    return b"nunet-tree-1\n" + struct.pack(">I", size) + text + data


FILE, FOLDER, LINK = "file", "folder", "link"


@pytest.mark.parametrize(
    "content",
    [
        forged(("/etc/passwd", FILE)), forged(("../x", FILE)), forged(("a", FOLDER), ("a/../../x", FILE)),
        forged((".", FOLDER)), forged(("..", FOLDER)), forged(("a//b", FILE)), forged(("a/", FOLDER)),
        forged(("a\0b", FILE)), forged(("a\nb", FILE)), forged(("", FILE)), forged(("n" * 256, FILE)),
        # below what is no folder, or is not there
        forged(("a", FILE), ("a/b", FILE)), forged(("a", LINK, 0, 0, "b"), ("a/b", FILE)), forged(("a/b", FILE)),
        # twice, or in another order: it has one form
        forged(("a", FILE), ("a", FILE)), forged(("b", FILE), ("a", FILE)), forged(("a", FOLDER), ("a", LINK, 0, 0, "b")),
        # links that lead out, by themselves or by others
        forged(("a", LINK, 0, 0, "/etc/passwd")), forged(("a", LINK, 0, 0, "..")), forged(("a", LINK, 0, 0, "")),
        forged(("a", LINK, 0, 0, "b/../../x")), forged(("d", LINK, 0, 0, "."), ("e", LINK, 0, 0, "d/..")),
        forged(("a", FOLDER), ("a/b", LINK, 0, 0, "../../x")),
        # modes, sizes
        forged(("a", FILE, 0o4755)), forged(("a", FILE, -1)), forged(("a", FILE, 0, 2**80)), forged(("a", FILE, 0, -1)),
        forged(("a", FILE, 0, 2**40), data=b"x"), forged(("a", FILE, 0, 1)), forged(("a", FILE, 0, 1), data=b"xx"),
        forged(("a", FOLDER, 0, 1), data=b"x"), forged(("a", FILE, 0, 0, "target")), forged(("a", "device")),
        # what is no tree at all
        b"", b"nunet-tree-1\n", b"nunet-tree-2\n\0\0\0\2{}", forged(length=2**32 - 1), forged(length=3), b"PK\3\4" * 100,
        b"nunet-tree-1\n" + struct.pack(">I", 5000) + b"[" * 5000, b"nunet-tree-1\n" + struct.pack(">I", 2) + b"\xff\xff",
    ],
)  # fmt: skip
def test_what_is_not_a_folder_writes_nothing(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TreeError):
        unpacked(content, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.tree"}


def test_too_many_entries_are_refused_and_empty_ones_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(f"{number:06}", "file") for number in range(1000)]
    assert size_on_disk(entries) == 1000 * 4096
    monkeypatch.setattr(records, "MAX_ENTRIES", 999)
    content = forged(*((entry.path, FILE) for entry in entries))
    with pytest.raises(TreeError, match="999"):
        read_tree(io.BytesIO(content), len(content))
    with pytest.raises(TreeError, match="999"):
        tree_head(entries)


def test_there_is_an_end_to_what_is_looked_at_for_a_pattern_that_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        (tmp_path / f"{number % 10}" / f"{number}").mkdir(parents=True)
    with opened(tmp_path) as root:
        assert look(root, Pattern(("**", "never"))).entries == []
        monkeypatch.setattr(trees, "MAX_LOOKED_AT", 100)
        with pytest.raises(TreeError, match="this one has more"):
            look(root, Pattern(("**", "never")))


def test_what_is_there_is_overwritten_and_no_link_is_followed(data: Path, tmp_path: Path) -> None:
    content, _ = packed(data)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.csv").write_text("untouched")
    out.mkdir()
    (out / "deep").symlink_to(elsewhere)
    (out / "a.csv").symlink_to(elsewhere / "a.csv")
    (out / "run.sh").write_text("old")
    (out / "mine").write_text("mine")
    unpacked(content, out, replace=True)
    assert described(elsewhere) == {"a.csv": (oct((elsewhere / "a.csv").stat().st_mode & 0o7777), b"untouched")}
    found = described(out)
    assert found.pop("mine")[1] == b"mine"
    assert found == described(data)
    (out / "deep").chmod(0o755)
    unpacked(content, out, replace=True)
    (out / "deep").chmod(0o755)


def test_without_replacing_nothing_is_overwritten(data: Path, tmp_path: Path) -> None:
    content, _ = packed(data)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.csv").write_text("old")
    with pytest.raises(FileExistsError):
        unpacked(content, tmp_path / "out")
    assert (tmp_path / "out" / "a.csv").read_text() == "old"


PARTS = st.lists(st.sampled_from(["..", ".", "a", "b", "", "/", "d"]), max_size=6)


@given(st.dictionaries(st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a"]), PARTS.map("/".join), max_size=5))
def test_links_that_are_taken_never_lead_out_whatever_they_lead_through(links: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder).resolve() / "tree"
        (top / "d" / "e").mkdir(parents=True)
        for path, target in links.items():
            if is_inside(path, target):
                (top / path).symlink_to(target)
        for path in top.rglob("*"):
            # the kernel says where they lead to; in a circle, or to nothing, to nowhere
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_PATH)
                try:
                    assert Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(top)
                finally:
                    os.close(descriptor)


def test_the_list_is_read_alone(data: Path, tmp_path: Path) -> None:
    content, found = packed(data)
    (tmp_path / "content").write_bytes(content)
    assert list(entries_of(tmp_path / "content")) == found.entries
