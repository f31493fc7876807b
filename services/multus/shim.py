#!/usr/bin/python3 -IS
"""hotnic-multus: the CNI plugin that the container runtime executes; it hands every call to the daemon's socket.

One file for any Python from 3.9 on, standard library only and little of it, because it starts anew for every call:
HTTP is spoken by hand. It decides nothing; the daemon is services/multus/server.py. Source: multus-cni v4's shim.
"""

from __future__ import annotations

import binascii
import json
import os
import socket
import sys
import time

NAME = "hotnic-multus"
DEFAULT_SOCKET_DIR = "/run/multus"
SUPPORTED = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
SINCE = {"CHECK": (0, 4, 0), "STATUS": (1, 1, 0), "GC": (1, 1, 0)}
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")
READY_SECONDS = 60.0
READY_PAUSE = 0.1
CALL_SECONDS = 180.0
MAX_ANSWER = 16 * 1024 * 1024
LEVELS = {"panic": 0, "error": 1, "verbose": 2, "debug": 3}


class Failure(Exception):
    """The call failed; becomes the error document on standard output."""

    def __init__(self, code: int, msg: str, details: str | None = None) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class NotSent(Exception):
    """The daemon went between its health answer and the call: nothing has been asked of it."""


class Log:
    """Lines to standard error and to logFile, as the configuration's log keys say."""

    def __init__(self, config: dict) -> None:  # type: ignore[type-arg]
        self.level = LEVELS.get(str(config.get("logLevel") or "panic").lower(), 0)
        self.stderr = config.get("logToStderr") is not False
        self.path = config.get("logFile") or None

    def write(self, level: str, text: str, always: bool = False) -> None:
        if not always and LEVELS[level] > self.level:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"{stamp} [{level}] {NAME}: {text}\n"
        if self.stderr or always:
            sys.stderr.write(line)
        if self.path:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as exc:
                sys.stderr.write(f"{NAME}: cannot write {self.path}: {exc}\n")


def left(deadline: float) -> float:
    """Seconds until a deadline; TimeoutError when there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the daemon did not answer in time")
    return seconds


def http(path: str, method: str, target: str, body: bytes, deadline: float) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body of the answer."""
    head = f"{method} {target} HTTP/1.1\r\nHost: dummy\r\nConnection: close\r\n"
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    traceparent = os.environ.get("TRACEPARENT", "")
    if traceparent and traceparent.isprintable():
        head += f"traceparent: {traceparent}\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.settimeout(left(deadline))
        try:
            client.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise NotSent(f"{path}: {exc}") from exc
        client.sendall(head.encode("latin-1", "replace") + b"\r\n" + body)
        return answer(client, deadline)


def answer(client: socket.socket, deadline: float) -> tuple[int, bytes]:
    """Read an answer: by its Content-Length, in chunks, or up to the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = receive(client, deadline, len(data))
        if not piece:
            raise OSError("the daemon closed the connection without an answer")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ", 2)[1])
    fields = {}
    for line in lines[1:]:
        key, _, value = line.partition(":")
        fields[key.strip().lower()] = value.strip()
    chunked = fields.get("transfer-encoding", "").lower() == "chunked"
    length = -1 if chunked else int(fields.get("content-length", "-1"))
    while length < 0 or len(body) < length:
        piece = receive(client, deadline, len(body))
        if not piece:
            if length >= 0:
                raise OSError("the daemon's answer is cut short")
            break
        body += piece
    if chunked:
        return status, joined(body)
    return status, body if length < 0 else body[:length]


def receive(client: socket.socket, deadline: float, so_far: int) -> bytes:
    if so_far > MAX_ANSWER:
        raise OSError("the daemon's answer is too long")
    client.settimeout(left(deadline))
    return client.recv(65536)


def joined(data: bytes) -> bytes:
    """The content of a chunked body."""
    parts: list[bytes] = []
    while True:
        size, found, data = data.partition(b"\r\n")
        length = int(size.split(b";")[0], 16) if found else -1
        if length == 0:
            return b"".join(parts)
        if length < 0 or len(data) < length + 2:
            raise OSError("the daemon's answer is cut short")
        parts.append(data[:length])
        data = data[length + 2 :]


def unready(path: str, deadline: float) -> str:
    """Why the daemon does not answer its health question; empty when it does."""
    try:
        status, _ = http(path, "GET", "/healthz", b"", min(deadline, time.monotonic() + 5))
    except NotSent as exc:
        return str(exc)
    except (OSError, ValueError, IndexError) as exc:
        return f"{path}: {exc}"
    return "" if status == 200 else f"{path}: status {status}"


def wait_until_ready(path: str, deadline: float) -> None:
    limit = min(deadline, time.monotonic() + READY_SECONDS)
    while True:
        why = unready(path, limit)
        if not why:
            return
        if time.monotonic() + READY_PAUSE >= limit:
            raise Failure(11, f"the multus daemon is not ready after {READY_SECONDS:.0f} s ({why})")
        time.sleep(READY_PAUSE)


def call(command: str, raw: bytes, path: str, deadline: float) -> bytes:
    """Hand the call to the daemon and return its answer's body."""
    who = f"Cmd{command.title()} (shim)"
    environ = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    config = binascii.b2a_base64(raw, newline=False).decode("ascii")
    request = json.dumps({"env": environ, "config": config}).encode("utf-8")
    try:
        status, body = http(path, "POST", "/cni", request, deadline)
    except (OSError, ValueError, IndexError) as exc:
        raise Failure(11, f"{who}: the call to the multus daemon failed: {path}: {exc}") from exc
    if status == 200:
        return body
    text = body.decode("utf-8", "replace").strip()
    try:
        said = json.loads(text)
        failure = Failure(int(said["code"]), str(said["msg"]), said.get("details"))
    except (ValueError, KeyError, TypeError, AttributeError):
        failure = Failure(999, f"{who}: status {status}: {text}")
    raise failure


