"""The option `--kubevirt` of `hotnic lab up`: what it refuses before anything is started."""

import pytest
from click.testing import CliRunner

from lab.cli.lab import up


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1.10"], "KubeVirt 1.10 is not known; choose one of 1.0, "),
        (["1.9", "--guests", "double"], "plays the guests: leave it out"),
    ],
)
def test_refusals_say_what_to_do(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(up, ["--kubevirt", *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
