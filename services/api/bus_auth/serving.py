"""Serve the auth callout: settings, and its connection to NATS as the user of the callout.

The connection is not that of the api's own events, which is let in by the callout like every other role's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.api.bus_auth.callout import AuthCallout, IssuerKeys
from services.api.bus_auth.plan import BusAccounts
from services.api.bus_auth.review import TokenReviewer
from services.common.bus.nats.credentials import Endpoint
from services.common.bus.nats.request_server import RequestServer
from services.common.bus.nats_config import CALLOUT_QUEUE, CALLOUT_SUBJECT
from services.common.bus.settings import BusSettings
from services.common.kube.client import Kube
from services.common.telemetry.logs import Log

USER_SEED: Final = "user.nk"


def serve_callout(
    kube: Kube,
    endpoint: Endpoint,
    accounts: BusAccounts,
    *,
    keys: Path,
    namespace: str,
    log: Log,
    meter: Meter,
    settings: BusSettings | None = None,
    on_state: Callable[[bool], None] = lambda _up: None,
) -> RequestServer:
    """Return what answers the auth callout of a NATS server.

    :param endpoint: the server; its credentials are replaced by those of the callout's user.
    :param keys: directory with ``issuer*.nk``, which sign, and ``user.nk``, which connects.
    :param namespace: namespace of the roles' pods.
    :param on_state: called with whether requests are answered, after each change.
    """
    up = 0

    def on_change(serving: bool) -> None:
        nonlocal up
        up = int(serving)
        on_state(serving)

    def observe(_options: CallbackOptions) -> tuple[Observation]:
        return (Observation(up),)

    meter.create_observable_gauge(
        "hotnic_bus_auth_up", callbacks=[observe], description="1 while the auth callout of NATS is answered"
    )
    callout = AuthCallout(
        TokenReviewer(kube, accounts, namespace),
        accounts,
        IssuerKeys(keys),
        log=log,
        meter=meter,
    )
    return RequestServer(
        Endpoint(endpoint.servers, ca=endpoint.ca, cert=endpoint.cert, key=endpoint.key, nkey=str(keys / USER_SEED)),
        name="hotnic-auth-callout",
        subject=CALLOUT_SUBJECT,
        queue=CALLOUT_QUEUE,
        answer=callout.answer,
        settings=settings or BusSettings(),
        log=log,
        on_state=on_change,
    )
