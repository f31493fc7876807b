#!/usr/bin/env python3
"""Write the table of the admission policies into ``docs/admission.md``, from ``tests/support/kube/admission/table.py``.

``--check`` writes nothing and fails when the page differs.
"""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "admission.md"
BEGIN = "<!-- The table: scripts/generate/admission_table.py writes it. -->\n\n"
END = "\n<!-- The end of the table. -->"


def replaced(text: str) -> str:
    """Return the page with the table as it is."""
    sys.path.insert(0, str(CHECKOUT))
    from tests.support.kube.admission.table import print_table

    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + print_table() + END + after


def main() -> int:
    """Write the page, or compare it; return the exit code."""
    text = PAGE.read_text()
    made = replaced(text)
    if "--check" in sys.argv[1:]:
        if made == text:
            return 0
        print(f"{PAGE.name} differs from the table; run: scripts/generate/admission_table.py", file=sys.stderr)
        return 1
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
