"""The metrics of several roles in one process, as one set: each sample has the label ``role``.

Next: :mod:`services.common.telemetry.setup`, which serves them.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Metric

PROCESS_WIDE: Final = frozenset({"hotnic_rejected_inputs", "hotnic_store_entries", "hotnic_store_limit"})
"""Metrics that each role reports for the whole process. They are kept once, from the process itself."""


class MergedMetrics(CollectorRegistry):
    """A registry of the metrics of other registries. Prometheus expects all samples of a metric together.

    :param own: registry of the process.
    :param roles: registries by role.
    """

    def __init__(self, own: CollectorRegistry, roles: Mapping[str, CollectorRegistry]) -> None:
        super().__init__()
        self._own = own
        self._roles = roles

    def collect(self) -> Iterable[Metric]:
        """Return every metric once, with the samples of all registries."""
        merged = {metric.name: metric for metric in self._own.collect()}
        for role, registry in self._roles.items():
            for metric in registry.collect():
                if metric.name in PROCESS_WIDE:
                    continue
                whole = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                whole.samples += [sample._replace(labels={**sample.labels, "role": role}) for sample in metric.samples]
        return merged.values()
