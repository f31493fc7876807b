"""``scripts/tools/interop-tools``: what it builds, when and where, with a ``go`` that records its arguments."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = ROOT / "tests" / "interop" / "tools"
PROGRAMS = sorted(folder.name for folder in MODULES.iterdir())

GO = """#!/bin/sh
case $1 in
env) echo go$GO_VERSION ;;
build)
	echo "$PWD $*" >>"$GO_CALLS"
	[ -z "$GO_FAILS" ] || { echo "some/file.go:1: undefined"; exit 1; }
	while [ "$1" != -o ]; do shift; done
	output=$2
	shift 2
	# Into a folder, each program gets the name of its package.
	for package; do
		file=$output
		[ ! -d "$output" ] || file=$output/${package##*/}
		printf '#!/bin/sh\\n' >"$file" && chmod +x "$file"
	done ;;
esac
"""


class Builder:
    """The script, with a cache and a ``go`` of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.cache = tmp_path / "cache" / "hotnic" / "interop"
        self._calls = tmp_path / "calls"
        go = tmp_path / "bin" / "go"
        go.parent.mkdir()
        go.write_text(GO)
        go.chmod(0o755)
        self.environment = {
            "PATH": f"{go.parent}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "GO_CALLS": str(self._calls),
            "GO_VERSION": "9.99.1",
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        return subprocess.run(
            [str(ROOT / "scripts" / "tools" / "interop-tools"), *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        """Return the calls of ``go build``, each as its folder and arguments."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """The script with an empty cache."""
    return Builder(tmp_path)


def test_a_missing_program_is_built_once(builder: Builder) -> None:
    unbuilt = builder.run("--path", "compose")
    assert (unbuilt.returncode, unbuilt.stdout) == (1, "")
    assert "run: make interop-tools TOOLS=compose" in unbuilt.stderr

    built = builder.run("compose")
    assert built.returncode == 0, built.stderr
    assert built.stdout.startswith("interop-tools: compose v5.")
    (call,) = builder.calls()
    assert call.startswith(f"{MODULES}/compose build -trimpath -tags  -ldflags -s -w ")
    assert call.endswith(" github.com/docker/compose/v5/cmd")

    assert builder.run("compose").stdout == ""
    assert builder.calls() == [call]
    path = Path(builder.run("--path", "compose").stdout.strip())
    assert path == builder.cache / "compose" / path.parent.name / "compose"
    assert f"Version={path.parent.name} " in call
    assert os.access(path, os.X_OK)
    assert [entry.name for entry in path.parent.iterdir()] == ["compose"]


def test_a_module_with_several_tools_has_a_path_for_each(builder: Builder) -> None:
    assert builder.run("kubernetes-1.36").returncode == 0
    tools = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
    # One command builds them all, so that what they share is compiled once, and they are linked side by side.
    assert len(builder.calls()) == 1
    for name in tools:
        path = Path(builder.run("--path", f"kubernetes-1.36/{name}").stdout.strip())
        assert path.name == name
        assert os.access(path, os.X_OK)


def test_parts_that_no_test_uses_are_left_out_by_the_tags_of_the_module(builder: Builder) -> None:
    assert builder.run("prometheus").returncode == 0
    (call,) = builder.calls()
    assert " -tags remove_all_sd " in call


def test_without_arguments_every_program_is_built(builder: Builder) -> None:
    assert builder.run().returncode == 0
    listed = [line.split() for line in builder.run("--list").stdout.splitlines()]
    assert [line[0] for line in listed] == PROGRAMS
    assert all(line[1].startswith("v") and line[2:] == ["built"] for line in listed)


def test_a_failed_build_leaves_no_program(builder: Builder) -> None:
    failed = builder.run("helm", GO_FAILS="1")
    assert failed.returncode == 1
    assert "cannot build helm v4." in failed.stderr
    assert "some/file.go:1: undefined" in failed.stderr
    assert builder.run("--path", "helm").returncode == 1
    assert sorted(entry.name for entry in (builder.cache / "helm").iterdir()) == ["build.log", "lock"]


@pytest.mark.parametrize("environment", [{"GO_VERSION": "1.20"}, {"PATH": "/usr/bin:/bin"}])
def test_go_that_is_missing_or_too_old_is_named(builder: Builder, environment: dict[str, str]) -> None:
    refused = builder.run("helm", **environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith("interop-tools: helm needs Go 1.")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nothing"], ["--path"], ["--path", "nothing"], ["--build"]])
def test_wrong_arguments_are_refused(builder: Builder, arguments: list[str]) -> None:
    refused = builder.run(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("interop-tools: ")
    assert builder.calls() == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_only_the_module_files_are_in_the_repository(program: str) -> None:
    assert sorted(path.name for path in (MODULES / program).iterdir()) == ["go.mod", "go.sum"]
    for path in (MODULES / program).iterdir():
        assert "http://" not in path.read_text()
        assert "https://" not in path.read_text()
