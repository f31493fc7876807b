"""Watches a VMI, its pods and optionally its VM until an operation completes or a timeout ends.

Reflectors read the objects and reconnect when a connection breaks.
Next: :mod:`services.cli.operations.progress`, which derives the operation's progress from the objects.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from schemas.kubernetes.objects import VirtualMachineInstance
from schemas.stages import Stage
from services.cli.operations.progress import OperationProgress
from services.common.kube.cache.vmi_watch import watch_vmi
from services.common.kube.client import Kube
from services.common.telemetry.logs import logger


async def follow_operation(
    kube: Kube,
    vmi: VirtualMachineInstance,
    progress: OperationProgress,
    *,
    with_vm: bool,
    timeout: float,
    on_stage: Callable[[Stage], None],
    on_watch_error: Callable[[str], None],
) -> None:
    """Return when ``progress`` has an outcome, or after ``timeout`` seconds.

    :param with_vm: whether to watch the VM of the same name, too.
    :param on_stage: called once for each stage that is reached.
    :param on_watch_error: called with a message when a watch fails.
    """
    # The reflectors' log would repeat the messages of on_watch_error.
    log = logger("cli", "critical")

    def on_state(ok: bool, error: str) -> None:
        if not ok:
            on_watch_error(f"watch failed, retrying: {error}")

    with suppress(TimeoutError):
        async with (
            asyncio.timeout(timeout),
            watch_vmi(kube, vmi.metadata, with_vm=with_vm, log=log, on_state=on_state) as watched,
        ):
            await watched.wait_synced()
            while progress.outcome is None:
                # Cleared before the objects are read, so that a change during the read is not missed.
                watched.changed.clear()
                for stage in progress.observe(*watched.read()):
                    on_stage(stage)
                if progress.outcome is None:
                    await watched.changed.wait()
