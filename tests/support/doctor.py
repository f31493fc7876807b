"""The doctor inside a lab, for tests: after whatever a test has done, everything has to say the same in the end."""

import json
import sys
import time
from typing import Any

from services.lab.guest.qemu import LAB_QMP_SOCKET
from services.lab.layout import INSIDE_RUN, NODE_NAME
from tests.support.lab import Lab

MONITOR = INSIDE_RUN / "guests" / "{uid}" / LAB_QMP_SOCKET
"""A guest's second monitor, which the handler leaves alone: only the lab's guests have one."""


def doctor(lab: Lab, *arguments: str) -> dict[str, Any]:
    """What the doctor says on the lab's node, where it can look at everything."""
    command = [sys.executable, "-m", "services.cli", "doctor", "--node", NODE_NAME, "-o", "json", *arguments]
    done = lab.hotnic("lab", "exec", "--", *command, "--node-paths", f"qmp-socket={MONITOR}")
    assert done.returncode in (0, 1), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if report["disagreements"] else 0)
    return report


def codes(report: dict[str, Any], subject: str = "") -> set[str]:
    """The codes of what disagrees, about a subject or what belongs to it."""
    return {one["code"] for one in report["disagreements"] if one["subject"].startswith(subject)}


def assert_world_agrees(lab: Lab, timeout: float = 30.0) -> dict[str, Any]:
    """Wait until nothing is under way; then nothing may disagree, and nothing may have been out of sight."""
    deadline = time.monotonic() + timeout
    while True:
        report = doctor(lab, "-A")
        if not report["inProgress"] and not report["disagreements"] and not report["notSeen"]:
            return report
        assert time.monotonic() < deadline, json.dumps(report, indent=2)
        time.sleep(0.2)
