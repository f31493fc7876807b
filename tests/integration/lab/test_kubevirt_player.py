"""The played KubeVirt leaves the objects that real KubeVirt left after the same actions of a user."""

from pathlib import Path

from lab.kubevirt.player import PlayOptions
from tests.support.lab.kubevirt import played_cluster, vm_without

NEW = PlayOptions("1.9")


async def test_plug_by_an_edit_of_the_template(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, NEW) as cluster:
        await cluster.start(vm_without("v1.9.0-a-plugged", "blue"))
        await cluster.plug("va", "blue", "net1")
        await cluster.reaches("v1.9.0-a-plugged", "va", "pod")


async def test_unplug_while_the_guest_holds_on_and_to_its_end(tmp_path: Path) -> None:
    async with played_cluster(tmp_path, NEW) as cluster:
        await cluster.start(vm_without("v1.9.0-c-unplug-guest-holds", "green", "blue"))
        await cluster.plug("va", "green", "net2")
        await cluster.plug("va", "blue", "net1")
        await cluster.has_tokens("va", "blue", "domain, guest-agent, multus-status")
        cluster.pace.hold("detach", "blue")
        await cluster.set_state("va", "blue")
        await cluster.reaches("v1.9.0-c-unplug-guest-holds", "va", "pod")
        cluster.pace.release("detach", "blue")
        await cluster.until(lambda: "blue" not in str(cluster.find("virtualmachines", "va")["spec"]))
        assert cluster.entry("va", "blue") == {}
