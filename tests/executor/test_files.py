"""What a job left in its folder is looked at, read and removed without going where it points."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nunet_cli.executor.files import folder_size, give_folder, open_file, open_folder, remove_folder

MIB = 2**20
DEEP = 3000


def dig(folder: Path, depth: int) -> None:
    """Make folders in each other, deeper than a path can say."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A folder of the machine's, with a large file in it."""
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "secret").write_bytes(b"k" * MIB)
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "work"
    folder.mkdir()
    yield folder
    # what removes the folders of tests goes as deep as they are
    subprocess.run(["rm", "-rf", folder], check=True)


def test_only_a_regular_file_reached_without_a_link_is_opened(work: Path, host: Path) -> None:
    (work / "link").symlink_to(host / "secret")
    (work / "folder").symlink_to(host)
    os.mkfifo(work / "pipe")
    (work / "sub").mkdir()
    (work / "sub" / "a").write_text("a")
    for path in ("link", "folder/secret", "pipe", "sub", "sub/../sub/a", "../host/secret", "none"):
        with pytest.raises(OSError):
            open_file(work, path)
    os.close(open_file(work, "sub/a"))
    with pytest.raises(OSError):
        open_folder(work, "folder")
    os.close(open_folder(work, "sub"))
    os.close(open_folder(work))


def test_size_counts_what_stands_there_and_follows_nothing(work: Path, host: Path) -> None:
    (work / "link").symlink_to(host)
    (work / "sub").mkdir()
    (work / "sub" / "b").write_bytes(b"b" * 8192)
    with (work / "sparse").open("wb") as file:
        file.truncate(512 * MIB)
    assert 8192 <= folder_size(work, 10 * MIB) < MIB
    assert folder_size(work, 4096) > 4096
    assert folder_size(work / "none", MIB) == 0


def test_folders_too_deep_to_look_at_are_over_every_limit(work: Path) -> None:
    dig(work, DEEP)
    assert folder_size(work, 2**40) > 2**40


def without_rights(look: Callable[[Path], bool], theirs: str = "") -> bool:
    """Say what is found in a folder of its own by a user whom, unlike root, modes keep out."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o777)
        if theirs:
            (Path(top) / theirs).mkdir(mode=0o700)
        child = os.fork()
        if child == 0:
            os.setresuid(65534, 65534, 65534)
            os._exit(0 if look(Path(top)) else 1)
        return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("mode", [0, 0o100, 0o300, 0o400, 0o600])
@pytest.mark.parametrize("closed", ["work", "work/sub"])
def test_a_closed_folder_is_counted(closed: str, mode: int) -> None:
    """A job that closed its folder to the node had no limit on its disk any more."""

    def look(top: Path) -> bool:
        (top / "work" / "sub").mkdir(parents=True)
        (top / "work" / "sub" / "large").write_bytes(b"x" * MIB)
        (top / closed).chmod(mode)
        return MIB <= folder_size(top / "work", 10 * MIB) < 2 * MIB

    assert without_rights(look)


def test_a_folder_that_cannot_be_opened_is_over_every_limit() -> None:
    assert without_rights(lambda top: folder_size(top, 2**40) > 2**40, theirs="closed")


def test_a_link_in_the_place_of_a_folder_opens_nothing() -> None:
    def look(top: Path) -> bool:
        (top / "other").mkdir()
        (top / "other").chmod(0)
        (top / "work").symlink_to(top / "other")
        return folder_size(top / "work", MIB) == 0 and (top / "other").stat().st_mode & 0o777 == 0

    assert without_rights(look)


def test_a_folder_is_removed_whatever_is_in_it(work: Path, host: Path) -> None:
    dig(work, DEEP)
    (work / "link").symlink_to(host)
    (work / "closed").mkdir()
    (work / "closed" / "in").mkdir()
    (work / "closed" / "in" / "file").write_text("x")
    (work / "closed" / "in").chmod(0)
    (work / "closed").chmod(0)
    remove_folder(work)
    assert not work.exists()
    assert (host / "secret").exists()
    remove_folder(work)


def test_a_user_without_rights_removes_what_its_job_closed() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as top:
        work = Path(top) / "work"
        (work / "closed" / "in").mkdir(parents=True)
        (work / "closed" / "in" / "file").write_text("x")
        subprocess.run(["chown", "-R", "65534:65534", top], check=True)
        (work / "closed" / "in").chmod(0)
        (work / "closed").chmod(0)
        child = os.fork()
        if child == 0:
            os.setresuid(65534, 65534, 65534)
            remove_folder(work)
            os._exit(0)
        os.waitpid(child, 0)
        assert not work.exists()


def test_a_working_folder_is_given_without_what_links_lead_to(work: Path, host: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give")
    (work / "link").symlink_to(host)
    (work / "sub").mkdir()
    (work / "sub" / "input").write_text("x")
    (work / "sub" / "own").write_text("x")
    give_folder(work, 4321, ["sub//input"])
    given = (work, work / "sub", work / "sub" / "own", work / "link")
    assert {path.lstat().st_uid for path in given} == {4321}
    assert {host.stat().st_uid, (host / "secret").stat().st_uid, (work / "sub" / "input").stat().st_uid} == {0}
