"""``hotnic run api``: settings and assembly of the api role. Next: :mod:`services.api.server`."""

import sys
from typing import Annotated

import msgspec

from services.api import front_proxy
from services.api.observe import ClusterSettings
from services.api.server import Api
from services.common.domain.kubevirt import acting_owner, default_binding, is_hotplug_enabled
from services.common.http.server import serve
from services.common.http.tls import server_context
from services.common.runtime.context import open_context
from services.common.runtime.installations import Installations, OwnerSettings
from services.common.runtime.process import Instrument, RoleRuntime
from services.common.runtime.process import main as run

ROLE = "api"


class Settings(OwnerSettings, frozen=True, kw_only=True):
    """Settings of the api."""

    listen: Annotated[str, msgspec.Meta(description="HOST:PORT of the aggregated API (TLS)")] = "0.0.0.0:8443"
    tls_cert: Annotated[str, msgspec.Meta(description="PEM file: the serving certificate")]
    tls_key: Annotated[str, msgspec.Meta(description="PEM file: its private key")]


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Assemble the role and start to serve."""
    settings = runtime.settings
    context = await open_context(runtime)
    kube = context.kube
    proxy = await front_proxy.load(kube)
    installations = Installations(kube, runtime.log)
    runtime.spawn("watch kubevirts", installations.run)
    # The feature gate and the owner of the VMs are read from KubeVirt's objects, so they must be listed first.
    await installations.synced.wait()
    api = Api(
        context,
        proxy,
        cluster=lambda: ClusterSettings(
            owned_by_hotnic=acting_owner(settings.vm_owner, installations.items()) == "hotnic",
            default_binding=default_binding(installations.items()),
        ),
        enabled=lambda: is_hotplug_enabled(settings.hotplug_gate, installations.items()),
    )
    tls = server_context(settings.tls_cert, settings.tls_key, client_ca=proxy.ca)
    await runtime.stack.enter_async_context(serve(api.app, settings.listen, ssl=tls))
    runtime.readiness.set("serving", True)


def main(argv: list[str] | None = None, *, instrument: Instrument | None = None) -> int:
    """Run the role until it receives a signal to stop; return the exit code."""
    return run(ROLE, Settings, start, argv, instrument=instrument)


if __name__ == "__main__":
    sys.exit(main())
