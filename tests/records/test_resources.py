"""What is left of a machine: how many times something fits into it, however much a peer names."""

import time

from hypothesis import given
from hypothesis import strategies as st

from nunet_cli.records.capability import Cpu, Gpu, Resources

cores = st.integers(0, 4000).map(lambda number: number / 1000)
gpus = st.lists(st.builds(Gpu, vendor=st.sampled_from(["", "a", "b"]), vram=st.integers(0, 3)), max_size=4).map(tuple)
resources = st.builds(Resources, st.builds(Cpu, cores=cores), st.integers(0, 50), st.integers(0, 50), gpus)


@given(left=resources, other=resources, most=st.integers(1, 60))
def test_it_is_counted_as_if_it_were_taken_one_by_one(left: Resources, other: Resources, most: int) -> None:
    then, count = left, 0
    while count < most and then.fits(other):
        then, count = then.minus(other), count + 1
    assert left.times(other, most) == count
    taken = left.minus_times(other, count)
    assert (taken.cpu, taken.memory, taken.disk, len(taken.gpus)) == (then.cpu, then.memory, then.disk, len(then.gpus))


def test_a_great_many_take_no_time() -> None:
    left, other = Resources(Cpu(10_000.0), 2**50, 2**50), Resources(Cpu(0.001), 1, 1)
    began = time.process_time()
    for _ in range(1000):
        assert left.times(other, 10_000) == 10_000
        left.minus_times(other, 10_000)
    # one by one a single time takes longer than that
    assert time.process_time() - began < 0.2
