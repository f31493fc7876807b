#!/usr/bin/python3 -IS
"""hotnic-multus: the CNI plugin that the container runtime executes. It passes every call to the daemon's socket.

The file is self-contained: any Python from 3.9 on, and few modules of the standard library, because it starts anew for
every call and start-up time counts. For the same reason it implements HTTP itself. It decides nothing; the daemon is
services/multus/server.py. Source: multus-cni v4's shim.
"""

from __future__ import annotations

# No http.client: its import would add 15 ms to the 20 to 30 ms of a call.
import binascii
import json
import os
import socket
import sys
import time

NAME = "hotnic-multus"
DEFAULT_SOCKET_DIR = "/run/multus"
SUPPORTED = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# The first configuration version that has the command (CNI specification).
SINCE = {"CHECK": (0, 4, 0), "STATUS": (1, 1, 0), "GC": (1, 1, 0)}
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")
# As upstream's shim: 60 s in all, with a check every 0.1 s.
READY_SECONDS = 60.0
READY_PAUSE = 0.1
CALL_SECONDS = 180.0
MAX_RESPONSE = 16 * 1024 * 1024
# For a node that was away while hotnic was uninstalled. Only the runtime and the daemon know the file's directory.
REMOVED = (
    "if hotnic was removed from this cluster, delete 00-multus.conf from the container runtime's CNI configuration "
    "directory (usually /etc/cni/net.d) of this node"
)
# The daemon's environment of a plugin. The shim as a plugin of a network would wait for the call that has started it.
PLUGIN_MARK = "HOTNIC_MULTUS_PLUGIN"
MAX_RECORD = 4096
LEVELS = {"panic": 0, "error": 1, "verbose": 2, "debug": 3}


class ShimError(Exception):
    """A failed call; it becomes the error document on standard output."""

    def __init__(self, code: int, msg: str, details: str | None = None) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class NotSent(Exception):
    """The daemon ended between the health check and the call, so it has not received the call."""


class ShimLog:
    """A log on standard error and in logFile, as the file of log settings selects that the daemon has written.

    The file is beside the shim. The configuration on standard input may be that of a network, whose author must not
    choose a file that root writes.
    """

    def __init__(self) -> None:
        settings = read_log_settings(os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), NAME + ".json"))
        # As upstream's shim: level panic, and standard error on.
        self.level = LEVELS.get(str(settings.get("logLevel") or "panic").lower(), 0)
        self.stderr = settings.get("logToStderr") is not False
        self.path = settings.get("logFile") or None

    def write(self, level: str, text: str, always: bool = False) -> None:
        """Write a line if its level is enabled, or always."""
        if not always and LEVELS[level] > self.level:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # One record is one line of printable characters: parts of the text are from the network's author.
        escaped = text[:MAX_RECORD].encode("unicode_escape").decode("ascii")
        line = f"{stamp} [{level}] {NAME}: {escaped}\n"
        if self.stderr or always:
            sys.stderr.write(line)
        if self.path:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as exc:
                sys.stderr.write(f"{NAME}: cannot write {self.path}: {exc}\n")


def read_log_settings(path: str) -> dict:  # type: ignore[type-arg]
    """Return the log settings; none without the file."""
    try:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def seconds_left(deadline: float) -> float:
    """Return the seconds until a deadline; raise TimeoutError when it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the daemon did not answer in time")
    return seconds


def http(path: str, method: str, target: str, body: bytes, deadline: float) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return the response's status and body."""
    head = f"{method} {target} HTTP/1.1\r\nHost: dummy\r\nConnection: close\r\n"
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    traceparent = os.environ.get("TRACEPARENT", "")
    # A line break in the variable would add further headers.
    if traceparent and traceparent.isprintable():
        head += f"traceparent: {traceparent}\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.settimeout(seconds_left(deadline))
        try:
            client.connect(path)
        # Only these prove that the daemon has not received the call; after any other error a plugin may have run. The
        # last one means that too many calls wait at the socket.
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as exc:
            raise NotSent(f"{path}: {exc}") from exc
        client.sendall(head.encode("latin-1", "replace") + b"\r\n" + body)
        return read_response(client, deadline)


