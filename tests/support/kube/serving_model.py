"""A model of the cluster in which replicas keep the serving certificate: versions, races, crashes, and no real keys.

A replica takes one step at a time: it reads one object, or applies one action of its plan. Between two steps anything
may happen. The real reads and writes are :mod:`services.api.serving_certificate.reconcile`.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from services.api.serving_certificate.plan import (
    BACKDATED,
    CA_VALIDITY,
    PAIR_VALIDITY,
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

START = datetime(2027, 1, 1, tzinfo=UTC)
NAMES = ("hotnic-api.hotnic.svc", "hotnic-api.hotnic.svc.cluster.local")


@dataclass
class ModelCluster:
    """The objects, with one version counter.

    :ivar bundles: version and CAs of each APIService.
    :ivar secret: version and content; ``None`` if there is no Secret.
    :ivar history: every content that the Secret has had.
    """

    bundles: dict[str, tuple[int, tuple[TrustedCa, ...]]]
    secret: tuple[int, StoredCertificates] | None = None
    history: list[StoredCertificates] = field(default_factory=list)
    now: datetime = START
    version: int = 1
    made: int = 0

    def new_ca(self) -> TrustedCa:
        """Return a new CA."""
        self.made += 1
        return TrustedCa(f"ca{self.made}", f"pem{self.made}", self.now - BACKDATED, self.now + CA_VALIDITY)

    def new_pair(self, ca: TrustedCa, names: tuple[str, ...] = NAMES) -> ServingPair:
        """Return a new pair."""
        self.made += 1
        end = min(self.now + PAIR_VALIDITY, ca.not_after)
        return ServingPair(f"cert{self.made}", "key", ca.fingerprint, names, self.now - BACKDATED, end)

    def store(self, stored: StoredCertificates) -> None:
        """Write the Secret."""
        self.version += 1
        self.secret = (self.version, stored)
        self.history.append(stored)

    def trust(self, api_service: str, cas: tuple[TrustedCa, ...]) -> None:
        """Write a bundle."""
        self.version += 1
        self.bundles[api_service] = (self.version, cas)


@dataclass
class ModelReplica:
    """One replica.

    :ivar served: the pair that it serves.
    :ivar secret_first: whether it reads the Secret before the APIServices.
    """

    cluster: ModelCluster
    served: ServingPair | None = None
    secret_first: bool = False
    _secret: ObservedSecret | None = None
    _bundles: list[ObservedBundle] = field(default_factory=list)
    _actions: list[CertificateAction] = field(default_factory=list)

    def crash(self) -> None:
        """End the process, and start another that serves nothing yet."""
        self.served = None
        self._restart()

    def step(self) -> bool:
        """Read one object or apply one action; return whether there was anything to do after a complete look."""
        if self._actions:
            self._apply(self._actions.pop(0))
            return True
        names = list(self.cluster.bundles)
        if self._secret is None and (self.secret_first or len(self._bundles) == len(names)):
            self._secret = self._read_secret()
            return True
        if len(self._bundles) < len(names):
            name = names[len(self._bundles)]
            version, cas = self.cluster.bundles[name]
            self._bundles.append(ObservedBundle(name, str(version), cas))
            return True
        assert self._secret is not None
        observed = ObservedCertificates(tuple(self._bundles), self._secret, self.served, NAMES)
        self._restart()
        self._actions = plan(observed, self.cluster.now)
        return bool(self._actions)

    def settle(self) -> None:
        """Step until nothing is left to do."""
        for _ in range(200):
            if not self.step():
                return
        raise AssertionError("the replica never settles")

    def is_trusted(self) -> bool:
        """Return whether every APIService trusts what is served; an expired certificate is no bundle's fault."""
        pair = self.served
        if pair is None or pair.not_after < self.cluster.now:
            return True
        return all(pair.issuer in {ca.fingerprint for ca in cas} for _, cas in self.cluster.bundles.values())

    def _read_secret(self) -> ObservedSecret:
        found = self.cluster.secret
        return ObservedSecret(str(found[0]), False, found[1]) if found else ObservedSecret(None, False, None)

    def _restart(self) -> None:
        self._bundles, self._secret, self._actions = [], None, []

    def _apply(self, action: CertificateAction) -> None:
        cluster = self.cluster
        match action:
            case WriteSecret():
                current = cluster.secret
                if action.version != (str(current[0]) if current else None):
                    self._restart()
                    return
                signer, key = action.signer or (cluster.new_ca(), "key")
                pair = action.pair or cluster.new_pair(signer, action.names)
                cluster.store(StoredCertificates(signer, key, action.others, pair))
            case SetCaBundle(name, version, cas):
                if version != str(cluster.bundles[name][0]):
                    self._restart()
                    return
                cluster.trust(name, cas)
            case ServePair(pair):
                self.served = pair
            case RefuseForeignSecret():
                raise AssertionError("the model has no foreign Secret")


def days(number: float) -> timedelta:
    """Return a number of days."""
    return timedelta(days=number)
