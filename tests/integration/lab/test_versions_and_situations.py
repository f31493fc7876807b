"""Every row of the table of situations, beside each version of the played KubeVirt."""

import asyncio
from itertools import groupby
from pathlib import Path

import pytest

from lab.kubevirt.player import PlayOptions
from tests.integration.lab.situations import SITUATIONS, VERSIONS
from tests.support.bus.memory import MemoryBus
from tests.support.lab.cells import Cell, Situation, create_common_objects, set_up
from tests.support.lab.kubevirt import played_cluster
from tests.support.lab.observing import observing_controller
from tests.support.sampled import sample
from tests.support.telemetry.spans import recording_telemetry

AT_ONCE = 4
"""How many rows run at once."""
ROWS = 7
"""How many rows of a version `make test` runs."""


def rows_of(version: str) -> list[Situation]:
    """Return the rows of a version, those with the same settings of the cluster beside each other."""
    order = VERSIONS.index
    found = [row for row in SITUATIONS if order(row.versions[0]) <= order(version) <= order(row.versions[1])]
    return sorted(found, key=lambda row: row.cluster)


@pytest.mark.parametrize("version", sample("versions with situations", VERSIONS, 1))
async def test_user_reads_what_the_table_says(version: str, tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry("controller")
    failures: list[str] = []
    # A VM is migrated or evicted as soon as its row lets go of that.
    options = PlayOptions(version, grace=0.0, update_delay=0.0, restart_delay=0.0)
    async with (
        played_cluster(tmp_path, options) as cluster,
        observing_controller(cluster.kubeconfig, telemetry) as controller,
    ):
        await create_common_objects(cluster)
        bus, limit = MemoryBus(role="api", telemetry=telemetry), asyncio.Semaphore(AT_ONCE)
        cells = [
            Cell(cluster, controller, bus, row, number)
            for number, row in enumerate(sample(f"situations beside {version}", rows_of(version), ROWS))
        ]
        for _, group in groupby(cells, key=lambda cell: cell.row.cluster):
            together = list(group)
            await set_up(cluster, controller, together[0].row)
            ran = await asyncio.gather(*(cell.run(limit) for cell in together), return_exceptions=True)
            failures += [f"{cell.row.name}: {found!r}" for cell, found in zip(together, ran, strict=True) if found]
    assert not failures, "\n".join(failures)


def test_every_row_is_told_apart_and_every_situation_has_every_version() -> None:
    for version in VERSIONS:
        told = [(row.name, row.cluster) for row in rows_of(version)]
        assert len(set(told)) == len(told)
