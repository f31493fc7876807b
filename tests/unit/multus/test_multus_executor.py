"""Execution of plugins. The plugins are scripts; everything else is as in the daemon."""

import asyncio
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from schemas import cni
from schemas.multus import PLUGIN_MARK
from services.common.telemetry.propagation import context_of
from services.multus.cni import network
from services.multus.cni.call import PodId
from services.multus.cni.conflist import AttachmentAttributes, parse
from services.multus.cni.errors import CniError, DeadlineError
from services.multus.cni.executor import Executor, Invocation, time_limit
from services.multus.cni.network import AttachmentTarget
from services.multus.cni.plugin_process import PluginProcesses
from tests.support.node.cni import RecordingPlugin
from tests.support.telemetry.spans import named, recording_telemetry

PLACE = AttachmentTarget("abc", "/run/netns/x", "net1", PodId("default", "pod", "uid"))
CALL = PLACE.invocation(cni.CniCommand.ADD, AttachmentAttributes())


def executor(*folders: Path, timeout: float = 10.0, environ: dict[str, str] | None = None) -> Executor:
    telemetry, _ = recording_telemetry()
    search = [str(folder) for folder in folders]
    log = structlog.get_logger()
    return Executor(search, tracer=telemetry.tracer, log=log, timeout=timeout, environ=environ or dict(os.environ))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_run_passes_input_and_environment_and_returns_output(tmp_path: Path) -> None:
    script(tmp_path / "echo", "cat")
    big = b"x" * 300_000  # more than a pipe holds
    assert await executor(tmp_path).run("echo", CALL, big) == big


async def test_a_plugin_gets_a_clean_environment(tmp_path: Path) -> None:
    script(tmp_path / "env", "env")
    secret = {"NATS_URL": "nats://user:secret@nats", "CNI_STALE": "stale"}
    printed = await executor(tmp_path, environ={**secret, "PATH": os.environ["PATH"]}).run("env", CALL, b"")
    found = dict(line.split("=", 1) for line in printed.decode().splitlines())
    # The shell of the script adds the last ones.
    assert found.keys() - {"TRACEPARENT", "PWD", "OLDPWD", "SHLVL", "_"} == {
        *("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"),
        *("PATH", PLUGIN_MARK),
    }
    assert found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("shim", ["hotnic-multus", "multus", "multus-shim"])
async def test_the_shim_of_a_multus_is_never_run(tmp_path: Path, shim: str) -> None:
    marker = tmp_path / "ran"
    script(tmp_path / shim, f"touch {marker}")
    run = executor(tmp_path)
    with pytest.raises(CniError, match=f"plugin type {shim} is not allowed in a network") as caught:
        await run.run(shim, CALL, b"{}")
    assert (caught.value.code, marker.exists()) == (cni.CniErrorCode.INVALID_CONFIG, False)
    for config in ({"type": shim}, {"type": "bridge", "IPAM": {"Type": shim}}):
        with pytest.raises(CniError, match=f"plugin type {shim} is not allowed"):
            network.require_plugins(run, parse(json.dumps({"cniVersion": "1.0.0", "name": "n", **config})))
    # A chain that an earlier version has recorded: its DEL does not fail for ever.
    bridge = RecordingPlugin(tmp_path)
    chain = parse(json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": bridge.type}, {"type": shim}]}))
    await network.delete(run, chain, PLACE, AttachmentAttributes(), None)
    assert (bridge.commands, marker.exists()) == (["DEL net1"], False)


async def test_the_first_directory_takes_precedence_and_a_missing_plugin_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    (first / "folder").mkdir()
    script(second / "folder", "echo 2")
    script(second / "both", "echo 2")
    script(first / "both", "echo 1")
    run = executor(first, second)
    assert await run.run("both", CALL, b"") == b"1\n"
    assert await run.run("folder", CALL, b"") == b"2\n"
    with pytest.raises(CniError, match=r'failed to find plugin "absent" in path \[') as caught:
        await run.run("absent", CALL, b"")
    assert caught.value.code == cni.CniErrorCode.INTERNAL


async def test_the_daemons_own_cni_path_is_searched_last(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
        script(folder / "both", f"echo {folder.name} $CNI_PATH")
    script(second / "other", "echo other")
    run = executor(first, environ={"PATH": os.environ["PATH"], "CNI_PATH": f"{tmp_path}:{second}:"})
    assert await run.run("both", CALL, b"") == f"1 {first}:{tmp_path}:{second}\n".encode()
    assert await run.run("other", CALL, b"") == b"other\n"


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('echo \'{"code":11,"msg":"busy","details":"d"}\'; exit 1', 11, "failed (add): busy"),
        ("echo oops >&2; exit 3", 999, "it ended with exit code 3: oops"),
        ("echo not json; exit 1", 999, "it ended with exit code 1: not json"),
        ("kill -9 $$", 999, "it was ended by SIGKILL"),
        ("exit 1", 999, "it ended with exit code 1"),
    ],
)
async def test_failures_are_classified(tmp_path: Path, text: str, code: int, message: str) -> None:
    script(tmp_path / "plugin", text)
    with pytest.raises(CniError) as caught:
        await executor(tmp_path).run("plugin", CALL, b"")
    assert caught.value.code == code
    assert message in caught.value.msg
    assert 'plugin type="plugin"' in caught.value.msg


