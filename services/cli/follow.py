"""Watches a VMI, its pods and, where it was changed, its VM, until an operation is over, or the time is.

The objects come through reflectors, so a dropped connection is mended while the user waits. What they mean is
:mod:`services.cli.progress`.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from schemas.kube import VirtualMachineInstance
from schemas.stages import Stage
from services.cli.progress import Progress
from services.common.kube.client import Kube
from services.common.kube.vmi_watch import watch_vmi
from services.common.logs import logger


async def follow(
    kube: Kube,
    vmi: VirtualMachineInstance,
    progress: Progress,
    *,
    with_vm: bool,
    timeout: float,
    reached: Callable[[Stage], None],
    last_failure: Callable[[str], None],
) -> None:
    """Return when ``progress`` has an outcome, or after ``timeout`` seconds.

    :param with_vm: look at the VM of the same name, too. :param reached: called for each stage, once.
    :param last_failure: called when the cluster cannot be watched, with why.
    """
    log = logger("cli", "critical")  # the state below tells the user all that the reflector would log

    def state(ok: bool, why: str) -> None:
        if not ok:
            last_failure(f"the cluster cannot be watched, trying again: {why}")

    with suppress(TimeoutError):
        async with (
            asyncio.timeout(timeout),
            watch_vmi(kube, vmi.metadata, with_vm=with_vm, log=log, on_state=state) as watched,
        ):
            await watched.synced()
            while progress.outcome is None:
                watched.changed.clear()
                for stage in progress.see(*watched.look()):
                    reached(stage)
                if progress.outcome is None:
                    await watched.changed.wait()
