"""The data directory: what is ours, what is private, and who holds it."""

import json
import stat
from pathlib import Path

import pytest

from darktree_cli.state import DataDir, PlatformRecord, StateError
from darktree_kit.notes import parse_signer

RECORD = PlatformRecord(
    version="1",
    supervisor_pid=1,
    base_url="http://a/v1",
    admin_url="http://b",
    admin_token="secret",
    database_url="postgresql://c",
    lanes_file="d",
    journal_dir="e",
    processes={},
)


def test_a_directory_is_made_marked_and_only_for_its_owner(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "new" / "data")
    with data.claimed():
        assert data.is_ours()
        assert stat.S_IMODE(data.path.stat().st_mode) == 0o700


def test_a_directory_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StateError, match="holds something else"), DataDir(tmp_path).claimed():
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StateError, match="cannot be used"), DataDir(tmp_path / "data").claimed():
        pass


def test_a_second_holder_is_told_that_a_platform_runs(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    with data.claimed():
        assert data.is_claimed()
        with pytest.raises(StateError, match="already running"), DataDir(data.path).claimed():
            pass
    assert not data.is_claimed()


def test_secrets_are_made_once_all_different_and_private(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    with data.claimed():
        first = data.secrets()
        assert data.secrets() == first
    values = [value for value in first.model_dump().values() if value is not None]
    assert len(set(values)) == len(values) == 10
    assert stat.S_IMODE((data.path / "secrets.json").stat().st_mode) == 0o600


def test_a_secret_that_an_earlier_version_did_not_know_is_made_beside_the_others(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    with data.claimed():
        first = data.secrets()
        file = data.path / "secrets.json"
        known = json.loads(file.read_text())
        del known["sealer_role_password"]
        file.write_text(json.dumps(known))
        second = data.secrets()
        assert second.sealer_role_password not in first.model_dump().values()
        assert second == first.model_copy(update={"sealer_role_password": second.sealer_role_password})
        assert data.secrets() == second


def test_the_key_of_the_log_is_made_once_private_and_for_a_log_of_its_own(tmp_path: Path) -> None:
    names = set()
    for data in (DataDir(tmp_path / "data"), DataDir(tmp_path / "other")):
        with data.claimed():
            data.make_keys()
            content = data.log_key.read_text()
            data.make_keys()
            assert data.log_key.read_text() == content
            assert stat.S_IMODE(data.log_key.stat().st_mode) == 0o600
            names.add(parse_signer(content).name)
    assert len(names) == 2


def test_what_a_platform_says_of_itself_is_private_and_withdrawn(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    with data.claimed():
        assert data.platform() is None
        data.publish(RECORD)
        assert data.platform() == RECORD
        assert stat.S_IMODE((data.path / "platform.json").stat().st_mode) == 0o600
        data.withdraw()
        assert data.platform() is None


def test_erasing_starts_over_and_keeps_the_claim(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    with data.claimed():
        before = data.secrets()
        (data.path / "postgres").mkdir()
        data.erase()
        assert {entry.name for entry in data.path.iterdir()} == {"darktree-data.json", "lock", "logs"}
        assert data.is_claimed()
        assert data.secrets() != before


def test_a_link_inside_is_removed_but_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    data = DataDir(tmp_path / "data")
    with data.claimed():
        (data.path / "link").symlink_to(outside)
        data.erase()
    assert (outside / "kept").exists()


def test_a_directory_of_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "darktree-data.json").write_text('{"layout": 99}')
    with pytest.raises(StateError, match="another version"), DataDir(tmp_path).claimed():
        pass
