"""A pod is the mirror of a static pod only if its kubelet made it: whoever creates a pod may write annotations."""

from typing import Any

import msgspec
import pytest

from schemas.kubernetes.mirror_pods import MIRROR, SOURCE, is_mirror_pod
from schemas.kubernetes.objects import Pod
from tests.support.observed.objects import mirror_metadata

NODE = "node1"


def pod(metadata: dict[str, Any], node: str = NODE) -> Pod:
    return msgspec.convert({"metadata": metadata, "spec": {"nodeName": node}}, Pod)


def with_owner(**fields: Any) -> dict[str, Any]:
    mirror = mirror_metadata(NODE)
    return mirror | {"ownerReferences": [mirror["ownerReferences"][0] | fields]}


def test_pod_that_a_kubelet_made_of_a_manifest_is_one() -> None:
    assert is_mirror_pod(pod(mirror_metadata(NODE)))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"annotations": {SOURCE: "file"}},
        {"annotations": {SOURCE: "file", MIRROR: "digest"}},
        mirror_metadata(NODE) | {"annotations": {SOURCE: "file"}},
        mirror_metadata(NODE) | {"annotations": {MIRROR: "digest"}},
        mirror_metadata(NODE) | {"annotations": {MIRROR: "digest", SOURCE: "api"}},
        with_owner(controller=False),
        with_owner(kind="ReplicaSet"),
        with_owner(apiVersion="example.com/v1"),
        with_owner(name="node2"),
    ],
)
def test_any_other_pod_is_none(metadata: dict[str, Any]) -> None:
    assert not is_mirror_pod(pod(metadata))


def test_pod_without_a_node_is_none() -> None:
    assert not is_mirror_pod(pod(with_owner(name=""), node=""))
