"""Configuration of all tiers: hypothesis profiles, and no event loop before a test creates its own."""

import asyncio
import os
import signal

import pytest
from hypothesis import settings

# No deadline: a slow example depends on the machine, not on the code. CI repeats the same examples.
settings.register_profile("hotnic", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.register_profile("long", settings.get_profile("hotnic"), max_examples=5000)
settings.load_profile(os.environ.get("HOTNIC_HYPOTHESIS_PROFILE", "hotnic"))


def pytest_configure() -> None:
    # Without this, pytest-asyncio gets "the current loop" before its first test. Python 3.11 then creates one that is
    # never closed, and its ResourceWarning, an error here, fails whichever test the garbage collector interrupts.
    asyncio.set_event_loop(None)
    # A process that a shell starts in the background ignores SIGINT, and so would every program that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a test needed a rerun in CI: it passed then, but the test or hotnic is faulty."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"first run of {report.nodeid} failed")
        terminalreporter.line(report.longreprtext)
