"""The aggregated API behind real API servers: discovery, kubectl explain, and certificates that change under load.

`make cluster-chart-test` runs it on the newest version, `make kubernetes-test` on the oldest.
"""

import base64
import json
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.apiserver.identity import pki
from services.api.discovery import GROUPS, HOTNIC_GROUP
from tests.support.interop.aggregated import (
    ADDRESSES,
    PORT,
    SECRET,
    Load,
    Replicas,
    replicas,
)
from tests.support.interop.releases import NAMESPACE
from tests.support.kube.control_plane import KUBECTL, ControlPlane, until

GROUP_VERSIONS = [(group, version) for group, versions in GROUPS.items() for version in versions]
SUBRESOURCES = {
    f"{plural}/{verb}"
    for plural in ("virtualmachines", "virtualmachineinstances")
    for verb in ("addinterface", "removeinterface")
}
FRONT_PROXY_CONFIG = ("configmap/extension-apiserver-authentication", "-n", "kube-system")
PLUGGED = 25
"""Requests of the load between two steps: five seconds."""


@pytest.fixture(scope="module", params=["self", "files"])
def api(
    cluster: ControlPlane, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    with replicas(cluster, tmp_path_factory.mktemp("replicas"), request.param) as found:
        yield found


def test_kubectl_explains_every_kind_of_every_group(api: Replicas) -> None:
    for group, version in GROUP_VERSIONS:
        kinds = {"addinterfaceoptions.networkAttachmentDefinitionName": "AddInterfaceOptions"}
        kinds["removeinterfaceoptions.name"] = "RemoveInterfaceOptions"
        if group == HOTNIC_GROUP:
            kinds["hotplugstatuses.items.waitingFor"] = "HotplugStatus"
        for field, kind in kinds.items():
            arguments = ("explain", field, f"--api-version={group}/{version}")

            def explained(arguments: tuple[str, ...] = arguments, kind: str = kind) -> bool:
                # kube-aggregator downloads the documents of an APIService some seconds after it.
                done = api.cluster.run(KUBECTL, *arguments, check=False)
                return done.returncode == 0 and f"KIND:       {kind}" in done.stdout

            until(explained, lambda arguments=arguments: api.cluster.run(KUBECTL, *arguments, check=False).stderr)
    # By the renderer of old clients, from the merged document of version 2.
    arguments = ("explain", "hotplugstatuses.items", "--output=plaintext-openapiv2")
    until(
        lambda: "waitingFor" in api.cluster.run(KUBECTL, *arguments, check=False).stdout,
        lambda: api.cluster.run(KUBECTL, *arguments, check=False).stderr,
    )


def test_the_merged_documents_have_every_operation(api: Replicas) -> None:
    cluster = api.cluster

    def merged() -> set[str]:
        paths = json.loads(cluster.kubectl("get", "--raw", "/openapi/v2"))["paths"]
        return {path for path in paths if "subresources." in path}

    wanted = {
        f"/apis/{group}/{version}/namespaces/{{namespace}}/{name.replace('/', '/{name}/')}"
        for group, version in GROUP_VERSIONS
        for name in SUBRESOURCES
    }
    until(lambda: wanted <= merged(), lambda: f"missing: {wanted - merged()}")
    index = json.loads(cluster.kubectl("get", "--raw", "/openapi/v3"))["paths"]
    for group, version in GROUP_VERSIONS:
        url = index[f"apis/{group}/{version}"]["serverRelativeURL"]
        described = json.loads(cluster.kubectl("get", "--raw", url))
        assert {path for path in wanted if f"/{group}/{version}/" in path} <= described["paths"].keys()


def test_the_aggregated_discovery_document_has_the_resources_of_both_groups(api: Replicas) -> None:
    context = ssl.create_default_context(cafile=str(api.cluster.ca))
    admin = pki.pair(api.cluster.kubeconfig.parent, "admin")
    context.load_cert_chain(admin.cert, admin.key)
    accept = {"Accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"}

    def discovered() -> dict[str, set[str]]:
        request = urllib.request.Request(f"{api.cluster.server}/apis", headers=accept)
        with urllib.request.urlopen(request, context=context, timeout=50) as answer:
            items = json.load(answer)["items"]
        return {
            f"{item['metadata']['name']}/{version['version']}": {
                f"{resource['resource']}/{one['subresource']}"
                for resource in version.get("resources", ())
                for one in resource.get("subresources", ())
            }
            for item in items
            for version in item["versions"]
            if item["metadata"]["name"] in GROUPS and version["freshness"] == "Current"
        }

    wanted = {f"{group}/{version}": set(SUBRESOURCES) for group, version in GROUP_VERSIONS}
    wanted[f"{HOTNIC_GROUP}/v1"].add("virtualmachineinstances/interfaces")
    until(lambda: discovered() == wanted, lambda: f"{wanted} in {discovered()}")
    # Resources without verbs are none for users.
    assert "subresources" not in api.cluster.kubectl("api-resources", "--no-headers")


def test_a_namespace_is_deleted_beside_resources_without_verbs(api: Replicas) -> None:
    api.cluster.kubectl("create", "namespace", "other")
    api.cluster.kubectl("delete", "namespace", "other", "--timeout=100s")


def test_the_serving_certificate_and_its_ca_change_under_load(api: Replicas) -> None:
    served = {address: certificate(api, address) for address in ADDRESSES}

    def replaced() -> bool:
        return all(certificate(api, address) != served[address] for address in ADDRESSES)

    with Load(api.cluster) as load:
        load.more(PLUGGED)
        if api.provider == "self":
            before = api.bundles()
            # A Secret that is gone is made again with a new CA.
            api.cluster.kubectl("delete", "secret", SECRET, "-n", NAMESPACE)
            until(replaced, lambda: f"another certificate:\n{api.logs}")
            assert all(
                base64.b64decode(old) in base64.b64decode(new) for old, new in zip(before, api.bundles(), strict=True)
            )
        else:
            api.issue("serving-1")
            until(replaced, lambda: f"another certificate:\n{api.logs}")
            load.more(PLUGGED)
            served = {address: certificate(api, address) for address in ADDRESSES}
            pki.ensure_ca(api.cluster.kubeconfig.parent, "serving-2", "serving-2")
            api.trust("serving-1", "serving-2")
            load.more(PLUGGED)
            api.issue("serving-2")
            until(replaced, lambda: f"another certificate:\n{api.logs}")
            api.trust("serving-2")
        load.more(PLUGGED)
    assert load.failures == []


def certificate(api: Replicas, address: str) -> str:
    """Return the certificate that a replica serves."""
    assert api.serves(address)
    return ssl.get_server_certificate((address, PORT), timeout=50)


def test_the_front_proxy_ca_changes_under_load(api: Replicas) -> None:
    """In the order of Kubernetes' documentation: both CAs, then the client's certificate, then the new CA alone."""
    cluster = api.cluster
    folder = cluster.kubeconfig.parent
    authority, client = pki.ca_file(folder, "front-proxy-ca"), pki.pair(folder, "front-proxy-client")
    number = sum(1 for _ in folder.glob("pki/rotated-*-ca.crt")) + 1
    new = pki.ensure_ca(folder, f"rotated-{number}-ca", f"rotated-{number}-ca")
    old_ca, old_pair = authority.read_text(), (client.cert.read_bytes(), client.key.read_bytes())
    times = next(iter(api.logs.values())).count("front-proxy settings replaced")

    def use_ca(text: str) -> None:
        nonlocal times
        times += 1
        replace(authority, text.encode())

        def published() -> bool:
            found = config(cluster)
            if found != text and old_ca not in text:
                # API servers add a CA to what the ConfigMap has, and remove none before it expires. They write a
                # missing one again, so it is deleted until it has been written from the new file.
                cluster.run(KUBECTL, "delete", *FRONT_PROXY_CONFIG, "--ignore-not-found", check=False)
            return found == text

        until(published, lambda: f"the ConfigMap has {config(cluster)}, not {text}")
        api.until_logged("front-proxy settings replaced", times)

    loaded = reloads(cluster)
    with Load(cluster) as load:
        load.more(PLUGGED)
        use_ca(old_ca + new.cert.read_text())
        load.more(PLUGGED)
        # The key first: a pair that does not match is not used.
        made = pki.issue_client(folder, "front-proxy-client", [], ca=f"rotated-{number}-ca", file_name="made")
        replace(client.key, made.key.read_bytes())
        replace(client.cert, made.cert.read_bytes())
        until(lambda: reloads(cluster) > loaded, lambda: "kube-apiserver has loaded the certificate")
        load.more(PLUGGED)
        use_ca(new.cert.read_text())
        load.more(PLUGGED)
    assert load.failures == []
    # What was right is wrong now, at every replica.
    for address in ADDRESSES:
        old_files = (folder / "old.crt", folder / "old.key")
        for path, content in zip(old_files, old_pair, strict=True):
            path.write_bytes(content)
        assert not handshakes(address, *old_files)
        assert handshakes(address, made.cert, made.key)


def replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o600)
    new.replace(path)


def config(cluster: ControlPlane) -> str:
    """Return the front-proxy CA that the cluster publishes; empty while there is none."""
    done = cluster.run(KUBECTL, "get", *FRONT_PROXY_CONFIG, "--output=json", "--ignore-not-found")
    data = json.loads(done.stdout)["data"] if done.stdout else {}
    found = data.get("requestheader-client-ca-file", "")
    assert isinstance(found, str)
    return found


def reloads(cluster: ControlPlane) -> int:
    """Return how often kube-apiserver has loaded the certificate of its front proxy."""
    lines = (cluster.kubeconfig.parent / "apiserver.log").read_text(errors="replace").splitlines()
    return sum("Loaded a new cert/key pair" in line and "aggregator-proxy-cert" in line for line in lines)


def handshakes(address: str, cert: Path, key: Path) -> bool:
    """Return whether a replica accepts a client certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(cert, key)
    try:
        with urllib.request.urlopen(f"https://{address}:{PORT}/readyz", context=context, timeout=50):
            return True
    except OSError:
        return False
