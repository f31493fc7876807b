"""``hotnic run api``: settings and assembly of the api role. Next: :mod:`services.api.server`."""

import os
import ssl
import sys
from pathlib import Path
from typing import Annotated

import msgspec

from services.api import front_proxy
from services.api.discovery import API_SERVICES
from services.api.observe import ClusterSettings
from services.api.server import Api
from services.common.bus.nats.credentials import Endpoint
from services.common.domain.kubevirt.owner import default_binding, is_hotplug_enabled
from services.common.http.server import serve
from services.common.http.tls import ServerTls
from services.common.http.tls_files import CertificateFiles, UnusablePair
from services.common.kube.client import Kube
from services.common.runtime.context import open_context
from services.common.runtime.installations import OwnerSettings
from services.common.runtime.owner import VmOwner
from services.common.runtime.process import STARTED, Instrument, RoleRuntime, StartRefused
from services.common.runtime.process import main as run
from services.common.runtime.settings import SettingsError

ROLE = "api"
AUDIENCE = "hotnic-nats"
CONDITION = "serving-certificate"
"""The condition of ``/readyz``: met once the api has a certificate to serve."""


class Settings(OwnerSettings, frozen=True, kw_only=True):
    """Settings of the api."""

    listen: Annotated[str, msgspec.Meta(description="HOST:PORT of the aggregated API (TLS)")] = "0.0.0.0:8443"
    tls_cert: Annotated[
        str | None, msgspec.Meta(description="PEM file: the serving certificate; followed when it changes")
    ] = None
    tls_key: Annotated[str | None, msgspec.Meta(description="PEM file: its private key")] = None
    tls_secret: Annotated[
        str | None,
        msgspec.Meta(
            description="in place of both files: name of the Secret in which the api makes and renews its own CA and "
            "certificate; it sets the caBundle of HOTNIC_API_SERVICES"
        ),
    ] = None
    namespace: Annotated[
        str | None, msgspec.Meta(description="namespace of that Secret and of the Service; unset: the pod's")
    ] = None
    service_name: Annotated[
        str, msgspec.Meta(description="name of the Service in front of the api, for the certificate", min_length=1)
    ] = "hotnic-api"
    api_services: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="names of the APIServices of this api: their groups are described; one that names another "
            "Service is left alone"
        ),
    ] = API_SERVICES
    bus_auth_keys: Annotated[
        str | None,
        msgspec.Meta(
            description="directory with issuer*.nk and user.nk: the api answers the auth callout of NATS with them; "
            "unset: it does not"
        ),
    ] = None
    bus_auth_accounts: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="ServiceAccounts of HOTNIC_NAMESPACE that the callout lets in, each as NAME=ROLE; the role of "
            "the process with a node's roles is node"
        ),
    ] = ()
    bus_auth_audience: Annotated[str, msgspec.Meta(description="audience of their tokens", min_length=1)] = AUDIENCE


async def start(runtime: RoleRuntime[Settings]) -> None:
    """Assemble the role and start to serve."""
    settings = runtime.settings
    serving = False

    def on_denied(_ok: bool, why: str) -> None:
        # Only while it starts, for the same reason as below. Later the log alone names what is forbidden.
        if not serving:
            runtime.readiness.set(STARTED, False, why or "starting")

    context = await open_context(runtime, on_denied=on_denied)
    try:
        loaded = await context.denials.retry(lambda: front_proxy.load(context.kube), log=context.log)
        tls = ServerTls(client_ca=loaded.ca)
    except (ValueError, ssl.SSLError) as error:
        where = f"ConfigMap {front_proxy.NAMESPACE}/{front_proxy.NAME}"
        raise StartRefused(f"cannot authenticate the aggregation layer by {where}: {error}") from error
    proxy = front_proxy.FollowedFrontProxy(context.kube, tls, loaded, log=runtime.log)
    owner = VmOwner(
        context.kube,
        runtime.log,
        settings.vm_owner,
        # No condition of `/readyz`: an APIService without a ready server blocks the deletion of every namespace. The
        # api goes on to serve and refuses changes.
        on_condition=lambda name, ok, why: runtime.log.info("owner checked", condition=name, met=ok, why=why),
        denials=context.denials,
        namespaces=settings.kubevirt_namespaces,
    )
    runtime.spawn("watch kubevirt", owner.run)
    # The feature gate and the owner of the VMs are read from KubeVirt's objects, so they must be listed first.
    await owner.wait_synced()
    api = Api(
        context,
        lambda: proxy.current,
        cluster=lambda: ClusterSettings(
            owned_by_hotnic=owner.is_hotnic(),
            default_binding=default_binding(owner.installations.items()),
            beside=owner.beside(),
        ),
        enabled=lambda: is_hotplug_enabled(settings.hotplug_gate, owner.installations.items()),
        api_services=settings.api_services,
    )
    runtime.spawn("watch front proxy", proxy.run)
    _start_bus_auth(runtime, context.kube)
    await _start_certificate(runtime, context.kube, tls)
    try:
        await runtime.stack.enter_async_context(serve(api.app, settings.listen, ssl=tls.context))
    except (OSError, ValueError) as error:
        raise SettingsError("HOTNIC_LISTEN", f"{settings.listen}: {error}") from error
    serving = True
    runtime.readiness.set("serving", True)


