"""The folder of an allocation is below the home, whatever a store says that this node did not write."""

from pathlib import Path

import pytest

from nunet_cli.errors import StateError
from nunet_cli.executor.files import allocation_folder


@pytest.mark.parametrize("name", ["/etc", "..", "../x", "a/b", "", ".hidden", "a\n", "a b"])
def test_an_id_that_could_lead_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StateError):
        allocation_folder(tmp_path, name)


def test_it_is_below_the_home(tmp_path: Path) -> None:
    assert allocation_folder(tmp_path, "allocation-0a1b") == tmp_path / "allocations" / "allocation-0a1b"
