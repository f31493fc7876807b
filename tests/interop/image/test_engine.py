"""`scripts/with-docker-engine`: exit codes, signals, the lock, and nothing that remains.

The engines of these tests have data of their own, because another one may run the tests.
"""

import os
import signal
import subprocess
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from tests.support.leftovers import count, left_over

CHECKOUT = Path(__file__).parents[3]
SCRIPT = CHECKOUT / "scripts" / "with-docker-engine"


def start(data: Path, *command: str) -> subprocess.Popen[str]:
    """Start an engine with its data in a folder of the test's."""
    return subprocess.Popen(
        [SCRIPT, *command],
        env={**os.environ, "HOTNIC_DOCKER_DATA": str(data)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def folders(home: Path) -> list[Path]:
    """Return the temporary folder and the cgroups of the engine with this folder, if they exist.

    Those of other engines, which may start and end at any time, do not count.
    """
    hierarchies = Path("/sys/fs/cgroup")
    found = (home, *hierarchies.glob(home.name), *hierarchies.glob(f"*/{home.name}"))
    return [folder for folder in found if folder.exists()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for an engine's data."""
    return tmp_path / "docker"


def test_command_gets_an_engine_of_its_own_and_nothing_remains(data: Path) -> None:
    before = count()
    script = 'docker info --format "{{.DockerRootDir}}"; path=${DOCKER_HOST#unix://}; stat -c "%a %n" "$path"; exit 7'
    process = start(data, "bash", "-c", script)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 7, err
    root, mode, path = out.split()
    assert (root, mode) == (str(data), "600")
    assert left_over(before) == []
    assert folders(Path(path).parent) == []


def test_second_engine_on_the_same_data_is_refused(data: Path) -> None:
    with start(data, "bash", "-c", "echo up; read -r _") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "up\n"
        second = start(data, "true")
        _, err = second.communicate(timeout=120)
        assert second.returncode == 125
        assert f"another engine uses {data} (process {first.pid})" in err
        first.terminate()
        # communicate() would close standard input, and the command could end by that before the signal reaches it.
        first.wait(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM


def test_nothing_remains_after_a_kill(data: Path) -> None:
    before = count()
    # The command outlives the kill; it ends when its input does.
    process = start(data, "bash", "-c", 'echo "${DOCKER_HOST#unix://}"; exec cat')
    assert process.stdout is not None
    home = Path(process.stdout.readline().strip()).parent
    assert processes(data)
    assert folders(home)
    process.kill()
    process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while processes(data) or folders(home):
        assert time.monotonic() < deadline, f"still there: {processes(data)} {folders(home)}"
        time.sleep(0.05)
    assert left_over(before) == []


def test_signal_while_the_engine_starts_ends_it_first(data: Path) -> None:
    process = start(data, "sleep", "600")
    while not processes(data):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert processes(data) == []


def test_data_is_locked_until_the_engine_of_a_killed_command_has_ended(data: Path) -> None:
    first = start(data, "bash", "-c", 'echo "${DOCKER_HOST#unix://}"; exec cat')
    assert first.stdout is not None
    home = Path(first.stdout.readline().strip()).parent
    engine = min(processes(data))
    os.kill(engine, signal.SIGSTOP)
    try:
        first.kill()
        first.communicate(timeout=120)
        second = start(data, "true")
        _, err = second.communicate(timeout=120)
    finally:
        os.kill(engine, signal.SIGCONT)
    assert (second.returncode, f"another engine uses {data} " in err) == (125, True), err
    deadline = time.monotonic() + 60
    while processes(data) or folders(home):
        assert time.monotonic() < deadline, f"still there: {processes(data)} {folders(home)}"
        time.sleep(0.05)


def processes(data: Path) -> list[int]:
    """Return the engines whose command line names this data."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "dockerd" in words[0] and any(str(data) in word for word in words):
            found.append(int(path.parent.name))
    return found


def test_signal_ends_the_command_first(data: Path) -> None:
    process = start(data, "bash", "-c", "trap 'docker version >/dev/null && echo stopped in order; exit 3' TERM; "
                    "echo up; while :; do sleep 0.1; done")  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (3, "stopped in order\n"), err


def test_signal_in_the_middle_of_the_start_is_handled_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = SourceFileLoader("with_docker_engine", str(SCRIPT))
    script = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(script)
    started: list[subprocess.Popen[bytes]] = []

    def spawn(*_arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        signal.raise_signal(signal.SIGTERM)
        started.append(process)
        return process

    def end(_number: int, _frame: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    monkeypatch.setattr(script, "spawn", spawn)
    handler = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit):
            script.start(tmp_path, tmp_path / "home", own_network=False, lock=-1)
    finally:
        signal.signal(signal.SIGTERM, handler)
    # The engine has ended before the signal ends the command.
    assert [process.returncode for process in started] == [0]
