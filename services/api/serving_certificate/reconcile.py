"""Keep the Secret, the APIServices and the served certificate in step: observe, plan, apply, again after each write.

All replicas run this loop, and none leads: a replica that loses a race reads again. What is decided is
:mod:`services.api.serving_certificate.plan`. Next: :mod:`services.common.http.tls`, which serves the pair.
"""

import asyncio
import base64
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from schemas.kubernetes.api_registration import API_SERVICES, SECRETS, ApiService, Secret
from services.api.serving_certificate.certificates import is_key_of, make_ca, make_pair, read_cas, read_pair
from services.api.serving_certificate.plan import (
    CertificateAction,
    ObservedBundle,
    ObservedCertificates,
    ObservedSecret,
    RefuseForeignSecret,
    ServePair,
    ServingPair,
    SetCaBundle,
    StoredCertificates,
    TrustedCa,
    WriteSecret,
    plan,
)
from services.common.flowcontrol.backoff import jittered
from services.common.http.tls import ServerTls
from services.common.kube.client import Kube
from services.common.kube.denials import describe_error
from services.common.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from services.common.telemetry.logs import Log

INTERVAL: Final = 10.0
"""Seconds between two observations while nothing has to be done. An APIService created later waits this long."""
FIRST_BACKOFF: Final = 0.5
MAX_BACKOFF: Final = 30.0
MAX_RACES: Final = 20
"""How many races may be lost in a row. A namespace that does not exist looks like a lost race, too."""

CA_CERTIFICATES, CA_KEY, CERTIFICATE, KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"
"""The keys of the Secret: the trusted CAs with the signing one first, its key, and the pair to serve."""


class CertificateNames(msgspec.Struct, frozen=True):
    """The objects of the serving certificate.

    :ivar namespace: namespace of the Secret and of the api's Service.
    :ivar secret: name of the Secret.
    :ivar service: name of the api's Service.
    :ivar api_services: names of the APIServices.
    """

    namespace: str
    secret: str
    service: str
    api_services: tuple[str, ...]

    @property
    def dns(self) -> tuple[str, ...]:
        """The DNS names of the certificate; kube-apiserver uses the first one."""
        host = f"{self.service}.{self.namespace}.svc"
        return (host, f"{host}.cluster.local")


