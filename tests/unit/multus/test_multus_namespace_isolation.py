"""What a pod may choose: networks by their namespace, whichever way it names them, and the plugins that they name."""

from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest

from schemas import cni
from schemas.kubernetes.networks import DEFAULT_NETWORK, NETWORKS
from schemas.kubernetes.objects import ObjectMeta, Pod
from services.common.kube.client import Kube
from services.multus.cni.call import CniCall
from services.multus.cni.conflist import parse
from services.multus.cni.errors import CniError
from services.multus.config.settings import Settings, read_config
from services.multus.observe import CallObserver
from services.multus.pod.reader import PodReader


def observer(folder: Path) -> CallObserver:
    """Return the observer of a daemon with isolation; it reads nothing here."""
    file = folder / "daemon-config.json"
    file.write_text('{"namespaceIsolation": true, "globalNamespaces": "shared", "multusNamespace": "system"}')
    config, _ = read_config(Settings(multus_config=str(file), plugin_types="bridge, host-local"))
    return CallObserver(cast("Kube", None), config, cast("PodReader", None))


def pod(**annotations: str) -> Pod:
    return Pod(metadata=ObjectMeta(name="p", namespace="own", annotations=annotations))


@pytest.mark.parametrize(
    ("annotation", "network", "refused"),
    [
        ("own/blue@net1", None, ""),
        ("blue", None, ""),
        ("shared/blue@net1", None, ""),
        ("other/blue@net1", None, "may not use networks of namespace other"),
        ("other/blue", None, "may not use networks of namespace other"),
        # The element is gone since the networks controller has read it.
        ("", None, "no element of annotation"),
        ("own/blue@net7", None, "no element of annotation"),
        ("[", None, "annotation"),
        # hotnic's networks says which network it attaches; that decides.
        ("", ("own", "blue"), ""),
        ("own/blue@net1", ("other", "blue"), "may not use networks of namespace other"),
    ],
)
def test_a_hot_plug_without_a_proof_is_refused(
    tmp_path: Path, annotation: str, network: tuple[str, str] | None, refused: str
) -> None:
    call = CniCall(cni.CniCommand.ADD, b"{}", ifname="net1", network=network)
    if not refused:
        observer(tmp_path).check_isolation(call, pod(**{NETWORKS: annotation}))
        return
    with pytest.raises(CniError, match=refused) as caught:
        observer(tmp_path).check_isolation(call, pod(**{NETWORKS: annotation}))
    assert caught.value.code == cni.CniErrorCode.INVALID_CONFIG


@pytest.mark.parametrize(("chosen", "namespace"), [("other/blue", "other"), ("blue", "system")])
async def test_the_annotation_of_the_default_network_is_isolated_too(
    tmp_path: Path, chosen: str, namespace: str
) -> None:
    call = CniCall(cni.CniCommand.ADD, b"{}")
    with pytest.raises(CniError, match=f"pod own/p may not use networks of namespace {namespace}"):
        await observer(tmp_path).list_desired(call, pod(**{DEFAULT_NETWORK: chosen}))


@pytest.mark.parametrize(("ipam", "refused"), [("host-local", False), ("dhcp", True), ("multus", True)])
def test_plugins_that_the_operator_does_not_list_are_refused(tmp_path: Path, ipam: str, refused: bool) -> None:
    network = parse(f'{{"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{{"type":"{ipam}"}}}}')
    message = f"network own/blue: plugin type {ipam} is not allowed"
    with pytest.raises(CniError, match=message) if refused else nullcontext():
        observer(tmp_path).check_plugins(network, "own/blue")


def test_paths_that_are_none_of_a_networks_are_refused(tmp_path: Path) -> None:
    network = parse(
        '{"cniVersion":"1.0.0","name":"multus.sock","type":"bridge",'
        '"ipam":{"type":"host-local","dataDir":"/run/multus"}}'
    )
    with pytest.raises(CniError, match=r"network own/blue: ipam\.dataDir '/run/multus' is not allowed in a") as caught:
        observer(tmp_path).check_plugins(network, "own/blue")
    assert caught.value.code == cni.CniErrorCode.INVALID_CONFIG
