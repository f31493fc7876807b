"""One plug and unplug around a block in which something fails: the result must be as if nothing had failed."""

import contextlib
from collections.abc import AsyncIterator

from lab.failpoints import points
from tests.support.lab.rig import Rig
from tests.support.lab.running import SAMPLE_VM

NIC = "blue"


@contextlib.asynccontextmanager
async def plugged_completely(rig: Rig) -> AsyncIterator[None]:
    """Check that the block plugs one NIC, that every process is ready then, and that the NIC can be unplugged."""
    before = await rig.wait_consistent({SAMPLE_VM: set()})
    yield
    after = await rig.wait_consistent({SAMPLE_VM: {NIC}})
    assert (after["veths"], after["leases"]) == (before["veths"] + 1, before["leases"] + 1)
    await rig.wait_ready()
    assert await rig.request(points.UNPLUG, SAMPLE_VM, NIC) == "accepted"
    after = await rig.wait_consistent({SAMPLE_VM: set()})
    assert (after["veths"], after["leases"]) == (before["veths"], before["leases"])


@contextlib.asynccontextmanager
async def plugging_around(rig: Rig, victim: str, signal: str) -> AsyncIterator[None]:
    """Plug a NIC and send a signal to a server in the middle: the block begins when it has the signal.

    Networks has attached the NIC then, and not written it to the pod.
    """
    point = "networks.delegate-add.after"
    rig.arm(point, victim=(await rig.component(victim))["pid"], signal=signal)
    async with plugged_completely(rig), rig.requesting(points.PLUG, SAMPLE_VM, NIC):
        await rig.wait_fired(point)
        yield


@contextlib.asynccontextmanager
async def plugging_without_handler(rig: Rig) -> AsyncIterator[None]:
    """Plug a NIC while the handler is stopped: the NIC is attached when the block begins, and in the guest after it."""
    async with plugged_completely(rig):
        await rig.send_signal("handler", "SIGSTOP")
        try:
            assert await rig.request(points.PLUG, SAMPLE_VM, NIC) == "accepted"
            await rig.wait_passed({"networks.publish-multus-attached.after"})
            yield
        finally:
            await rig.send_signal("handler", "SIGCONT")
