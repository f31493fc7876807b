"""Requests of several clients beside slow and oversized ones: each is answered, and each plug completes.

A sample of `tests/bench/test_many_requests.py`, without its times.
"""

from pathlib import Path

from tests.bench.scale import api_settings, scaled_cluster
from tests.support.lab.many_requests import Load, send_requests
from tests.support.lab.played_nodes import playing_nodes

LOAD = Load(requests=48, clients=12, vms=16, pause=0.2, bad=24)


async def test_no_request_is_lost_beside_slow_and_oversized_ones(tmp_path: Path) -> None:
    async with (
        scaled_cluster(tmp_path, LOAD.vms) as cluster,
        cluster.role("controller"),
        cluster.role("api", **api_settings(cluster)),
        playing_nodes(cluster.kube),
    ):
        outcome = await send_requests(cluster.kubeconfig, ("127.0.0.1", cluster.place.api_port), LOAD)
    assert outcome.answers == {202: LOAD.requests}
    assert outcome.lost == set()
    # Slow heads end without an answer, slow bodies with 408; what is too large is refused.
    assert outcome.bad_answers == {0: 6, 408: 6, 413: 12}
