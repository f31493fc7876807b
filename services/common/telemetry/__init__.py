"""Traces and metrics of one process, configured once from the environment and passed to the role.

OpenTelemetry's global providers are not used, so that tests can assert whole span trees.
Next: :mod:`services.common.telemetry.propagation`, which carries trace context across annotations, headers and queues.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.common.telemetry.metrics import Metrics
    from services.common.telemetry.setup import Telemetry, configure

__all__ = ["Metrics", "Telemetry", "configure"]


def __getattr__(name: str) -> Any:
    # The SDK takes a quarter of the import time of a CLI command that creates no spans, so it is imported on first use.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from services.common.telemetry import metrics, setup

    return getattr(metrics if name == "Metrics" else setup, name)
