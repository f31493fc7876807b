"""The real namespace controller and an aggregated API without a server: what is blocked, and what frees it.

An aggregated API whose server is gone blocks the deletion of every namespace. docs/install.md has the command for it.
"""

from collections.abc import Callable

import pytest

from tests.support.interop.releases import NAMESPACE, RELEASE, RELEASES, installed_crds, labelled_namespace, release
from tests.support.kube.control_plane import ControlPlane, until

OTHER = "other"
API = "v1.subresources.hotnic.io"
WAYS: dict[str, Callable[[ControlPlane], object]] = {
    "kubectl": lambda cluster: cluster.kubectl("delete", "apiservice", API),
    "helm": lambda cluster: cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--no-hooks"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_namespace_is_deleted_once_the_api_service_is(cluster: ControlPlane, way: str) -> None:
    choice = RELEASES["beside-kubevirt"]
    with (
        installed_crds(cluster, choice.there),
        labelled_namespace(cluster),
        release(cluster, *choice.values),
    ):
        cluster.kubectl(
            "wait", "--for=condition=Available=False", "apiservice/v1.subresources.hotnic.io", "--timeout=100s"
        )
        cluster.kubectl("create", "namespace", OTHER)
        cluster.kubectl("delete", "namespace", OTHER, "--wait=false")

        def refusal() -> str:
            found = cluster.get("namespace", OTHER)["status"].get("conditions", [])
            texts = [item["message"] for item in found if item["type"] == "NamespaceDeletionDiscoveryFailure"]
            return texts[0] if texts else ""

        message = until(refusal, lambda: cluster.kubectl("get", "namespace", OTHER, "-o", "yaml"))
        assert "subresources.hotnic.io/v1" in message
        WAYS[way](cluster)
        cluster.kubectl("wait", "--for=delete", f"namespace/{OTHER}", "--timeout=100s")
