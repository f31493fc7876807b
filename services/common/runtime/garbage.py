"""Collects cyclic garbage of a process with a large cache in short passes, however large the cache is.

Python starts a pass once many more containers were created than freed. A watch event frees about as many as it creates,
so those of thousands of events wait for one pass, which then takes place in the middle of a plug (ADR 41). Here a pass
over what is new is made every second, and what it leaves is frozen: no later pass looks at it. Garbage among that is
found every ten minutes, by a pass over everything.
Next: :mod:`services.controller.__main__`, which runs this.
"""

import asyncio
import gc

YOUNG_INTERVAL = 1.0
"""Seconds between two passes over what is new."""
FULL_INTERVAL = 600.0
"""Seconds between two passes over everything, which take some tenths of a second with 10,000 VMs."""


async def collect_garbage(*, young: float = YOUNG_INTERVAL, full: float = FULL_INTERVAL) -> None:
    """Collect cyclic garbage until cancelled.

    :param young: seconds between two passes over what is new.
    :param full: seconds between two passes over everything.
    """
    loop = asyncio.get_running_loop()
    try:
        while True:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            end = loop.time() + full
            while loop.time() < end:
                await asyncio.sleep(young)
                # All generations, because Python's own passes move garbage on; none of what is frozen.
                gc.collect()
                gc.freeze()
    finally:
        gc.unfreeze()
