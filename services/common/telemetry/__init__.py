"""Traces and metrics of one process: made once from the environment, handed on through the role's context.

Not a global: nothing here sets OpenTelemetry's global providers, so tests can assert whole span trees.
Next: :mod:`services.common.telemetry.propagation`, how the trace crosses annotations, headers and queues.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.common.telemetry.metrics import Metrics
    from services.common.telemetry.setup import Telemetry, configure

__all__ = ["Metrics", "Telemetry", "configure"]


def __getattr__(name: str) -> Any:
    # The SDK is a quarter of the import time of a command that makes no spans: whoever asks for it gets it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from services.common.telemetry import metrics, setup

    return getattr(metrics if name == "Metrics" else setup, name)
