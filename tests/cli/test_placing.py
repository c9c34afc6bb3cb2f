"""What comes back of an item is put where it belongs: a link is never followed that was not named by the user."""

from pathlib import Path

import pytest

from nunet_cli.cli.map.placing import put


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"new {name}")
    return folder


def test_a_folder_is_added_to_and_a_file_replaced(tmp_path: Path) -> None:
    made(tmp_path / "mine/a", "old", "x")
    put(made(tmp_path / "found/a", "x", "deep/y"), tmp_path / "mine/a")
    assert {str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*")} == {
        "a", "a/old", "a/x", "a/deep", "a/deep/y",
    }  # fmt: skip
    with pytest.raises(IsADirectoryError):
        put(made(tmp_path / "found", "b") / "b", tmp_path / "mine/a")


@pytest.mark.parametrize("is_named", [False, True])
def test_a_link_that_came_before_is_not_followed(tmp_path: Path, *, is_named: bool) -> None:
    """Only the one that the user named as the place of a folder is."""
    secret = made(tmp_path / ".git", "config")
    for name in ("a", "b", "c/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(secret)
    put(made(tmp_path / "found/a", "hooks/pre-commit"), tmp_path / "a", is_named=is_named)
    put(made(tmp_path / "found/c", "d/config"), tmp_path / "c", is_named=is_named)
    assert (secret / "hooks").exists() == is_named
    assert (tmp_path / "a").is_symlink() == is_named
    assert (secret / "config").read_text() == "new config"
    assert not (tmp_path / "c/d").is_symlink() and (tmp_path / "c/d/config").read_text() == "new d/config"
    if not is_named:
        put(made(tmp_path / "found", "b") / "b", tmp_path / "b", is_named=False)
        assert (tmp_path / "b").read_text() == "new b"


def test_a_link_that_comes_is_put_there_as_one(tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    secret = made(tmp_path / "secret", "x")
    link = tmp_path / "found/link"
    link.symlink_to(secret)
    put(link, tmp_path / "new", is_named=False)
    assert (tmp_path / "new").is_symlink()
    link.symlink_to(secret)
    mine = made(tmp_path / "mine", "y")
    with pytest.raises(IsADirectoryError):
        put(link, mine, is_named=False)
    assert [path.name for path in mine.iterdir()] == ["y"]
