"""``hotnic run api``: settings and wiring of the api role. Next: :mod:`services.api.server`."""

import sys
from typing import Annotated

import msgspec

from services.api import front_proxy
from services.api.observe import Cluster
from services.api.server import Api
from services.common.bus.jetstream import connect
from services.common.domain.kubevirt import acting_owner, default_binding, hotplug_enabled
from services.common.http.server import serve
from services.common.http.tls import server_context
from services.common.kube.client import Kube
from services.common.kube.event_recorder import EventRecorder
from services.common.kube.installations import Installations, OwnerSettings
from services.common.recording_bus import RecordingBus
from services.common.runtime import RoleRuntime
from services.common.runtime import main as run

ROLE = "api"


class Settings(OwnerSettings, frozen=True, kw_only=True):
    """Settings of the api."""

    listen: Annotated[str, msgspec.Meta(description="HOST:PORT of the aggregated API (TLS)")] = "0.0.0.0:8443"
    tls_cert: Annotated[str, msgspec.Meta(description="PEM file: the serving certificate")]
    tls_key: Annotated[str, msgspec.Meta(description="PEM file: its private key")]


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Wire the role and begin to serve."""
    settings = runtime.settings
    kube = await Kube.connect(kubeconfig=settings.kubeconfig, telemetry=runtime.telemetry, user_agent="hotnic-api")
    runtime.stack.push_async_callback(kube.close)
    plain = await connect(settings.nats_url, role=ROLE, node="_", telemetry=runtime.telemetry, log=runtime.log)
    bus = RecordingBus(plain, EventRecorder(kube, ROLE, log=runtime.log))
    runtime.stack.push_async_callback(bus.close)
    proxy = await front_proxy.load(kube)
    installations = Installations(kube, runtime.log)
    runtime.spawn("watch kubevirts", installations.run)
    await installations.known.wait()
    api = Api(
        kube,
        bus,
        runtime.telemetry,
        proxy,
        runtime.log,
        cluster=lambda: Cluster(
            owned=acting_owner(settings.vm_owner, installations.items()) == "hotnic",
            default_binding=default_binding(installations.items()),
        ),
        enabled=lambda: hotplug_enabled(settings.hotplug_gate, installations.items()),
    )
    tls = server_context(settings.tls_cert, settings.tls_key, client_ca=proxy.ca)
    await runtime.stack.enter_async_context(serve(api.app, settings.listen, ssl=tls))
    runtime.readiness.set("serving", True)


def main(argv: list[str] | None = None) -> int:
    """Run the role until it is told to stop; returns the exit code."""
    return run(ROLE, Settings, start, argv)


if __name__ == "__main__":
    sys.exit(main())
