"""`docker compose` on the checkout's docker-compose.yml, with a project name and images of the test's own."""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[3]
VM = "centos-stream9-1"


@dataclass(frozen=True)
class Compose:
    """One compose project.

    :ivar project: its name.
    :ivar images: variables of docker-compose.yml that select other images.
    """

    project: str
    images: Mapping[str, str]

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a verb."""
        return ["docker", "compose", "--project-name", self.project, "--project-directory", str(CHECKOUT), *arguments]

    def run(self, *arguments: str, timeout: float = 300, check: bool = True) -> str:
        """Run a verb and return its standard output.

        :raises AssertionError: it failed; the message contains its output.
        """
        done = subprocess.run(
            self.command(*arguments), env={**os.environ, **self.images}, text=True, capture_output=True, timeout=timeout
        )
        assert not check or done.returncode == 0, f"docker compose {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def hotnic(self, *arguments: str, timeout: float = 300) -> str:
        """Run a `hotnic` command in the container `cli`."""
        return self.run("exec", "-T", "cli", "hotnic", *arguments, timeout=timeout)

    def start_hotnic(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a `hotnic` command in the container `cli`."""
        return subprocess.Popen(
            self.command("exec", "-T", "cli", "hotnic", *arguments),
            env={**os.environ, **self.images},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def plug(self, interface: str) -> str:
        """Plug an interface into the sample VM and wait until the guest has it."""
        return self.hotnic("addinterface", VM, *plug_options(interface))

    def unplug(self, interface: str) -> str:
        """Unplug an interface of the sample VM and wait until it is gone."""
        return self.hotnic("removeinterface", VM, "--name", interface, "--wait", "--timeout", "120s")

    def status(self) -> dict[str, Any]:
        """Return the hot-plug status of the sample VM."""
        found: dict[str, Any] = json.loads(self.hotnic("status", VM, "-o", "json"))
        return found

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the administrator's kubeconfig, as the documentation says, and return its path."""
        path.touch(mode=0o600)
        path.write_text(self.run("exec", "-T", "cluster", "cat", "/var/lib/hotnic-lab/kubeconfig"))
        return path

    def services(self) -> dict[str, str]:
        """Return the health of every container: `healthy`, or its state where it has no healthcheck."""
        lines = self.run("ps", "--all", "--format", "json").splitlines()
        return {one["Service"]: one["Health"] or one["State"] for one in map(json.loads, lines)}

    def wait_healthy(self, *names: str, timeout: float = 240) -> None:
        """Return once the containers are healthy.

        :raises AssertionError: they are not within `timeout` seconds; the message contains their logs.
        """
        deadline = time.monotonic() + timeout
        while True:
            services = self.services()
            if all(services.get(name) == "healthy" for name in names):
                return
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not healthy: {services}\n{self.run('logs', '--tail', '20', *names, check=False)}"
                )
            time.sleep(0.2)


def plug_options(interface: str) -> list[str]:
    """Return the options that plug an interface on the sample network and wait for the guest."""
    return ["--name", interface, "--network-attachment-definition-name", "bridge-net", "--wait", "--timeout", "120s"]
