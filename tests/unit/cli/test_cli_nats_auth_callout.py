"""``hotnic nats auth-callout``: keys that only their owner can read, a configuration without seeds, and the Secret."""

import base64
import stat
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from services.cli.commands.nats import nats
from services.common.bus.nkeys import KeyKind, SigningKey, make_seed


def run(*arguments: str) -> Result:
    return CliRunner().invoke(nats, arguments)


def test_keys_are_made_once_and_are_their_owners(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    first = run("auth-callout", "--dir", str(directory))
    assert first.exit_code == 0, first.output
    assert run("auth-callout", "--dir", str(directory)).output == first.output
    for name, kind in (("issuer.nk", KeyKind.ACCOUNT), ("user.nk", KeyKind.USER)):
        path = directory / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        key = SigningKey(path.read_text())
        assert key.kind is kind
        assert f'"{key.public}"' in first.output
        assert path.read_text().strip() not in first.output
    assert f'issuer: "{SigningKey((directory / "issuer.nk").read_text()).public}"' in first.output


def test_users_of_people_do_not_pass_the_callout(tmp_path: Path) -> None:
    people, keys = str(tmp_path / "people"), str(tmp_path / "keys")
    assert run("keys", "--dir", people, "--role", "reader").exit_code == 0
    found = run("auth-callout", "--dir", keys, "--users", people).output
    reader = SigningKey((tmp_path / "people" / "reader.nk").read_text()).public
    [line] = [line for line in found.splitlines() if "auth_users" in line]
    assert reader in line
    assert found.count(reader) == 2


def test_the_secret_has_every_seed_of_the_callout_and_no_other(tmp_path: Path) -> None:
    following = make_seed(KeyKind.ACCOUNT)
    (tmp_path / "issuer-next.nk").write_text(following)
    (tmp_path / "reader.nk").write_text(make_seed(KeyKind.USER))
    found = run("auth-callout", "--dir", str(tmp_path), "--secret", "hotnic-nats-auth")
    secret = yaml.safe_load(found.output)
    assert (secret["kind"], secret["metadata"]) == ("Secret", {"name": "hotnic-nats-auth"})
    data = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    assert data == {name: (tmp_path / name).read_text() for name in ("issuer.nk", "issuer-next.nk", "user.nk")}


def test_a_file_of_another_kind_is_refused_and_not_replaced(tmp_path: Path) -> None:
    for text in ("a password", make_seed(KeyKind.USER)):
        (tmp_path / "issuer.nk").write_text(text)
        found = run("auth-callout", "--dir", str(tmp_path))
        assert found.exit_code == 1
        assert "issuer.nk: not " in found.output
        assert text not in found.output
        assert (tmp_path / "issuer.nk").read_text() == text
