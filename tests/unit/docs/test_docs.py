"""What the documentation names exists: files, things in them, make targets, commands and their options, variables."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from services.cli.__main__ import hotnic
from services.cli.commands.run import ROLES
from services.common.domain.kubevirt import reasons
from services.common.runtime.settings import variables

ROOT = Path(__file__).resolve().parents[3]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md")))
FOLDERS = ("schemas", "services", "lab", "tests", "scripts", "k8s", "docs", ".ci")

FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(rf"((?:{'|'.join(map(re.escape, FOLDERS))})(?:/[\w.*-]+)*/?)(?::([A-Za-z_][\w.]*))?")
TARGET = re.compile(r"\bmake ([a-z][a-z0-9-]*)")
COMMAND = re.compile(r"(?<![\w/.-])(?:\.venv/bin/|kubectl )?hotnic +([^`#\n]*)")
VARIABLE = re.compile(r"HOTNIC_[A-Z0-9_]*[A-Z0-9]")


def pages(*, of: str = "") -> list[object]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if of in page.read_text()]


def spans(page: Path) -> list[str]:
    """The inline code of a page."""
    return SPAN.findall(FENCE.sub("", page.read_text()))


def code(page: Path) -> list[str]:
    """All code of a page, line by line; continued lines are joined."""
    blocks = "\n".join(FENCE.findall(page.read_text())).replace("\\\n", " ")
    return [*spans(page), *blocks.splitlines()]


def defined(tree: ast.AST, name: str) -> bool:
    """Whether a module defines a name, which may be dotted: a class' method or attribute."""
    head, _, rest = name.partition(".")
    for node in ast.iter_child_nodes(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {target.id for target in targets if isinstance(target, ast.Name)} | {getattr(node, "name", None)}
        if head in names:
            return not rest or defined(node, rest)
    return False


@pytest.mark.parametrize("page", pages())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    missing = []
    for text in spans(page):
        found = NAMED.fullmatch(text)
        if found is None:
            continue
        path, name = found.groups()
        if not list(ROOT.glob(path.rstrip("/"))) or (
            name is not None and not defined(ast.parse((ROOT / path).read_text()), name)
        ):
            missing.append(text)
    links = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    missing += [target for target in links if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", pages(of="make "))
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {target for text in code(page) for target in TARGET.findall(text)} <= targets


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every use of the command line on a page: the text and its words."""
    for text in code(page):
        # Here hotnic is the name of a release, a namespace or an object.
        if re.match(r"(helm|kubectl(?! +hotnic)) ", text):
            continue
        for found in COMMAND.findall(text):
            yield found, shlex.split(found.split("|")[0].split(";")[0], posix=False) if "'" not in found else []


def wrong(words: list[str]) -> str:
    """What does not exist of a command line; empty when all of it does."""
    at: click.Command = hotnic
    context = click.Context(at)
    options = {"--help"}
    for word in words:
        if word in ("--", "…", "..."):
            break
        if word.startswith("--"):
            options |= {name for parameter in at.params for name in parameter.opts}
            if word.partition("=")[0] not in options:
                return word
        elif isinstance(at, click.Group) and re.fullmatch(r"[a-z][a-z-]*", word):
            inner = at.get_command(context, word)
            if inner is None:
                return word
            at = inner
    return ""


@pytest.mark.parametrize("page", pages(of="hotnic "))
def test_every_command_and_option_that_a_page_names_exists(page: Path) -> None:
    assert [f"hotnic {text}: {bad}" for text, words in commands(page) if (bad := wrong(words))] == []


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("lab up --without handler", ""),
        ("run api -- --print-config", ""),
        ("lab explode", "explode"),
        ("addinterface VM --naem x", "--naem"),
        ("lab exec -- ip link --anything", ""),
    ],
)
def test_the_check_of_commands_tells_right_from_wrong(line: str, bad: str) -> None:
    assert wrong(line.split()) == bad


def test_every_variable_that_a_page_names_is_read_somewhere() -> None:
    known = {
        variable.name
        for role in ROLES
        for variable in variables(importlib.import_module(f"services.{role}.__main__").Settings)
    }
    for folder in ("services", "lab", "scripts", "tests"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in ("", ".py", ".sh") and file != Path(__file__):
                known |= set(VARIABLE.findall(file.read_text()))
    known |= set(VARIABLE.findall((ROOT / "docker-compose.yml").read_text()))
    named = {name for page in PAGES for name in VARIABLE.findall(page.read_text())}
    assert named <= known


def test_the_diagram_of_the_stages_is_the_table() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate/stage-diagram", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_reason_beside_kubevirt_has_a_section_in_the_order_of_the_table() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / reasons.PAGE).read_text(), re.MULTILINE)
    assert [row.code for row in reasons.TABLE] == headings


def test_decisions_are_numbered_without_a_gap() -> None:
    found = sorted(path.name for path in (ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [name[:4] for name in found] == [f"{number:04}" for number in range(1, len(found) + 1)]
