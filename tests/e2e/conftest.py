"""Labs for all end-to-end tests: one with a pool of booted VMs, one whose guests are doubles and whose roles die."""

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.lab.layout import Guests
from tests.support import sampled
from tests.support.doctor import assert_world_agrees
from tests.support.inspector import Inspector
from tests.support.lab import Lab, running_lab, until
from tests.support.rig import Rig, rigged


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab; its logs and traces are kept, and named, when a test has failed.

    Whatever the tests have done in it, everything has to say the same in the end.
    """
    with kept_when_failed(request.session) as running:
        yield running


@pytest.fixture(scope="session")
def doubles(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab for what needs no guest's kernel; otherwise the same."""
    with kept_when_failed(request.session, "double") as running:
        yield running


@contextlib.contextmanager
def kept_when_failed(session: pytest.Session, guests: Guests = "qemu") -> Iterator[Lab]:
    """A lab, with what the docstring of :func:`lab` says."""
    directory = Path(tempfile.mkdtemp(prefix="hotnic-e2e-"))
    failed = True
    try:
        with running_lab(directory, guests=guests) as running:
            yield running
            if not session.testsfailed:
                assert_world_agrees(running)
                failed = False
    finally:
        if failed:
            print(f"\nlogs and traces of the lab: {directory}")
        else:
            shutil.rmtree(directory)


@pytest.fixture(scope="session")
def inspector_of_doubles(doubles: Lab) -> Iterator[Inspector]:
    """The doctor that stays inside the lab of doubles."""
    found = Inspector(doubles)
    yield found
    found.close()


@pytest.fixture
async def rig(doubles: Lab, inspector_of_doubles: Inspector) -> AsyncIterator[Rig]:
    """The lab of doubles, for a test that makes its processes die."""
    async with rigged(doubles, inspector_of_doubles) as made:
        yield made


@pytest.fixture(scope="session")
def inspector(lab: Lab) -> Iterator[Inspector]:
    """The doctor that stays inside the lab of real guests."""
    found = Inspector(lab)
    yield found
    found.close()


@pytest.fixture
async def real_rig(lab: Lab, inspector: Inspector) -> AsyncIterator[Rig]:
    """The lab of real guests, for the same."""
    async with rigged(lab, inspector) as made:
        yield made


@pytest.fixture
def vm(lab: Lab) -> str:
    """A running VM with a free slot, which is the test's."""
    return lab.vm_with_a_slot()


@pytest.fixture
def interface(lab: Lab) -> str:
    """An interface name that is the test's."""
    return lab.interface_name()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was run of each table, and how to run the same again."""
    for line in sampled.summary():
        terminalreporter.write_line(line)


@pytest.fixture
def own(lab: Lab, interface: str) -> Iterator[str]:
    """A VM of the test's own, which is gone after it; its guest is a double."""
    name = f"vm-{interface}"
    lab.boot(name, guest="double")
    yield name
    lab.kubectl("delete", "vm", name, "--ignore-not-found")
    until(lambda: lab.kubectl("get", "vmi,pods", "-o", "name").count(f"{name}-") == 0)
