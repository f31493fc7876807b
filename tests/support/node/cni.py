"""A scripted CNI plugin that records its calls, and plugin directories for one test.

The real plugins come from the lab's tools (``HOTNIC_TOOLS`` or ``.cache/tools``).
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.tools import default_root

_RECORDING = """#!/bin/sh
# Appends one line per call to $0.log (environment and traceparent) and stores its standard input.
n=$(ls "$0".stdin.* 2>/dev/null | wc -l)
cat > "$0.stdin.$n"
pwd > "$0.pwd"
echo "$CNI_COMMAND|$CNI_CONTAINERID|$CNI_NETNS|$CNI_IFNAME|$CNI_ARGS|$CNI_PATH|$TRACEPARENT" >> "$0.log"
[ -f "$0.stderr" ] && cat "$0.stderr" >&2
[ -f "$0.sleep.$CNI_COMMAND" ] && sleep "$(cat "$0.sleep.$CNI_COMMAND")"
while [ -f "$0.hold.$CNI_COMMAND" ]; do sleep 0.02; done
if [ -f "$0.fail.$CNI_COMMAND" ]; then cat "$0.fail.$CNI_COMMAND"; exit 1; fi
[ "$CNI_COMMAND" = ADD ] && cat "$0.result"
exit 0
"""


class RecordingPlugin:
    """A plugin that changes no link, prints the result that the test sets, and records its calls."""

    def __init__(self, folder: Path, name: str = "recording", result: dict[str, Any] | None = None) -> None:
        self.type = name
        self._path = folder / name
        self._path.write_text(_RECORDING)
        self._path.chmod(self._path.stat().st_mode | stat.S_IXUSR)
        self.set_result(result if result is not None else {"cniVersion": "1.0.0", "interfaces": [], "ips": []})

    def set_result(self, result: dict[str, Any] | str) -> None:
        """Set what ADD prints."""
        text = result if isinstance(result, str) else json.dumps(result)
        self._beside("result").write_text(text)

    def fail(self, command: str, code: int | None = None, msg: str = "scripted") -> None:
        """Let a command fail with an error document, or without one (``code=None``)."""
        self._beside(f"fail.{command}").write_text("" if code is None else json.dumps({"code": code, "msg": msg}))

    def fail_with(self, command: str, document: dict[str, Any]) -> None:
        """Let a command fail with exactly this error document."""
        self._beside(f"fail.{command}").write_text(json.dumps(document))

    def stop_failing(self, command: str) -> None:
        """Let a command succeed again."""
        self._beside(f"fail.{command}").unlink()

    def sleep(self, command: str, seconds: float) -> None:
        """Let a command take that long."""
        self._beside(f"sleep.{command}").write_text(str(seconds))

    @contextlib.contextmanager
    def holding(self, command: str) -> Iterator[None]:
        """Let a command that has begun end only after the block."""
        self._beside(f"hold.{command}").touch()
        try:
            yield
        finally:
            self._beside(f"hold.{command}").unlink()

    def write_stderr(self, text: str) -> None:
        """Let every command write this to standard error."""
        self._beside("stderr").write_text(text)

    @property
    def calls(self) -> list[dict[str, str]]:
        """The calls so far: ``command``, ``container``, ``netns``, ``ifname``, ``args``, ``path``, ``traceparent``."""
        log = self._beside("log")
        keys = ("command", "container", "netns", "ifname", "args", "path", "traceparent")
        lines = log.read_text().splitlines() if log.exists() else []
        return [dict(zip(keys, line.split("|"), strict=True)) for line in lines]

    @property
    def commands(self) -> list[str]:
        """``COMMAND ifname`` of every call."""
        return [f"{call['command']} {call['ifname']}".strip() for call in self.calls]

    @property
    def working_directory(self) -> str:
        """The working directory of the last call."""
        return self._beside("pwd").read_text().strip()

    def stdin(self, call: int) -> dict[str, Any]:
        """Return the standard input of a call."""
        document: dict[str, Any] = json.loads(self._beside(f"stdin.{call}").read_text())
        return document

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{suffix}")


def real_plugins(folder: Path, *names: str) -> Path:
    """Create a plugin directory with symbolic links to the real plugins of these names."""
    source = default_root() / "cni"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source / name} is missing: run `make setup`")
        os.symlink(source / name, folder / name)
    return folder


def bridge_config(folder: Path, *, name: str = "blue", bridge: str = "br-blue", **fields: Any) -> dict[str, Any]:
    """Return a real ``bridge`` network with ``host-local`` addresses from 10.55.0.0/24 and leases below ``folder``."""
    ipam = {"type": "host-local", "subnet": "10.55.0.0/24", "dataDir": str(folder / "leases")}
    return {"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": bridge, "ipam": ipam, **fields}


def leases(folder: Path, name: str = "blue") -> list[str]:
    """Return the addresses that ``host-local`` has leased."""
    found = folder / "leases" / name
    return sorted(p.name for p in found.iterdir() if p.name[0].isdigit()) if found.is_dir() else []
