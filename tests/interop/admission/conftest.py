"""A control plane of the oldest and of the newest Kubernetes, with the admission policies of the chart."""

from collections.abc import Iterator

import pytest

from tests.support.kube.admission.cluster import GuardedCluster, guarded_cluster
from tests.support.kube.admission.objects import identities
from tests.support.kube.admission.table import rows
from tests.support.kube.control_plane import until
from tests.support.leftovers import adopt_orphans, nothing_left_behind

adopt_orphans()


@pytest.fixture(scope="session", params=["1.30", "1.36"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedCluster]:
    """A control plane whose API server enforces the policies."""
    directory = tmp_path_factory.mktemp("kubernetes")
    with nothing_left_behind(), guarded_cluster(directory, request.param) as cluster:
        everybody = list(identities())
        # The API server learns of a policy a little after it is stored. One refusal for each is enough to see it.
        first = {one.subject: one for one in rows() if any(not one.allows(identity) for identity in everybody)}

        def wrong() -> list[str]:
            return [f"{one.id}: {cell}" for one in first.values() for cell in cluster.wrong_cells(one, everybody)]

        until(lambda: not wrong(), lambda: "\n".join(["the policies are in force", *wrong()]))
        yield cluster
