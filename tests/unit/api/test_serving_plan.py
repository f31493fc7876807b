"""What the plan of the serving certificate does, case by case, and that no order of events breaks it."""

from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.api.serving_certificate.plan import (
    ObservedBundle,
    ObservedCertificates,
    ObservedSecret,
    RefuseForeignSecret,
    ServePair,
    SetCaBundle,
    StoredCertificates,
    TrustedCa,
    WriteSecret,
    plan,
)
from tests.support.kube.serving_model import NAMES, START, ModelCluster, ModelReplica, days

CLUSTER = ModelCluster({})
CA = CLUSTER.new_ca()
PAIR = CLUSTER.new_pair(CA)
CLUSTER.now += days(300)
RENEWED = CLUSTER.new_pair(CA)
OLDER = TrustedCa("older", "pem", START - days(500), START + days(3000))
YOUNGER = TrustedCa("younger", "pem", START + days(5), START + days(3000))
EXPIRED = TrustedCa("expired", "pem", START - days(3700), START - days(50))
STORED = StoredCertificates(CA, "key", (), PAIR)


def observed(
    stored: StoredCertificates | None = STORED, *bundles: tuple[TrustedCa, ...], **changes: Any
) -> ObservedCertificates:
    """Return an observation: the Secret with this content, and one APIService for each bundle."""
    found = tuple(ObservedBundle(f"s{i}", f"b{i}", cas) for i, cas in enumerate(bundles))
    secret = ObservedSecret("7", False, stored)
    return msgspec.structs.replace(ObservedCertificates(found, secret, None, NAMES), **changes)


def stored(**changes: Any) -> StoredCertificates:
    """Return the content of the Secret, changed."""
    return msgspec.structs.replace(STORED, **changes)


def written(**changes: Any) -> WriteSecret:
    """Return the write that keeps CA and pair, changed."""
    return msgspec.structs.replace(WriteSecret("7", (CA, "key"), PAIR, (), NAMES), **changes)


CASES = {
    "no Secret": (
        observed(secret=ObservedSecret(None, False, None)),
        0,
        [WriteSecret(None, None, None, (), NAMES)],
    ),
    "an empty Secret is filled": (observed(None), 0, [written(signer=None, pair=None)]),
    "a foreign Secret": (observed(secret=ObservedSecret("7", True, None)), 0, [RefuseForeignSecret()]),
    "a deleted Secret: what the APIServices trust stays trusted": (
        observed(None, (CA, EXPIRED), (OLDER,)),
        0,
        [written(signer=None, pair=None, others=(CA, OLDER))],
    ),
    "a CA is trusted before it is served": (observed(STORED, (), (CA,)), 0, [SetCaBundle("s0", "b0", (CA,))]),
    "a trusted pair is served": (observed(STORED, (CA,), (CA,)), 0, [ServePair(PAIR)]),
    "no APIService yet": (observed(STORED), 0, [ServePair(PAIR)]),
    "nothing to do": (observed(STORED, (CA,), served=PAIR), 0, []),
    "just below two thirds of the validity": (observed(STORED, (CA,), served=PAIR), 243, []),
    "two thirds of the validity": (observed(STORED, (CA,), served=PAIR), 244, [written(pair=None)]),
    "a CA that is due: a new one beside it": (
        observed(STORED, (CA,), served=PAIR),
        2434,
        [written(signer=None, pair=None, others=(CA,))],
    ),
    "the Service has another name": (
        observed(STORED, (CA,), names=("other.ns.svc",)),
        0,
        [written(pair=None, names=("other.ns.svc",))],
    ),
    "a pair that is not valid yet: it was made by a clock that is ahead": (
        observed(stored(pair=RENEWED), (CA,)),
        0,
        [written(pair=None)],
    ),
    "a CA that is not valid yet": (
        observed(stored(signer=YOUNGER), (YOUNGER,)),
        0,
        [written(signer=None, pair=None, others=(YOUNGER,))],
    ),
    "a damaged pair": (observed(stored(pair=None), (CA,)), 0, [written(pair=None)]),
    "a pair of another CA": (
        observed(stored(signer=OLDER), (CA,)),
        0,
        [written(signer=(OLDER, "key"), pair=None, others=(CA,))],
    ),
    "a CA that only an APIService has": (observed(STORED, (CA, OLDER)), 0, [written(others=(OLDER,))]),
    "an older CA stays for a year": (
        observed(stored(others=(OLDER,), pair=RENEWED), (CA, OLDER)),
        365,
        [ServePair(RENEWED)],
    ),
    "an older CA goes after a year": (
        observed(stored(others=(OLDER,), pair=RENEWED), (CA, OLDER)),
        367,
        [written(pair=RENEWED)],
    ),
    "an older CA goes from the bundle, too": (
        observed(stored(pair=RENEWED), (CA, OLDER)),
        367,
        [SetCaBundle("s0", "b0", (CA,))],
    ),
    "a CA younger than the signer stays": (
        observed(stored(others=(YOUNGER,), pair=RENEWED), (CA, YOUNGER)),
        367,
        [ServePair(RENEWED)],
    ),
    "an expired CA goes": (observed(STORED, (EXPIRED, CA)), 0, [SetCaBundle("s0", "b0", (CA,))]),
}


