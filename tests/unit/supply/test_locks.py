"""The check of the lock files: each way in which a lock file, an installation or a go.sum can be wrong is found."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.check import locks
from scripts.check.locks import Pin

HASH = "--hash=sha256:" + "0" * 64
GOOD = f"click==8.1.0 \\\n    {HASH}\n    # via hotnic\nwin==1.0 ; sys_platform == 'win32' \\\n    {HASH}\n"


def test_a_lock_file_is_read() -> None:
    pins, findings = locks.read_lock("requirements.lock", GOOD)
    assert findings == []
    assert [(pin.name, pin.version, pin.marker, pin.applies()) for pin in pins] == [
        ("click", "8.1.0", "", True),
        ("win", "1.0", "sys_platform == 'win32'", False),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("click==8.1.0\n", "click 8.1.0 has no hash"),
        ("click>=8.1\n", "'click>=8.1' pins no version by hash"),
        ("-e .\n", "'-e .' pins no version"),
        (f"--index-url https://host/simple\n{GOOD}", "contains an address"),
        (f"click @ https://host/click.whl \\\n    {HASH}\n", "contains an address"),
        ("click==8.1.0 \\\n    --hash=md5:00\n", "has no hash"),
        ("click==8.1.0 \\\n    --hash=sha256:00\n", "pins no version by hash"),
        (f"{GOOD}    --trusted-host host\n", "pins no version"),
    ],
)
def test_what_is_not_pinned_by_hash_is_found(text: str, found: str) -> None:
    _, findings = locks.read_lock("requirements.lock", text)
    assert any(found in one for one in findings), findings


def pins(**versions: str) -> list[Pin]:
    return [Pin(name, version, "", frozenset({"0"})) for name, version in versions.items()]


REQUIRES = {"a": ["b>=2", "c; extra == 'fast'", "d; sys_platform == 'win32'"], "b": [], "c": []}


@pytest.mark.parametrize(
    ("locked", "roots", "found"),
    [
        ({"a": "1", "b": "2"}, ["a>=1"], ""),
        ({"a": "1", "b": "2", "c": "1"}, ["a[fast]"], ""),
        ({"a": "1", "b": "2"}, ["a[fast]"], "a requires c"),
        ({"a": "1", "b": "2"}, ["a>=2"], "pyproject.toml requires a>=2, the lock file has 1"),
        ({"a": "1", "b": "1"}, ["a"], "a requires b>=2, the lock file has 1"),
        ({"a": "1"}, ["a"], "the lock file does not have it"),
        ({"a": "1", "b": "2", "c": "1"}, ["a"], "nothing requires c"),
        ({"a": "1", "b": "2rc1", "c": "1"}, ["a", "c"], "a requires b>=2"),
    ],
)
def test_a_lock_file_is_a_resolution_of_its_requirements(
    locked: Mapping[str, str], roots: list[str], found: str
) -> None:
    findings = locks.check_resolution("x.lock", pins(**locked), roots, lambda pin: REQUIRES[pin.name])
    assert any(found in one for one in findings) if found else findings == []


def test_a_package_that_is_not_installed_ends_the_search_but_not_the_check() -> None:
    findings = locks.check_resolution("x.lock", pins(a="1", b="2"), ["a"], lambda pin: None)
    assert findings == []


def test_parts_agree_with_the_whole() -> None:
    whole = pins(a="1", b="2")
    other = [Pin("a", "1", "", frozenset({"1"})), *pins(b="3")]
    findings = locks.check_parts({locks.DEV: whole, locks.RUNTIME: other, locks.LIBVIRT: pins(z="1")})
    assert [one.split(";")[0] for one in findings] == [
        "requirements.lock: a 1 differs from requirements-dev.lock",
        "requirements.lock: b 3 differs from requirements-dev.lock",
    ]


def install(site: Path, name: str, version: str, files: Mapping[str, str]) -> None:
    """Install a package as an installer does, with the hashes of its files."""
    metadata = f"{name}-{version}.dist-info"
    content = {**files, f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    record = []
    for path, text in content.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record.append(f"{path},sha256={digest},{len(text)}")
    (site / metadata / "RECORD").write_text("\n".join([*record, f"{metadata}/RECORD,,", ""]))


def test_what_is_installed_is_what_is_pinned(tmp_path: Path) -> None:
    site = tmp_path / "lib"
    install(site, "one", "1", {"one/__init__.py": "x = 1\n", "../bin/one": "#!/old/python\n"})
    assert locks.check_installed(site, pins(one="1")) == []
    assert "version 1 is installed" in locks.check_installed(site, pins(one="2"))[0]
    assert "it is not installed" in locks.check_installed(site, pins(one="1", two="1"))[0]
    # A launcher contains the interpreter's path, which changes when the environment is moved.
    (tmp_path / "bin" / "one").write_text("#!/new/python\n")
    (site / "__pycache__").mkdir()
    assert locks.check_installed(site, pins(one="1")) == []


@pytest.mark.parametrize("change", ["edit", "delete", "plant"])
def test_a_changed_installation_is_found(tmp_path: Path, change: str) -> None:
    install(tmp_path, "one", "1", {"one/__init__.py": "x = 1\n"})
    match change:
        case "edit":
            (tmp_path / "one" / "__init__.py").write_text("x = 2\n")
        case "delete":
            (tmp_path / "one" / "__init__.py").unlink()
        case _:
            (tmp_path / "evil.pth").write_text("import os\n")
    (finding,) = locks.check_installed(tmp_path, pins(one="1"))
    assert ("evil.pth belongs to no installed package" if change == "plant" else "files of one") in finding


MOD = "module m\n\nrequire (\n\texample.com/a v1.0.0\n\texample.com/b v1.2.0 // indirect\n)\n"
SUM = "".join(
    f"example.com/{one} h1:{'A' * 43}=\n" for one in ("a v1.0.0", "a v1.0.0/go.mod", "b v1.2.0/go.mod", "c v1.0.0")
)


@pytest.mark.parametrize(
    ("mod", "lines", "found"),
    [
        (MOD, SUM, ""),
        (MOD, SUM.replace("/a ", "/x "), "example.com/a v1.0.0 is missing"),
        (MOD, SUM.replace("h1:A", "h1:", 1), "go.sum:1: is no hash"),
        (MOD + "replace example.com/a => ./a\n", SUM, "replaces a module by a folder"),
        (MOD + "replace example.com/a => example.com/d v1.0.0\n", SUM, "example.com/d v1.0.0 is missing"),
        (MOD, SUM.replace("b v1.2.0/go.mod h1:A", "b v1.2.0/go.mod h1:B"), "has another hash than in other"),
    ],
)
def test_go_modules_have_hashes(mod: str, lines: str, found: str) -> None:
    findings = locks.check_go({"other": (MOD, SUM), "program": (mod, lines)})
    assert any(found in one for one in findings) if found else findings == []


def test_make_lock_resolves_what_is_checked() -> None:
    text = (locks.ROOT / "scripts" / "generate" / "lock").read_text()
    for lock in (locks.RUNTIME, locks.DEV, locks.LIBVIRT, *locks.TOOLS):
        assert lock in text
        assert locks.roots_of(lock)
