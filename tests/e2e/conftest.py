"""The labs of all end-to-end tests: one with real guests, and one with guest doubles for tests that kill roles."""

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lab.layout import GuestKind
from tests.support import sampled
from tests.support.lab.doctor import assert_no_findings
from tests.support.lab.inspector import Inspector
from tests.support.lab.rig import Rig, rigged
from tests.support.lab.rights import assert_rights_suffice
from tests.support.lab.running import Lab, on_kubernetes, running_lab, wait_until

# What the lab's own API server has not: etcd, certificates that are read again. And what it accepts of a hostile
# tenant, while Kubernetes refuses it.
collect_ignore = ["test_hostile_neighbour.py"] if on_kubernetes() else ["kubernetes"]


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab with real guests, shared by all tests of the session."""
    with lab_for_session(request.session) as running:
        yield running


@pytest.fixture(scope="session")
def doubles(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab with guest doubles, for tests that need no guest kernel."""
    with lab_for_session(request.session, "double") as running:
        yield running


@contextlib.contextmanager
def lab_for_session(session: pytest.Session, guests: GuestKind = "qemu") -> Iterator[Lab]:
    """Start a lab, and at the end check that the doctor has no findings and that nothing was forbidden to a role.

    The lab's directory with logs and traces is not removed when a test has failed.
    """
    directory = Path(tempfile.mkdtemp(prefix="hotnic-e2e-"))
    failed = True
    try:
        with running_lab(directory, guests=guests, failpoints=True) as running:
            yield running
            if not session.testsfailed:
                assert_no_findings(running)
                if on_kubernetes():
                    assert_rights_suffice(running)
                failed = False
    finally:
        if failed:
            print(f"\nlogs and traces of the lab: {directory}")
        else:
            shutil.rmtree(directory)


@pytest.fixture(scope="session")
def inspector_of_doubles(doubles: Lab) -> Iterator[Inspector]:
    """The inspector of the lab with guest doubles."""
    found = Inspector(doubles)
    yield found
    found.close()


@pytest.fixture
async def rig(doubles: Lab, inspector_of_doubles: Inspector) -> AsyncIterator[Rig]:
    """A rig on the lab with guest doubles."""
    async with rigged(doubles, inspector_of_doubles) as made:
        yield made


@pytest.fixture(scope="session")
def inspector(lab: Lab) -> Iterator[Inspector]:
    """The inspector of the lab with real guests."""
    found = Inspector(lab)
    yield found
    found.close()


@pytest.fixture
async def real_rig(lab: Lab, inspector: Inspector) -> AsyncIterator[Rig]:
    """A rig on the lab with real guests."""
    async with rigged(lab, inspector) as made:
        yield made


@pytest.fixture
def vm(lab: Lab) -> str:
    """A running VM with a free slot that is reserved for the test."""
    return lab.take_slot()


@pytest.fixture
def interface(lab: Lab) -> str:
    """An interface name that no other test uses."""
    return lab.interface_name()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how much of each sampled table was run, and how to repeat the sample."""
    for line in sampled.summary():
        terminalreporter.write_line(line)


@pytest.fixture
def own(lab: Lab, interface: str) -> Iterator[str]:
    """A VM with a guest double for one test, which is deleted after it."""
    name = f"vm-{interface}"
    lab.boot(name, guest="double")
    yield name
    lab.kubectl("delete", "vm", name, "--ignore-not-found")
    wait_until(lambda: lab.kubectl("get", "vmi,pods", "-o", "name").count(f"{name}-") == 0)
