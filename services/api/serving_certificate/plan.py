"""Decide what to do about the serving certificate: make, renew, trust, serve. Pure.

The kube-apiserver verifies each replica's certificate with the ``caBundle`` of an APIService. Three rules keep the two
from disagreeing, in whatever order the replicas act and wherever one of them stops:

* A replica serves a pair only after it has seen its CA in the ``caBundle`` of every APIService.
* A CA leaves the bundle only when every certificate that it can have signed has expired. It signs nothing after a
  younger CA has taken its place in the Secret, so one certificate's validity after that time is enough.
* Every write is bound to the version that was observed, and a CA that any APIService trusts counts as trusted, whatever
  the Secret says. So neither a replica that lags behind nor a Secret that was deleted or restored takes a CA away.

Next: :mod:`services.api.serving_certificate.reconcile`, which observes and applies.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

CA_VALIDITY: Final = timedelta(days=3650)
PAIR_VALIDITY: Final = timedelta(days=365)
BACKDATED: Final = timedelta(hours=1)
"""How long before its creation a certificate is valid, for clocks that differ between machines."""
_MARGIN: Final = timedelta(days=1)
"""Added to the time for which an older CA stays in the bundle, for the same reason."""


class TrustedCa(msgspec.Struct, frozen=True):
    """The certificate of a CA.

    :ivar fingerprint: SHA-256 of the certificate.
    """

    fingerprint: str
    pem: str
    not_before: datetime
    not_after: datetime


class ServingPair(msgspec.Struct, frozen=True):
    """A serving certificate with its key, both as PEM text.

    :ivar issuer: fingerprint of the CA of the same Secret that has signed it; empty if none has.
    :ivar names: its DNS names.
    """

    certificate: str
    key: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime


class StoredCertificates(msgspec.Struct, frozen=True):
    """The content of the Secret.

    :ivar signer: the CA that signs.
    :ivar signing_key: PEM text of its key.
    :ivar others: the CAs that stay trusted beside it.
    :ivar pair: the pair to serve; ``None`` if it cannot be used.
    """

    signer: TrustedCa
    signing_key: str
    others: tuple[TrustedCa, ...]
    pair: ServingPair | None


class ObservedSecret(msgspec.Struct, frozen=True):
    """The Secret.

    :ivar version: its resource version; ``None`` if there is no Secret.
    :ivar foreign: whether someone else has written its data.
    :ivar stored: its content; ``None`` if it is empty or cannot be used.
    """

    version: str | None
    foreign: bool
    stored: StoredCertificates | None


class ObservedBundle(msgspec.Struct, frozen=True):
    """The ``caBundle`` of an APIService that names this api.

    :ivar version: resource version of the APIService.
    """

    api_service: str
    version: str
    cas: tuple[TrustedCa, ...]


class ObservedCertificates(msgspec.Struct, frozen=True):
    """What a replica has observed.

    :ivar served: the pair that this replica serves.
    :ivar names: the DNS names that a serving certificate needs.
    """

    bundles: tuple[ObservedBundle, ...]
    secret: ObservedSecret
    served: ServingPair | None
    names: tuple[str, ...]


class WriteSecret(msgspec.Struct, frozen=True):
    """Write the Secret over the observed version.

    :ivar signer: the CA that signs, and its key; ``None`` makes a new CA.
    :ivar pair: the pair to keep; ``None`` makes a new one.
    :ivar others: the CAs that stay trusted beside the signer.
    """

    version: str | None
    signer: tuple[TrustedCa, str] | None
    pair: ServingPair | None
    others: tuple[TrustedCa, ...]
    names: tuple[str, ...]


class SetCaBundle(msgspec.Struct, frozen=True):
    """Set the ``caBundle`` of an APIService over the observed version."""

    api_service: str
    version: str
    cas: tuple[TrustedCa, ...]


class ServePair(msgspec.Struct, frozen=True):
    """Serve another pair."""

    pair: ServingPair


class RefuseForeignSecret(msgspec.Struct, frozen=True):
    """Leave a Secret alone that someone else has written."""


CertificateAction: TypeAlias = WriteSecret | SetCaBundle | ServePair | RefuseForeignSecret


def plan(observed: ObservedCertificates, now: datetime) -> list[CertificateAction]:
    """Return what to do now; nothing if everything is as it should be. After any write, observe and plan again."""
    secret = observed.secret
    if secret.foreign:
        return [RefuseForeignSecret()]
    trusted = {ca.fingerprint: ca for bundle in observed.bundles for ca in bundle.cas}
    stored = secret.stored
    if stored is None:
        # Replicas may still serve pairs of a Secret that was deleted.
        kept = _sorted(ca for ca in trusted.values() if not _is_expired(ca, now))
        return [WriteSecret(secret.version, None, None, kept, observed.names)]

    signer = stored.signer
    candidates = (trusted | {ca.fingerprint: ca for ca in stored.others}).values()
    others = _sorted(ca for ca in candidates if ca != signer and not _is_superseded(ca, signer, now))
    if _is_due(signer, now):
        # Every other CA was there when this one is made, so all of them stay for one certificate's validity.
        kept = _sorted(ca for ca in (signer, *candidates) if not _is_expired(ca, now))
        return [WriteSecret(secret.version, None, None, kept, observed.names)]
    pair = stored.pair
    if pair is None or pair.issuer != signer.fingerprint or pair.names != observed.names or _is_due(pair, now):
        pair = None
    if pair is None or others != stored.others:
        return [WriteSecret(secret.version, (signer, stored.signing_key), pair, others, observed.names)]

    wanted = (signer, *others)
    outdated = [bundle for bundle in observed.bundles if bundle.cas != wanted]
    if outdated:
        return [SetCaBundle(bundle.api_service, bundle.version, wanted) for bundle in outdated]
    return [ServePair(pair)] if observed.served != pair else []


def _is_due(validity: TrustedCa | ServingPair, now: datetime) -> bool:
    """Return whether two thirds of the validity have passed, or it has not begun: the clock of its maker was ahead."""
    return now < validity.not_before or now >= validity.not_before + (validity.not_after - validity.not_before) * 2 / 3


def _is_expired(ca: TrustedCa, now: datetime) -> bool:
    return now > ca.not_after + _MARGIN


def _is_superseded(ca: TrustedCa, signer: TrustedCa, now: datetime) -> bool:
    """Return whether all certificates of a CA have expired.

    A CA younger than the signer belongs to a Secret that was replaced by an older copy. When it has signed last is
    unknown, so it stays until it expires itself, or until a new CA is made.
    """
    last_signed = signer.not_before + BACKDATED
    older = ca.not_before < signer.not_before
    return _is_expired(ca, now) or (older and now > last_signed + PAIR_VALIDITY + _MARGIN)


def _sorted(cas: Iterable[TrustedCa]) -> tuple[TrustedCa, ...]:
    unique = {ca.fingerprint: ca for ca in cas}.values()
    return tuple(sorted(unique, key=lambda ca: (ca.not_before, ca.fingerprint), reverse=True))
