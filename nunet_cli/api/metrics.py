"""`/metrics`: the node in the text format of Prometheus."""

from __future__ import annotations

from functools import reduce
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from nunet_cli.api.common import Endpoint, node_of
from nunet_cli.node import overview
from nunet_cli.node.node import Node
from nunet_cli.records.allocations import ALLOCATION, ALLOCATIONS
from nunet_cli.records.capability import Resources
from nunet_cli.records.jobs import JOB, JOBS


async def metrics(request: Request) -> Response:
    """Return the present values."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(node_of(request)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Collector:
    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Any:
        """Yield every metric, read now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        node, status = self._node, overview.status(self._node)
        info = {"version": status["version"], "peer_id": status["peer_id"], "network": status["network"]}
        yield InfoMetricFamily("nunet_node", "The node.", info)
        for name, text, value in (
            ("nunet_peers_known", "Peers that are known.", status["peers"]["known"]),
            ("nunet_peers_connected", "Peers that are connected.", status["peers"]["connected"]),
            ("nunet_onboarded", "1 where the node offers capability.", int(status["onboarded"])),
            ("nunet_taken_ratio", "The share of the capability that is taken.", status["load"]),
            ("nunet_machine_cpu_ratio", "How busy the machine is, whoever uses it.", status["machine"]["cpu_load"]),
            ("nunet_machine_memory_free_bytes", "Free memory of the machine.", status["machine"]["memory_free"]),
            ("nunet_machine_disk_free_bytes", "Free disk of the machine.", status["machine"]["disk_free"]),
            ("nunet_earned_ntx", "Earned as a provider.", float(status["earned"])),
            ("nunet_spent_ntx", "Spent as a requester.", float(status["spent"])),
        ):
            yield GaugeMetricFamily(name, text, value)
        for name, text, counts, machine in (
            ("nunet_jobs", "Jobs of this requester.", node.ctx.store[JOBS].count_by("state"), JOB),
            ("nunet_allocations", "Allocations on this machine.", node.ctx.store[ALLOCATIONS].count_by("state"),
             ALLOCATION),
        ):  # fmt: skip
            family = GaugeMetricFamily(name, text, labels=["state"])
            for state in machine.states:
                family.add_metric([state], counts.get(state, 0))
            yield family
        offered = GaugeMetricFamily("nunet_capability", "What is offered.", labels=["resource", "part"])
        whole = node.get_registered_capability().resources
        left = node.get_available_capability().resources
        locked = reduce(Resources.plus, (row.resources for row in node.get_locked_capabilities()), Resources())
        for part, resources in (("registered", whole), ("available", left), ("locked", locked)):
            for resource, value in _amounts(resources):
                offered.add_metric([resource, part], value)
        yield offered
        distance = GaugeMetricFamily("nunet_peer_rtt_seconds", "The round trip to a peer.", labels=["peer"])
        for edge in node.get_edges():
            if edge.rtt is not None:
                distance.add_metric([edge.did], edge.rtt)
        yield distance
        rejected = CounterMetricFamily("nunet_messages_rejected", "Messages that were refused.", labels=["reason"])
        for reason, count in status["rejections"].items():
            rejected.add_metric([reason], count)
        yield rejected
        failed = CounterMetricFamily("nunet_tasks_failed", "Tasks that ended with an error.", labels=["task"])
        for task, count in status["failures"].items():
            failed.add_metric([task], count)
        yield failed
        balance = GaugeMetricFamily("nunet_balance_ntx", "The balance as last told.", labels=["contract_database"])
        for row in status["balances"]:
            balance.add_metric([row["id"]], float(row["balance"]))
        yield balance


def _amounts(resources: Resources) -> list[tuple[str, float]]:
    return [
        ("cpu_cores", resources.cpu.cores), ("memory_bytes", resources.memory), ("disk_bytes", resources.disk),
        ("gpus", len(resources.gpus)),
    ]  # fmt: skip


ENDPOINTS = (Endpoint("/metrics", metrics, media="text/plain"),)
