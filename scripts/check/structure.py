#!/usr/bin/env python3
"""Check the structure of the code: one meaning for each class name, one subject per module, folders read at a glance.

A class name that two modules define makes every reader ask which one is meant. Layers and imports are checked by
import-linter, words by ``scripts/check/words.py``.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOTS = ("schemas", "services", "lab")
MAX_LINES = 350
MAX_ENTRIES = 12
"""Modules and folders at one level; a reader has about nine in view."""
SHARED = {"Settings", "Observed", "Applier"}
"""Names that mean the same in every role: its settings, what it observes, and what applies its plan (design §5)."""


def main() -> int:
    """Print each finding as ``file: what``; return 1 when there are any, otherwise 0."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *(f"{root}/*.py" for root in ROOTS)], check=True, capture_output=True, text=True
    )
    findings = crowded_folders((*ROOTS, "scripts"))
    modules = [Path(name) for name in listed.stdout.split("\0") if name and "_pb2" not in name and Path(name).is_file()]
    defined: dict[str, list[Path]] = defaultdict(list)
    for module in modules:
        text = module.read_text()
        if (lines := text.count("\n")) > MAX_LINES:
            findings.append(f"{module}: {lines} lines; the limit is {MAX_LINES}: split it by subject")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined[node.name].append(module)
    for name, places in sorted(defined.items()):
        if len(places) > 1 and name not in SHARED:
            findings.append(f"{places[0]}: class {name} is also defined in {', '.join(map(str, places[1:]))}")
    print("\n".join(findings), end="\n" if findings else "")
    return 1 if findings else 0


def crowded_folders(roots: tuple[str, ...]) -> list[str]:
    """Return a finding for each folder below these with more entries than a reader has in view."""
    listed = subprocess.run(["git", "ls-files", "-z", *roots], check=True, capture_output=True, text=True)
    entries: dict[Path, set[str]] = defaultdict(set)
    for path in map(Path, filter(None, listed.stdout.split("\0"))):
        # Nobody opens generated files to find the place of a change.
        if path.exists() and "generated" not in path.parts:
            for level in path.parents[:-1]:
                entries[level].add(path.relative_to(level).parts[0])
    counted = {
        folder: len(found - {"__init__.py", "__main__.py", "pyproject.toml"}) for folder, found in entries.items()
    }
    return [
        f"{folder}: {count} entries; the limit is {MAX_ENTRIES}: sort them into folders by subject"
        for folder, count in sorted(counted.items())
        if count > MAX_ENTRIES
    ]


if __name__ == "__main__":
    sys.exit(main())