class ServingCertificate:
    """One replica's part in the serving certificate.

    :param tls: the TLS settings of the replica's server.
    :param on_state: called with whether the last attempt succeeded, and otherwise the reason.
    :ivar served: set when the replica has a certificate to serve.
    """

    def __init__(
        self,
        kube: Kube,
        tls: ServerTls,
        names: CertificateNames,
        *,
        log: Log,
        meter: Meter,
        on_state: Callable[[bool, str], None] = lambda _ok, _why: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        self._kube = kube
        self._tls = tls
        self._names = names
        self._log = log
        self._on_state = on_state
        self._clock = clock
        self._rng = rng or random.Random()
        self._pair: ServingPair | None = None
        self._left_alone: set[str] = set()
        self._failures = meter.create_counter(
            "hotnic_tls_renewal_failures", description="Failed attempts to make, renew or register the certificate"
        )
        meter.create_observable_gauge(
            "hotnic_tls_certificate_expires",
            unit="s",
            callbacks=[self._observe_expiry],
            description="Time at which the served certificate expires, in seconds since the epoch",
        )
        self.served = asyncio.Event()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        failures = 0
        while True:
            try:
                problem = await self.reconcile()
            except KubeError as error:
                problem = f"cannot keep the certificate in Secret {self._secret}: {describe_error(error)}"
            self._on_state(not problem, problem)
            failures = failures + 1 if problem else 0
            if problem:
                self._failures.add(1)
                self._log.warning("serving certificate not up to date", error=problem, attempt=failures)
            wait = jittered(failures, FIRST_BACKOFF, MAX_BACKOFF, self._rng) if failures else INTERVAL
            await asyncio.sleep(wait)

    async def reconcile(self) -> str:
        """Observe, plan and apply until nothing is left to do; return why that is not possible, or an empty string.

        :raises KubeError: a request failed, other than by losing a race.
        """
        races = 0
        while True:
            actions = plan(await self._observe(), self._clock())
            if not actions:
                return ""
            if isinstance(actions[0], RefuseForeignSecret):
                return (
                    f"Secret {self._secret} was not written by hotnic: it has data, but no {CA_KEY}; delete it, choose "
                    "another HOTNIC_TLS_SECRET, or mount it and set HOTNIC_TLS_CERT and HOTNIC_TLS_KEY"
                )
            try:
                for action in actions:
                    await self._apply(action)
            except (Conflict, AlreadyExists, NotFound) as error:
                races += 1
                if races > MAX_RACES:
                    raise
                # Another replica was first. The pause keeps replicas that act in step from meeting again.
                self._log.debug("serving certificate changed by another replica", error=error.message)
                await asyncio.sleep(self._rng.uniform(0.01, 0.2))

    async def _observe(self) -> ObservedCertificates:
        found = await asyncio.gather(*(self._observe_bundle(name) for name in self._names.api_services))
        bundles = tuple(bundle for bundle in found if bundle is not None)
        return ObservedCertificates(bundles, await self._observe_secret(), self._pair, self._names.dns)

    async def _observe_bundle(self, name: str) -> ObservedBundle | None:
        """Return the bundle of an APIService; ``None`` if there is none, or if it is not this api's."""
        try:
            found = await self._kube.get(API_SERVICES, None, name)
        except NotFound:
            return None
        if not self._is_ours(name, found):
            return None
        cas = read_cas(_decode(found.spec.ca_bundle or ""))
        return ObservedBundle(name, found.metadata.resource_version, cas)

    def _is_ours(self, name: str, found: ApiService) -> bool:
        service = found.spec.service
        ours = service is not None and (service.namespace, service.name) == (self._names.namespace, self._names.service)
        if ours and not found.spec.insecure_skip_tls_verify:
            self._left_alone.discard(name)
            return True
        # Beside a KubeVirt, `v1.subresources.kubevirt.io` is KubeVirt's own.
        if name not in self._left_alone:
            self._left_alone.add(name)
            reason = "it skips the verification of certificates" if ours else "it names another Service"
            self._log.info("APIService left alone", api_service=name, reason=reason)
        return False

    async def _observe_secret(self) -> ObservedSecret:
        try:
            found = await self._kube.get(SECRETS, self._names.namespace, self._names.secret)
        except NotFound:
            return ObservedSecret(None, False, None)
        return read_secret(found)

    async def _apply(self, action: CertificateAction) -> None:
        match action:
            case WriteSecret():
                await self._write_secret(action)
            case SetCaBundle(name, version, cas):
                body = {"metadata": {"resourceVersion": version}, "spec": {"caBundle": _encode(_bundle(cas))}}
                await self._kube.merge_patch(API_SERVICES, None, name, body)
                self._log.info("caBundle set", api_service=name, cas=[ca.fingerprint[:16] for ca in cas])
            case ServePair(pair):
                self._tls.use(pair.certificate.encode(), pair.key.encode())
                self._pair = pair
                self.served.set()
                self._log.info("serving certificate replaced", secret=self._secret, expires=pair.not_after.isoformat())

    async def _write_secret(self, action: WriteSecret) -> None:
        now = self._clock()
        ca, ca_key = action.signer or make_ca(now)
        pair = action.pair or make_pair(ca, ca_key, action.names, now)
        data = {
            CA_CERTIFICATES: _encode(_bundle((ca, *action.others))),
            CA_KEY: _encode(ca_key),
            CERTIFICATE: _encode(pair.certificate),
            KEY: _encode(pair.key),
        }
        namespace, name = self._names.namespace, self._names.secret
        if action.version is None:
            body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}}
            # The type of the chart's Secret: it is immutable, and `helm upgrade` would fail with another one.
            await self._kube.create(SECRETS, namespace, {**body, "type": "Opaque", "data": data})
        else:
            body = {"metadata": {"resourceVersion": action.version}, "data": data}
            await self._kube.merge_patch(SECRETS, namespace, name, body)
        self._log.info(
            "serving certificate stored",
            secret=self._secret,
            new_ca=action.signer is None,
            new_certificate=action.pair is None,
            cas=[one.fingerprint[:16] for one in (ca, *action.others)],
        )

    @property
    def _secret(self) -> str:
        return f"{self._names.namespace}/{self._names.secret}"

    def _observe_expiry(self, _options: CallbackOptions) -> Iterable[Observation]:
        return (Observation(self._pair.not_after.timestamp()),) if self._pair is not None else ()


def read_secret(found: Secret) -> ObservedSecret:
    """Return what a Secret holds."""
    version = found.metadata.resource_version
    data = {key: _decode(value) for key, value in (found.data or {}).items() if value}
    if not data:
        # A chart may create the Secret empty, so that removing the chart removes it.
        return ObservedSecret(version, False, None)
    if not data.get(CA_KEY):
        return ObservedSecret(version, True, None)
    cas = read_cas(data.get(CA_CERTIFICATES, ""))
    if not cas or not is_key_of(data[CA_KEY], cas[0]):
        return ObservedSecret(version, False, None)
    pair = read_pair(data.get(CERTIFICATE, ""), data.get(KEY, ""), cas)
    return ObservedSecret(version, False, StoredCertificates(cas[0], data[CA_KEY], cas[1:], pair))


def _bundle(cas: Sequence[TrustedCa]) -> str:
    return "".join(ca.pem for ca in cas)


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _decode(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except ValueError:
        return ""
