"""Two runs of the batches; and that a plan follows from its seed."""

from pathlib import Path

import pytest

from tests.endurance import batches
from tests.endurance.kills import ROLES


def test_a_kill_in_the_middle_of_a_batch_leaves_each_item_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--items",
        "24",
        "--runs",
        "2",
        "--seed",
        "3",
        "--long",
        "0",
        "--role",
        "requester",
        "--role",
        "provider",
    ]
    assert batches.main([*arguments, "--folder", str(tmp_path), "--verbose"]) == 0
    assert "runs: 2; violations: 0" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_plan_follows_from_seed_and_number() -> None:
    plans = [batches.Plan.draw(1, number, ROLES, 40) for number in range(200)]
    assert plans == [batches.Plan.draw(1, number, ROLES, 40) for number in range(200)]
    assert {plan.role for plan in plans} == set(ROLES)
    assert {plan.lost for plan in plans if plan.role == "provider"} == {True, False}
    assert not any(plan.lost for plan in plans if plan.role != "provider")
