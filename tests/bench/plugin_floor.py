"""The time of the CNI plugin alone: ADD and DEL of bridge with host-local, in a network namespace of its own.

It runs in the namespaces of a lab. Its arguments are the number of calls one at a time, and of those at once. It prints
milliseconds as JSON.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PLUGIN = Path("/opt/cni/bin/bridge")
NAMESPACE = "hotnic-floor"
ROUNDS = 10
"""Of the calls at once."""
CONFIG = json.dumps(
    {
        "cniVersion": "1.0.0",
        "name": NAMESPACE,
        "type": "bridge",
        "bridge": "floor0",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.78.0.0/24"}]]},
    }
)


def main(count: int, at_once: int) -> int:
    """Measure `count` pairs of calls one at a time, and as many that start at once; remove what they leave."""
    times: dict[str, list[float]] = {}
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        for number in range(count):
            for command in ("ADD", "DEL"):
                times.setdefault(command, []).append(call(command, f"net{number}"))
        with ThreadPoolExecutor(at_once) as threads:
            for _ in range(ROUNDS):
                for command in ("ADD", "DEL"):
                    calls = [threads.submit(call, command, f"net{number}") for number in range(at_once)]
                    found = times.setdefault(f"{at_once} {command} at once", [])
                    found += [done.result() for done in calls]
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=True)
        subprocess.run(["ip", "link", "del", "floor0"], check=True)
    sys.stdout.write(json.dumps(times) + "\n")
    return 0


def call(command: str, interface: str) -> float:
    """Run one command of the plugin; return the milliseconds that it took."""
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": NAMESPACE,
        "CNI_NETNS": f"/run/netns/{NAMESPACE}",
        "CNI_IFNAME": interface,
        "CNI_PATH": str(PLUGIN.parent),
    }
    began = time.monotonic()
    subprocess.run([PLUGIN], input=CONFIG, text=True, env=environment, stdout=subprocess.DEVNULL, check=True)
    return (time.monotonic() - began) * 1000


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
