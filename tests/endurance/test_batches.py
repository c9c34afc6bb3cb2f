"""The plans of the runs of batches follow from their seeds; the runs themselves are a script, as they take long."""

from tests.endurance import batches
from tests.endurance.kills import ROLES


def test_a_plan_follows_from_seed_and_number() -> None:
    plans = [batches.Plan.draw(1, number, ROLES, 40) for number in range(200)]
    assert plans == [batches.Plan.draw(1, number, ROLES, 40) for number in range(200)]
    assert {plan.role for plan in plans} == set(ROLES)
    assert {plan.lost for plan in plans if plan.role == "provider"} == {True, False}
    assert not any(plan.lost for plan in plans if plan.role != "provider")