@pytest.mark.parametrize("case", CASES)
def test_plan(case: str) -> None:
    found, after, expected = CASES[case]
    assert plan(found, START + days(after)) == expected


class Replicas(RuleBasedStateMachine):
    """Two replicas and two APIServices, with crashes, a deleted and a restored Secret, and years that pass.

    The invariant: whatever a replica serves, every APIService trusts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cluster = ModelCluster({"v1.hotnic": (1, ()), "v1.kubevirt": (1, ())})
        self.replicas = [ModelReplica(self.cluster), ModelReplica(self.cluster, secret_first=True)]
        self.restored = False

    @initialize(settled=st.booleans())
    def start(self, settled: bool) -> None:
        """Start from nothing, or with both replicas serving."""
        if settled:
            for replica in self.replicas:
                replica.settle()

    @rule(which=st.integers(0, 1), steps=st.integers(1, 12))
    def step(self, which: int, steps: int) -> None:
        """Let one replica take some steps."""
        for _ in range(steps):
            self.replicas[which].step()
            self.every_served_certificate_is_trusted()

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        """End a replica between two steps."""
        self.replicas[which].crash()

    @rule(passed=st.sampled_from([0.01, 1, 60, 245, 366, 2500]))
    def wait(self, passed: float) -> None:
        """Let days pass."""
        self.cluster.now += days(passed)

    @rule()
    def delete_secret(self) -> None:
        """Delete the Secret, as an operator does."""
        self.cluster.secret = None

    @precondition(lambda self: not self.restored and self.cluster.history)
    @rule(data=st.data())
    def restore_secret(self, data: st.DataObject) -> None:
        """Restore an older copy of the Secret from a backup."""
        self.restored = True
        self.cluster.store(data.draw(st.sampled_from(self.cluster.history)))

    @invariant()
    def every_served_certificate_is_trusted(self) -> None:
        """Check both replicas."""
        for replica in self.replicas:
            assert replica.is_trusted(), (replica.served, self.cluster.bundles)

    def teardown(self) -> None:
        """Check that both replicas come to rest with one pair that is valid, trusted and not due."""
        for _ in range(2):
            for replica in self.replicas:
                replica.settle()
        pairs = {msgspec.json.encode(replica.served) for replica in self.replicas}
        assert len(pairs) == 1
        served = self.replicas[0].served
        assert served is not None
        assert served.not_after > self.cluster.now + days(100)
        assert self.replicas[0].is_trusted()


TestReplicas = Replicas.TestCase


def test_a_rotation_of_the_ca_by_two_replicas_in_turns() -> None:
    cluster = ModelCluster({"v1.hotnic": (1, ())})
    first, second = ModelReplica(cluster), ModelReplica(cluster, secret_first=True)
    first.settle()
    second.settle()
    before = first.served
    cluster.now += days(2500)
    # Its certificate has long expired, so both replicas have renewed it meanwhile, as they do here.
    while first.step() | second.step():
        assert second.is_trusted()
        assert first.is_trusted()
    assert before is not None
    assert first.served == second.served != before
    ((_, cas),) = cluster.bundles.values()
    assert len(cas) == 2
    cluster.now += days(200)
    first.settle()
    cluster.now += days(200)
    first.settle()
    second.settle()
    ((_, cas),) = cluster.bundles.values()
    assert [ca.fingerprint for ca in cas] == [first.served.issuer if first.served else ""]