def _start_bus_auth(runtime: RoleRuntime[Settings], kube: Kube) -> None:
    """Answer the auth callout of NATS in the background, if that is configured.

    :raises SettingsError: the settings do not fit each other.
    """
    settings = runtime.settings
    if settings.bus_auth_keys is None:
        return
    if not settings.nats_url:
        raise SettingsError("NATS_URL", "must be set, because HOTNIC_BUS_AUTH_KEYS is")
    # Imported here because no other api needs nacl.
    from services.api.bus_auth.plan import parse_accounts
    from services.api.bus_auth.serving import serve_callout

    namespace = settings.namespace or kube.access.namespace
    try:
        accounts = parse_accounts(settings.bus_auth_audience, namespace, settings.bus_auth_accounts)
    except ValueError as error:
        raise SettingsError("HOTNIC_BUS_AUTH_ACCOUNTS", str(error)) from error
    callout = serve_callout(
        kube,
        Endpoint.from_url(settings.nats_url, os.environ),
        accounts,
        keys=Path(settings.bus_auth_keys),
        namespace=namespace,
        log=runtime.log,
        meter=runtime.telemetry.meter,
    )
    runtime.spawn("auth callout", callout.run)


async def _start_certificate(runtime: RoleRuntime[Settings], kube: Kube, tls: ServerTls) -> None:
    """Wait for the first serving certificate and keep it up to date in the background.

    :raises SettingsError: there is no way to a certificate, or more than one, or the files cannot be used.
    """
    settings, log, meter = runtime.settings, runtime.log, runtime.telemetry.meter
    if settings.tls_secret is not None:
        if settings.tls_cert is not None or settings.tls_key is not None:
            raise SettingsError("HOTNIC_TLS_SECRET", "is set together with HOTNIC_TLS_CERT or HOTNIC_TLS_KEY; set one")
        # Imported here because no other api needs cryptography.
        from services.api.serving_certificate.reconcile import CertificateNames, ServingCertificate

        names = CertificateNames(
            settings.namespace or kube.access.namespace,
            settings.tls_secret,
            settings.service_name,
            settings.api_services,
        )

        def on_state(ok: bool, why: str) -> None:
            # A certificate that cannot be renewed yet still serves.
            if ok or not certificate.served.is_set():
                runtime.readiness.set(CONDITION, ok, why)

        certificate = ServingCertificate(kube, tls, names, log=log, meter=meter, on_state=on_state)
        runtime.readiness.set(CONDITION, False, "not made yet")
        runtime.spawn("serving certificate", certificate.run)
        await certificate.served.wait()
        return
    if settings.tls_cert is None or settings.tls_key is None:
        raise SettingsError("HOTNIC_TLS_SECRET", "must be set, or HOTNIC_TLS_CERT and HOTNIC_TLS_KEY")
    files = CertificateFiles(tls, settings.tls_cert, settings.tls_key, log=log, meter=meter)
    try:
        files.load()
    except UnusablePair as error:
        raise SettingsError("HOTNIC_TLS_CERT", str(error)) from error
    runtime.spawn("serving certificate", files.run)


def main(argv: list[str] | None = None, *, instrument: Instrument | None = None) -> int:
    """Run the role until it receives a signal to stop; return the exit code."""
    return run(ROLE, Settings, start, argv, instrument=instrument)


if __name__ == "__main__":
    sys.exit(main())
