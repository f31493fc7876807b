"""docs/admission.md prints the table that the tests of the admission policies send to an API server."""

import subprocess
import sys
from pathlib import Path

from tests.support.kube.admission.objects import COLUMNS, NODE, identities
from tests.support.kube.admission.table import rows

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_prints_the_table() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate" / "admission_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_rows_have_names_of_their_own_and_known_columns() -> None:
    names = [row.id for row in rows()]
    assert len(names) == len(set(names))
    for row in rows():
        assert row.yes | row.own <= set(COLUMNS), row.id
        assert not row.yes & row.own, row.id


def test_own_node_means_neither_another_node_nor_none() -> None:
    [row] = [row for row in rows() if row.id == "Launcher pod: add `hotnic.io/attached.…`"]
    allowed = {identity.name for identity in identities() if row.allows(identity)}
    assert allowed == {f"networks of {NODE}", "trusted user", "member of a trusted group", "KubeVirt"}
