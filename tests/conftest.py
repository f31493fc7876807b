"""What every tier needs: no event loop before a test makes its own, and no deadline on generated examples."""

import asyncio
import os
import signal

import pytest
from hypothesis import settings

# An example that takes long says something about the machine, not about the code. CI repeats the same examples.
settings.register_profile("hotnic", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.register_profile("long", settings.get_profile("hotnic"), max_examples=5000)
settings.load_profile(os.environ.get("HOTNIC_HYPOTHESIS_PROFILE", "hotnic"))


def pytest_configure() -> None:
    # Otherwise pytest-asyncio asks for "the current loop" before its first test; Python 3.11 then makes one that
    # nobody closes, and the ResourceWarning, an error here, fails whatever test the collector happens to hit.
    asyncio.set_event_loop(None)
    # What a shell starts in the background ignores SIGINT, and so would every program that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a test needed a second try (in CI): it passed then, but it is a fault of the test or of hotnic."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"first try of {report.nodeid} failed")
        terminalreporter.line(report.longreprtext)
