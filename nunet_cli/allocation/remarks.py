"""What is remarkable about a job that runs: that it does nothing, or comes near to a limit that would end it."""

from __future__ import annotations

from nunet_cli import quantities
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.jobs.tree import required_capability
from nunet_cli.records.results import Usage

# a program that only waits uses next to nothing of the processor: so many cores count as nothing
NOTHING = 0.005
# the part of its memory, and of its time, above which a job is near to being ended
NEAR = 0.9


class Remarks:
    """Looks at what an allocation uses, from one sign of life to the next; says the same as long as it is the same.

    Args:
        spec: the job, or the pod.
    """

    def __init__(self, spec: JobSpec) -> None:
        needs = required_capability(spec)
        self._memory, self._max_duration = needs.resources.memory, needs.time.max
        # to wait is what a service does
        self._may_wait = spec.type == "service"
        self._worked = self._cpu = 0.0

    def look(self, usage: Usage, stall: float) -> str:
        """Return what a requester should know of what has been used so far; empty where all is well.

        Args:
            usage: of the whole allocation, until now.
            stall: after how many seconds without work it is said that it does nothing.
        """
        idle = usage.wall_seconds - self._worked
        if usage.cpu_seconds - self._cpu > NOTHING * idle:
            # it worked in between
            self._worked, self._cpu, idle = usage.wall_seconds, usage.cpu_seconds, 0.0
        said = []
        if idle >= stall and not self._may_wait:
            said.append(f"it has used no processor for over {quantities.format_duration(stall)}")
        if self._memory and usage.max_memory > NEAR * self._memory:
            most = quantities.format_size(self._memory)
            said.append(f"it has used over {NEAR:.0%} of its {most} of memory: with more than that it is ended")
        if self._max_duration and usage.wall_seconds > NEAR * self._max_duration:
            most = quantities.format_duration(self._max_duration)
            said.append(f"over {NEAR:.0%} of its max_duration of {most} is over")
        return "; ".join(said)