def down_convert(result: dict, version: str) -> dict:  # type: ignore[type-arg]
    """The newest version's result as a document of the configuration's version."""
    result["cniVersion"] = version
    if version != "1.1.0":
        for interface in result.get("interfaces") or ():
            for key in ("mtu", "socketPath", "pciID"):
                interface.pop(key, None)
        for route in result.get("routes") or ():
            for key in ("mtu", "advmss", "priority", "table", "scope"):
                route.pop(key, None)
    if version.startswith("0."):
        for ip in result.get("ips") or ():
            ip["version"] = "6" if ":" in ip["address"] else "4"
    return result


def run(command: str, raw: bytes, path: str, log: Log) -> bytes:
    """Do the call; what it answers is empty for every command but ADD."""
    deadline = time.monotonic() + CALL_SECONDS
    while command != "DEL":
        wait_until_ready(path, deadline)
        log.write("verbose", f"{command} for container {os.environ.get('CNI_CONTAINERID', '')}")
        try:
            return call(command, raw, path, deadline)
        except NotSent as exc:
            log.write("verbose", f"the daemon is being restarted: {exc}")
            time.sleep(READY_PAUSE)
    # A pod must be able to go while the daemon is away or fails: its record lets the daemon undo this later.
    why = unready(path, deadline)
    if why:
        log.write("error", f"DEL is left to the daemon's next start: it is not there ({why})", always=True)
        return b""
    try:
        return call(command, raw, path, deadline)
    except NotSent as exc:
        log.write("error", f"DEL is left to the daemon's next start: it has just gone ({exc})", always=True)
        return b""
    except Failure as failure:
        log.write("error", f"DEL failed; the daemon keeps its record and tries again: {failure.msg}", always=True)
        return b""


def checked(command: str, raw: bytes) -> tuple[dict, str]:  # type: ignore[type-arg]
    """The configuration and its version, if that version knows the command."""
    try:
        config = json.loads(raw)
        version = str(config.get("cniVersion") or "0.3.1")
    except (ValueError, AttributeError) as exc:
        raise Failure(6, f"the network configuration is not a JSON object: {exc}") from exc
    if version not in SUPPORTED:
        raise Failure(1, f"CNI version {version} is not supported; {', '.join(SUPPORTED)} are")
    since = SINCE.get(command, (0,))
    if tuple(int(part) for part in version.split(".")) < since:
        needed = ".".join(str(part) for part in since)
        raise Failure(1, f"config version {version} does not allow {command}; {needed} does")
    return config, version


def answered() -> str:
    """What goes to standard output."""
    command = os.environ.get("CNI_COMMAND", "")
    if not command:
        sys.stderr.write(f"CNI plugin {NAME}: hands CNI calls to the hotnic multus daemon\n")
        raise Failure(4, "required env variables [CNI_COMMAND] missing")
    if command == "VERSION":
        return json.dumps({"cniVersion": SUPPORTED[-1], "supportedVersions": SUPPORTED})
    if command not in COMMANDS:
        raise Failure(4, f"unknown CNI_COMMAND: {command}")
    raw = sys.stdin.buffer.read()
    config, version = checked(command, raw)
    path = os.path.join(str(config.get("daemonSocketDir") or DEFAULT_SOCKET_DIR), "multus.sock")
    body = run(command, raw, path, Log(config))
    if command != "ADD":
        return ""
    try:
        return json.dumps(down_convert(json.loads(body)["Result"], version))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Failure(999, f"CmdAdd (shim): the daemon's answer is no result: {exc!r}") from exc


def main() -> int:
    try:
        sys.stdout.write(answered())
    except Failure as failure:
        error = {"cniVersion": SUPPORTED[-1], "code": failure.code, "msg": failure.msg}
        if failure.details:
            error["details"] = failure.details
        sys.stdout.write(json.dumps(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
