"""Health endpoints of a process: ``/healthz``, ``/readyz`` with each named condition, ``/metrics``.

Ready means that the role can do its work from Kubernetes. A disconnected bus is a metric and a note, and no condition.
Next: :mod:`services.common.runtime.process`, which serves the endpoints while the process lives.
"""

from collections.abc import Callable

from aiohttp import web

from services.common.http.server import make_app
from services.common.telemetry import Telemetry

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Readiness:
    """Named conditions of a process. It is ready if there is at least one and all are met, those of its parts too.

    :param on_change: called with name, state and reason when a condition changes.
    :ivar notes: what does not work although the process is ready, by name.
    :ivar parts: conditions of the roles that run in this process beside its own, by role.
    """

    def __init__(self, on_change: Callable[[str, bool, str], None] = lambda _name, _ok, _why: None) -> None:
        self._conditions: dict[str, tuple[bool, str]] = {}
        self._on_change = on_change
        self.notes: dict[str, str] = {}
        self.parts: dict[str, Readiness] = {}

    @property
    def ready(self) -> bool:
        """Whether every condition is met."""
        own = bool(self._conditions) and all(ok for ok, _ in self._conditions.values())
        return own and all(part.ready for part in self.parts.values())

    def set(self, name: str, ok: bool, why: str = "") -> None:
        """Set whether a condition is met.

        :param why: reason if it is not.
        """
        before = self._conditions.get(name)
        self._conditions[name] = (ok, why)
        if before is None or before[0] != ok:
            self._on_change(name, ok, why)

    def note(self, name: str, why: str) -> None:
        """Show what does not work, without effect on the readiness; an empty text when it works."""
        self.notes[name] = why

    def text(self) -> str:
        """Return one line per condition, in the format of kube-apiserver's ``/readyz?verbose``."""
        lines = self._lines("")
        lines.append("readyz check passed" if self.ready else "readyz check failed")
        return "\n".join(lines) + "\n"

    def _lines(self, prefix: str) -> list[str]:
        lines = [
            f"[+]{prefix}{name} ok" if ok else f"[-]{prefix}{name} failed: {why or 'not yet'}"
            for name, (ok, why) in self._conditions.items()
        ]
        lines += [f"[!]{prefix}{name} unavailable: {why}" for name, why in self.notes.items() if why]
        for role, part in self.parts.items():
            lines += part._lines(f"{prefix}{role}/")
        return lines


def health_app(telemetry: Telemetry, readiness: Readiness) -> web.Application:
    """Return the application that serves the three paths.

    ``/healthz`` shows only that the event loop runs.
    """

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(text=readiness.text(), status=200 if readiness.ready else 503)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=telemetry.metrics_text(), headers={"Content-Type": METRICS_TYPE})

    # Untraced: the kubelet's probes belong to no operation.
    app = make_app(telemetry=telemetry, max_body=1024, errors="text", traced=False)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app
