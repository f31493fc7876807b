"""What a process says about itself: ``/healthz``, ``/readyz`` with each named condition, ``/metrics``.

Readiness means "can do its work from Kubernetes"; the bus being away is a metric, not a condition.
Next: :mod:`services.common.runtime`, which serves this for as long as the process lives.
"""

from collections.abc import Callable

from aiohttp import web

from services.common.http.server import make_app
from services.common.telemetry import Telemetry

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Readiness:
    """Named conditions; ready when there are some and all are met."""

    def __init__(self, changed: Callable[[str, bool, str], None] = lambda _name, _ok, _why: None) -> None:
        self._conditions: dict[str, tuple[bool, str]] = {}
        self._changed = changed

    @property
    def ready(self) -> bool:
        """Whether every condition is met."""
        return bool(self._conditions) and all(ok for ok, _ in self._conditions.values())

    def set(self, name: str, ok: bool, why: str = "") -> None:
        """Say whether a condition is met, and if not, why."""
        before = self._conditions.get(name)
        self._conditions[name] = (ok, why)
        if before is None or before[0] != ok:
            self._changed(name, ok, why)

    def text(self) -> str:
        """One line for each condition, in the form of kube-apiserver's ``/readyz?verbose``."""
        lines = [
            f"[+]{name} ok" if ok else f"[-]{name} failed: {why or 'not yet'}"
            for name, (ok, why) in self._conditions.items()
        ]
        lines.append("readyz check passed" if self.ready else "readyz check failed")
        return "\n".join(lines) + "\n"


def health_app(telemetry: Telemetry, readiness: Readiness) -> web.Application:
    """The application with the three paths. ``/healthz`` answers as long as the event loop turns, and means no more."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(text=readiness.text(), status=200 if readiness.ready else 503)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=telemetry.metrics_text(), headers={"Content-Type": METRICS_TYPE})

    app = make_app(telemetry=telemetry, max_body=1024, errors="text", traced=False)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app
