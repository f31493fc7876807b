"""Runs ``hotnic doctor`` inside a lab: at the end of every test the lab must have no findings."""

import json
import sys
import time
from typing import Any

from lab.guest.qemu import LAB_QMP_SOCKET
from lab.layout import INSIDE_RUN, NODE_NAME
from tests.support.lab.running import Lab

MONITOR = INSIDE_RUN / "guests" / "{uid}" / LAB_QMP_SOCKET
"""A second QMP socket of the guest, which only the lab's guests have: the handler is connected to the first one."""


def run_doctor(lab: Lab, *arguments: str, node: str = NODE_NAME) -> dict[str, Any]:
    """Run the doctor on a node of the lab, where all its parts are visible, and return its report."""
    code, report = _run(lab, *arguments, node=node)
    assert code == (1 if report["findings"] else 0)
    return report


def run_fix(lab: Lab, *arguments: str) -> tuple[int, list[tuple[str, str]]]:
    """Run the doctor with ``--fix`` on the lab's node; return its exit code, and outcome and text of each change."""
    code, document = _run(lab, "--fix", *arguments)
    return code, [(made["outcome"], f"{made['description']}: {made['message']}") for made in document["changes"]]


def _run(lab: Lab, *arguments: str, node: str = NODE_NAME) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "services.cli", "doctor", "--node", node, "-o", "json", *arguments]
    done = lab.hotnic("lab", "exec", "--node", node, "--", *command, "--node-paths", f"qmp-socket={MONITOR}")
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def codes(report: dict[str, Any], subject: str = "") -> set[str]:
    """Return the codes of the findings about a subject and its parts."""
    return {one["code"] for one in report["findings"] if one["subject"].startswith(subject)}


def assert_no_findings(lab: Lab, timeout: float = 45.0) -> dict[str, Any]:
    """Wait until the report has no operations in progress, no findings and no unchecked parts, and return it."""
    deadline = time.monotonic() + timeout
    while True:
        report = run_doctor(lab, "-A")
        if not report["inProgress"] and not report["findings"] and not report["notChecked"]:
            return report
        assert time.monotonic() < deadline, json.dumps(report, indent=2)
        time.sleep(0.2)