def read_response(client: socket.socket, deadline: float) -> tuple[int, bytes]:
    """Read a response: by its Content-Length, in chunks, or until the connection ends."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = receive(client, deadline, len(data))
        if not piece:
            raise OSError("the daemon closed the connection without a response")
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
                raise OSError("the daemon's response is incomplete")
            break
        body += piece
    if chunked:
        return status, join_chunks(body)
    return status, body if length < 0 else body[:length]


def receive(client: socket.socket, deadline: float, so_far: int) -> bytes:
    """Receive the next bytes; the response may not exceed MAX_RESPONSE."""
    if so_far > MAX_RESPONSE:
        raise OSError("the daemon's response is too long")
    client.settimeout(seconds_left(deadline))
    return client.recv(65536)


def join_chunks(data: bytes) -> bytes:
    """Return the content of a chunked body."""
    parts: list[bytes] = []
    while True:
        size, found, data = data.partition(b"\r\n")
        length = int(size.split(b";")[0], 16) if found else -1
        if length == 0:
            return b"".join(parts)
        if length < 0 or len(data) < length + 2:
            raise OSError("the daemon's response is incomplete")
        parts.append(data[:length])
        data = data[length + 2 :]


def probe(path: str, deadline: float) -> str:
    """Check the daemon's health; return why it is not ready, or an empty string."""
    try:
        status, _ = http(path, "GET", "/healthz", b"", min(deadline, time.monotonic() + 5))
    except NotSent as exc:
        return str(exc)
    except (OSError, ValueError, IndexError) as exc:
        return f"{path}: {exc}"
    return "" if status == 200 else f"{path}: status {status}"


def wait_until_ready(path: str, deadline: float) -> None:
    """Wait until the daemon is ready; raise ShimError after READY_SECONDS."""
    limit = min(deadline, time.monotonic() + READY_SECONDS)
    while True:
        reason = probe(path, limit)
        if not reason:
            return
        if time.monotonic() + READY_PAUSE >= limit:
            raise ShimError(11, f"the multus daemon is not ready after {READY_SECONDS:.0f} s ({reason}); {REMOVED}")
        time.sleep(READY_PAUSE)


def call(command: str, raw: bytes, path: str, deadline: float) -> bytes:
    """Send the call to the daemon and return the response's body."""
    # The prefix of upstream's shim.
    prefix = f"Cmd{command.title()} (shim)"
    # Upstream's shim sends its whole environment, of which the daemon reads these variables only.
    environ = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    config = binascii.b2a_base64(raw, newline=False).decode("ascii")
    request = json.dumps({"env": environ, "config": config}).encode("utf-8")
    try:
        status, body = http(path, "POST", "/cni", request, deadline)
    except (OSError, ValueError, IndexError) as exc:
        raise ShimError(11, f"{prefix}: the call to the multus daemon failed: {path}: {exc}") from exc
    if status == 200:
        return body
    text = body.decode("utf-8", "replace").strip()
    try:
        document = json.loads(text)
        error = ShimError(int(document["code"]), str(document["msg"]), document.get("details"))
    except (ValueError, KeyError, TypeError, AttributeError):
        error = ShimError(999, f"{prefix}: status {status}: {text}")
    raise error


def down_convert(result: dict, version: str) -> dict:  # type: ignore[type-arg]
    """Convert the newest version's result to the configuration's version."""
    result["cniVersion"] = version
    # CNI 1.1.0 added these fields; older runtimes do not know them.
    if version != "1.1.0":
        for interface in result.get("interfaces") or ():
            for key in ("mtu", "socketPath", "pciID"):
                interface.pop(key, None)
        for route in result.get("routes") or ():
            for key in ("mtu", "advmss", "priority", "table", "scope"):
                route.pop(key, None)
    # CNI 1.0.0 removed `version`.
    if version.startswith("0."):
        for ip in result.get("ips") or ():
            ip["version"] = "6" if ":" in ip["address"] else "4"
    return result


