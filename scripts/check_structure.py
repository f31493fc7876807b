#!/usr/bin/env python3
"""Check the structure of the code: one meaning for each class name, and no module that holds more than one subject.

A class name that two modules define makes every reader ask which one is meant. Layers and imports are checked by
import-linter, words by ``scripts/check_words.py``.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOTS = ("schemas", "services", "lab")
MAX_LINES = 350
SHARED = {"Settings", "Observed", "Applier"}
"""Names that mean the same in every role: its settings, what it observes, and what applies its plan (design §5)."""


def main() -> int:
    """Print each finding as ``file: what``; return 1 when there are any, otherwise 0."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *(f"{root}/*.py" for root in ROOTS)], check=True, capture_output=True, text=True
    )
    modules = [Path(name) for name in listed.stdout.split("\0") if name and "_pb2" not in name and Path(name).is_file()]
    findings = []
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


if __name__ == "__main__":
    sys.exit(main())