async def test_what_a_plugin_says_is_cut(tmp_path: Path) -> None:
    """It may quote its configuration, which a tenant has written, in every log line and Event of every attempt."""
    said = '{"code":7,"msg":"%100000s","details":"%100000s"}'
    script(tmp_path / "plugin", f"printf '%100000s' x >&2; printf '{said}' x y; exit 1")
    with structlog.testing.capture_logs() as logs, pytest.raises(CniError) as caught:
        await executor(tmp_path).run("plugin", CALL, b"")
    assert len(caught.value.msg) + len(caught.value.details or "") < 10_000
    assert max(len(str(entry)) for entry in logs) < 10_000


async def test_a_loop_of_links_below_the_nodes_root_is_no_plugin(tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "loop").symlink_to("/opt/loop")
    telemetry, _ = recording_telemetry()
    run = Executor(["/opt"], tracer=telemetry.tracer, log=structlog.get_logger(), chroot=tmp_path)
    with pytest.raises(CniError, match='failed to find plugin "loop"'):
        await run.run("loop", CALL, b"")


async def test_a_file_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "plugin").write_text("")
    with pytest.raises(CniError) as caught:
        await executor(tmp_path).run("plugin", CALL, b"")
    assert caught.value.code == cni.CniErrorCode.IO_FAILURE


async def test_a_plugin_and_its_children_are_killed_at_the_deadline(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script(tmp_path / "slow", f"sleep 60 & echo $! > {pid}; wait")
    with pytest.raises(CniError, match=r"did not end within 0\.2 s") as caught:
        await executor(tmp_path, timeout=0.2).run("slow", CALL, b"")
    assert caught.value.code == cni.CniErrorCode.TRY_AGAIN_LATER
    await ended(int(pid.read_text()))


async def test_a_killed_plugin_that_ends_late_is_reaped(tmp_path: Path) -> None:
    """The event loop is not blocked meanwhile; otherwise a plugin that hangs in the kernel would stop all calls."""
    pid = tmp_path / "pid"
    script(tmp_path / "slow", f"echo $$ > {pid}; exec sleep 60")
    telemetry, _ = recording_telemetry()
    log = structlog.get_logger()
    run = Executor([str(tmp_path)], tracer=telemetry.tracer, log=log, timeout=0.2, kill_timeout=0.0)
    with pytest.raises(CniError, match="did not end within"):
        await run.run("slow", CALL, b"")
    process = Path(f"/proc/{pid.read_text().strip()}")
    async with asyncio.timeout(45):
        while os.path.exists(process):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.001)


async def test_a_call_does_not_wait_until_the_kernel_has_released_the_process(tmp_path: Path) -> None:
    """On a busy machine that takes milliseconds of CPU time, in which all calls would stand still."""
    released = threading.Event()
    reaped = []

    def reap(pid: int) -> None:
        released.wait(45)
        os.waitpid(pid, 0)
        reaped.append(pid)

    program = script(tmp_path / "plugin", "echo $$; exit 3")
    processes = PluginProcesses(root=None, cgroups=None, mark=PLUGIN_MARK, reap=reap)
    async with asyncio.timeout(45):
        finished = await processes.run(str(program), {}, b"")
    assert (finished.code, reaped) == (3, [])
    released.set()
    async with asyncio.timeout(45):
        while reaped != [int(finished.out)]:  # noqa: ASYNC110 (a thread appends to it)
            await asyncio.sleep(0.001)