def run(command: str, raw: bytes, path: str, log: ShimLog) -> bytes:
    """Carry out the call; return the response's body, which is empty for every command but ADD."""
    deadline = time.monotonic() + CALL_SECONDS
    while command != "DEL":
        wait_until_ready(path, deadline)
        log.write("verbose", f"{command} for container {os.environ.get('CNI_CONTAINERID', '')}")
        try:
            return call(command, raw, path, deadline)
        # The daemon stopped between the health check and the call (multus-cni#1525), so the call is sent again.
        except NotSent as exc:
            log.write("verbose", f"the daemon is restarting: {exc}")
            time.sleep(READY_PAUSE)
    # DEL always succeeds, so that a pod can be deleted without a daemon. The daemon's sweep deletes what is left,
    # from its record.
    reason = probe(path, deadline)
    if reason:
        log.write("error", f"DEL is left to the daemon's next start: it is not running ({reason})", always=True)
        return b""
    try:
        return call(command, raw, path, deadline)
    except NotSent as exc:
        log.write("error", f"DEL is left to the daemon's next start: it has just stopped ({exc})", always=True)
        return b""
    except ShimError as error:
        log.write("error", f"DEL failed; the daemon keeps its record and retries: {error.msg}", always=True)
        return b""


def check_config(command: str, raw: bytes) -> tuple[dict, str]:  # type: ignore[type-arg]
    """Return the configuration and its version; raise ShimError if the version does not have the command."""
    try:
        config = json.loads(raw)
        version = str(config.get("cniVersion") or "0.3.1")
    except (ValueError, AttributeError) as exc:
        raise ShimError(6, f"the network configuration is not a JSON object: {exc}") from exc
    if version not in SUPPORTED:
        raise ShimError(1, f"CNI version {version} is not supported; {', '.join(SUPPORTED)} are")
    since = SINCE.get(command, (0,))
    if tuple(int(part) for part in version.split(".")) < since:
        needed = ".".join(str(part) for part in since)
        raise ShimError(1, f"config version {version} does not allow {command}; {needed} does")
    return config, version


def handle_call() -> str:
    """Carry out the call that the environment describes; return the text for standard output."""
    command = os.environ.get("CNI_COMMAND", "")
    if not command:
        sys.stderr.write(f"CNI plugin {NAME}: passes CNI calls to the hotnic multus daemon\n")
        raise ShimError(4, "required env variables [CNI_COMMAND] missing")
    if command == "VERSION":
        return json.dumps({"cniVersion": SUPPORTED[-1], "supportedVersions": SUPPORTED})
    if command not in COMMANDS:
        raise ShimError(4, f"unknown CNI_COMMAND: {command}")
    if os.environ.get(PLUGIN_MARK):
        # Nothing was added by a call that was refused.
        if command == "DEL":
            return ""
        raise ShimError(7, f"plugin type {NAME} is not allowed in a network: only the container runtime calls it")
    raw = sys.stdin.buffer.read()
    config, version = check_config(command, raw)
    path = os.path.join(str(config.get("daemonSocketDir") or DEFAULT_SOCKET_DIR), "multus.sock")
    body = run(command, raw, path, ShimLog())
    if command != "ADD":
        return ""
    try:
        return json.dumps(down_convert(json.loads(body)["Result"], version))
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ShimError(999, f"CmdAdd (shim): the daemon's response is not a result: {exc!r}") from exc


def main() -> int:
    """Run the plugin; return the exit code."""
    try:
        sys.stdout.write(handle_call())
    except ShimError as error:
        document = {"cniVersion": SUPPORTED[-1], "code": error.code, "msg": error.msg}
        if error.details:
            document["details"] = error.details
        sys.stdout.write(json.dumps(document))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
