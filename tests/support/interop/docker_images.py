"""Commands in containers of the images under test, through the `docker` command that the environment selects."""

import json
import subprocess
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOTNIC = "hotnic:dev"
LAB = "hotnic-lab:dev"
BASE_LABEL = "org.opencontainers.image.base.name"

Done = subprocess.CompletedProcess[str]


def docker(*arguments: str, check: bool = True, timeout: float = 120) -> Done:
    """Run a docker command.

    :param check: fail unless the exit code is 0.
    :raises AssertionError: it failed; the message has its output.
    """
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done


def import_root(
    tag: str,
    files: Mapping[str, Path],
    *,
    folders: Mapping[str, int] | None = None,
    links: Mapping[str, str] | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Make an image of files, without a build.

    :param files: the content of each file by its path in the image; all can be executed.
    :param folders: modes of further directories.
    :param links: targets of symbolic links.
    :param changes: instructions of a Dockerfile, such as ``ENTRYPOINT``.
    """
    options = [part for change in changes for part in ("--change", change)]
    with subprocess.Popen(
        ["docker", "import", *options, "-", tag], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as importing:
        assert importing.stdin is not None
        with tarfile.open(fileobj=importing.stdin, mode="w|") as archive:
            for path, mode in (folders or {}).items():
                entry = tarfile.TarInfo(path)
                entry.type, entry.mode = tarfile.DIRTYPE, mode
                archive.addfile(entry)
            for path, source in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = source.stat().st_size, 0o755
                with source.open("rb") as content:
                    archive.addfile(entry, content)
            for path, target in (links or {}).items():
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                archive.addfile(entry)
    assert importing.returncode == 0, f"docker import of {tag} ended with code {importing.returncode}"


def inspect(image: str) -> dict[str, Any]:
    """Return what Docker knows of an image.

    :raises AssertionError: there is no such image.
    """
    done = docker("image", "inspect", image, check=False)
    assert done.returncode == 0, f"there is no image {image} in this engine; run: make image"
    (found,) = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def base_of(image: str) -> str:
    """Return the image that another one was built on."""
    base = inspect(image)["Config"]["Labels"][BASE_LABEL]
    assert isinstance(base, str)
    return base


def run_in(image: str, *command: str, options: tuple[str, ...] = (), check: bool = True) -> Done:
    """Run a command in a new container without network, on a read-only root, as the image's user.

    :param command: the program and its arguments.
    """
    program, *arguments = command
    return docker(
        "run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", *options, f"--entrypoint={program}", image,
        *arguments, check=check,
    )  # fmt: skip


@contextmanager
def container(image: str, *arguments: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """Run a container in the background, as `run_in` does but with the image's own entry point; yield its name."""
    name = f"hotnic-test-{uuid.uuid4().hex[:8]}"
    docker(
        "run", "--detach", f"--name={name}", "--network=none", "--read-only", "--tmpfs=/tmp", *options, image,
        *arguments,
    )  # fmt: skip
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)