async def ended(pid: int) -> None:
    """Wait for the end of a process that is not a child of this one."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, event.set)
    try:
        async with asyncio.timeout(45):
            await event.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def test_a_grandchild_with_open_output_delays_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script(tmp_path / "daemonising", f"sleep 60 & echo $! > {pid}; echo done")
    async with asyncio.timeout(45):
        assert await executor(tmp_path).run("daemonising", CALL, b"") == b"done\n"
    os.kill(int(pid.read_text()), 9)


async def test_a_plugin_file_that_is_being_written_is_retried(tmp_path: Path) -> None:
    path = script(tmp_path / "busy", "echo fine")
    writer = path.open("ab")
    loop = asyncio.get_running_loop()
    loop.call_later(0.08, writer.close)
    assert await executor(tmp_path).run("busy", CALL, b"") == b"fine\n"


async def test_a_plugin_file_that_stays_busy_is_an_error(tmp_path: Path) -> None:
    """Upstream fault: after the last attempt, the plugin counted as successful without output."""
    path = script(tmp_path / "busy", "echo fine")
    telemetry, _ = recording_telemetry()
    run = Executor([str(tmp_path)], tracer=telemetry.tracer, log=structlog.get_logger(), busy_pauses=(0.0, 0.0))
    with path.open("ab"), pytest.raises(CniError, match="Text file busy") as caught:
        await run.run("busy", CALL, b"")
    assert caught.value.code == cni.CniErrorCode.IO_FAILURE


async def test_standard_error_of_a_plugin_is_logged(tmp_path: Path) -> None:
    plugin = RecordingPlugin(tmp_path, "verbose")
    plugin.write_stderr("line 1\nline 2\n")
    with structlog.testing.capture_logs() as lines:
        await executor(tmp_path).run("verbose", CALL, b"")
    (line,) = [line for line in lines if "stderr" in line]
    assert (line["plugin"], line["command"], line["stderr"]) == ("verbose", "ADD", "line 1\nline 2")


async def test_the_span_names_the_plugin_and_the_plugin_gets_the_trace(tmp_path: Path) -> None:
    telemetry, exporter = recording_telemetry()
    script(tmp_path / "plugin", 'echo "$TRACEPARENT"; [ "$CNI_IFNAME" = net1 ]')
    run = Executor([str(tmp_path)], tracer=telemetry.tracer, log=structlog.get_logger())
    printed = await run.run("plugin", CALL, b"")
    span = named(exporter.get_finished_spans(), "cni ADD plugin")
    assert context_of(printed.decode().strip()) is not None
    assert span.context is not None
    assert f"{span.context.span_id:016x}" in printed.decode()
    exporter.clear()
    with pytest.raises(CniError):
        await run.run("plugin", Invocation(cni.CniCommand.DEL, "abc", "", "net2"), b"")
    failed = named(exporter.get_finished_spans(), "cni DEL plugin")
    assert not failed.status.is_ok
    assert (failed.attributes or {})["cni.error.code"] == cni.CniErrorCode.INTERNAL


async def test_add_passes_results_on_and_del_runs_in_reverse(tmp_path: Path) -> None:
    first = RecordingPlugin(
        tmp_path, "first", {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.1/24"}]}
    )
    second = RecordingPlugin(tmp_path, "second", {"cniVersion": "0.4.0", "ips": []})
    plugins = [{"type": "first"}, {"type": "second"}]
    chain = parse(f'{{"cniVersion":"0.4.0","name":"n","plugins":{plugins!r}}}'.replace("'", '"'))
    run = executor(tmp_path)
    result = await network.add(run, chain, PLACE, AttachmentAttributes())
    assert result.ips == []
    assert "prevResult" not in first.stdin(0)
    assert second.stdin(0)["prevResult"]["ips"] == [{"address": "10.0.0.1/24", "version": "4"}]
    await network.check(run, chain, PLACE, AttachmentAttributes(), result)
    await network.delete(run, chain, PLACE, AttachmentAttributes(), result)
    assert first.commands == ["ADD net1", "CHECK net1", "DEL net1"]
    assert second.commands == ["ADD net1", "CHECK net1", "DEL net1"]
    assert (tmp_path / "second.stdin.2").stat().st_mtime_ns <= (tmp_path / "first.stdin.2").stat().st_mtime_ns
    assert first.stdin(2)["prevResult"] == {"cniVersion": "0.4.0"}


@pytest.mark.parametrize(
    ("code", "msg", "passed_over"),
    [
        (1, "plugin version does not allow CHECK", True),
        (4, "unknown CNI_COMMAND: CHECK", True),
        (4, "CNI_NETNS is missing", False),
        (999, "the address is gone", False),
    ],
)
async def test_check_passes_over_a_plugin_that_does_not_support_it(
    tmp_path: Path, code: int, msg: str, passed_over: bool
) -> None:
    first, second = RecordingPlugin(tmp_path, "first"), RecordingPlugin(tmp_path, "second")
    chain = parse('{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"first"},{"type":"second"}]}')
    first.fail("CHECK", code, msg)
    if passed_over:
        await network.check(executor(tmp_path), chain, PLACE, AttachmentAttributes(), None)
    else:
        with pytest.raises(CniError, match=msg):
            await network.check(executor(tmp_path), chain, PLACE, AttachmentAttributes(), None)
    assert second.commands == (["CHECK net1"] if passed_over else [])


async def test_check_drops_sysctls_of_a_link_whose_name_has_a_dot(tmp_path: Path) -> None:
    tuning = RecordingPlugin(tmp_path, "tuning")
    sysctl = '{"net.core.somaxconn":"9","net.ipv4.conf.IFNAME.arp_filter":"1"}'
    chain = parse(f'{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"tuning","sysctl":{sysctl}}}]}}')
    run = executor(tmp_path)
    for ifname in ("net1", "net1.5"):
        await network.check(run, chain, replace(PLACE, ifname=ifname), AttachmentAttributes(), None)
    assert tuning.stdin(0)["sysctl"] == {"net.core.somaxconn": "9", "net.ipv4.conf.net1.arp_filter": "1"}
    assert tuning.stdin(1)["sysctl"] == {"net.core.somaxconn": "9"}


async def test_commands_that_the_version_or_a_flag_excludes_do_not_run(tmp_path: Path) -> None:
    plugin = RecordingPlugin(tmp_path, "p")
    run = executor(tmp_path)
    old = parse('{"cniVersion":"0.3.1","name":"n","type":"p"}')
    await network.check(run, old, PLACE, AttachmentAttributes(), None)
    await network.status(run, old)
    await network.collect_garbage(run, old, [])
    switched = parse(
        '{"cniVersion":"1.1.0","name":"n","disableCheck":"true","disableGC":true,"plugins":[{"type":"p"}]}'
    )
    await network.check(run, switched, PLACE, AttachmentAttributes(), None)
    await network.collect_garbage(run, switched, [])
    assert plugin.commands == []
    await network.delete(run, old, PLACE, AttachmentAttributes(), cni.CniResult())
    assert "prevResult" not in plugin.stdin(0)
    await network.status(run, switched)
    assert plugin.commands == ["DEL net1", "STATUS"]


async def test_no_plugin_of_a_chain_is_started_when_the_call_has_used_up_its_time(tmp_path: Path) -> None:
    first, second = RecordingPlugin(tmp_path, "first"), RecordingPlugin(tmp_path, "second")
    second.sleep("DEL", 600)
    chain = parse('{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"first"},{"type":"second"}]}')
    with time_limit(0.3), pytest.raises(DeadlineError, match="and was killed, because the call has used up") as caught:
        # After any other failure the first plugin would run on the last try, too.
        await network.delete(executor(tmp_path), chain, PLACE, AttachmentAttributes(), None, last_try=True)
    assert caught.value.code == cni.CniErrorCode.TRY_AGAIN_LATER
    with time_limit(0), pytest.raises(DeadlineError, match="it was not started, because the call has used up its time"):
        await network.collect_garbage(executor(tmp_path), chain, [])
    assert (first.commands, second.commands) == ([], ["DEL net1"])


async def test_gc_runs_every_plugin_and_raises_the_first_failure(tmp_path: Path) -> None:
    first, second = RecordingPlugin(tmp_path, "first"), RecordingPlugin(tmp_path, "second")
    first.fail("GC", 123)
    chain = parse('{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"first"},{"type":"second"}]}')
    with pytest.raises(CniError) as caught:
        await network.collect_garbage(executor(tmp_path), chain, [("abc", "eth0")])
    assert caught.value.code == 123
    assert second.stdin(0)["cni.dev/valid-attachments"] == [{"containerID": "abc", "ifname": "eth0"}]
    assert first.calls[0]["container"] == ""


async def test_add_refuses_output_that_is_not_a_result(tmp_path: Path) -> None:
    plugin = RecordingPlugin(tmp_path, "p")
    plugin.set_result("surprise")
    single = parse('{"cniVersion":"1.0.0","name":"n","type":"p"}')
    with pytest.raises(CniError, match="not a result") as caught:
        await network.add(executor(tmp_path), single, PLACE, AttachmentAttributes())
    assert caught.value.code == cni.CniErrorCode.DECODE_FAILURE
    for empty in ("", "null", " {} "):
        plugin.set_result(empty)
        assert (await network.add(executor(tmp_path), single, PLACE, AttachmentAttributes())).cni_version == "1.1.0"
