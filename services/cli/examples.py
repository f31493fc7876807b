"""The examples at the end of a command's help. That each of them can be typed as it stands is held by a test."""


def examples(*lines: str) -> str:
    """An epilog for click: the lines as they are, a comment before the command that it is about."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
