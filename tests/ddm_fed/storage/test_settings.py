"""Settings are written as TOML that reads back the same, and what people added stays."""

from decimal import Decimal

import pytest

from ddm_fed.records import Record
from ddm_fed.storage.workspace import read_settings, write_settings


class Settings(Record):
    """Every kind of value that settings have."""

    text: str
    number: Decimal
    parts: tuple[str, ...] = ()
    agreed: bool = False
    officer: str | None = None


FULL = Settings(
    text='say "x" # \\ \n[table]\nnumber = "9"',
    number=Decimal("1E-7"),
    parts=("a", '"b'),
    agreed=True,
)


def written(file):
    return read_settings(file, Settings, hint="none")


@pytest.mark.parametrize("settings", [FULL, FULL.model_copy(update={"officer": "ab", "parts": ()})])
def test_settings_read_back_as_they_were_whatever_their_text_holds(tmp_path, settings):
    write_settings(tmp_path / "f.toml", settings, heading="one\ntwo")
    assert written(tmp_path / "f.toml") == settings
    assert (tmp_path / "f.toml").read_text().startswith("# one\n# two\ntext = ")


def test_comments_of_people_stay_when_a_value_changes(tmp_path):
    file = tmp_path / "f.toml"
    write_settings(file, FULL, heading="one")
    lines = file.read_text().replace("agreed", "# asked J. on Monday\nagreed").replace('"a"', "'a'")
    file.write_text(lines + "# seen by K.\n")
    changed = FULL.model_copy(update={"agreed": False, "officer": "ab"})
    write_settings(file, changed, heading="another")
    assert written(file) == changed
    found = file.read_text()
    assert "# asked J. on Monday\nagreed = false" in found
    assert "# seen by K.\n" in found
    assert "another" not in found


def test_value_that_is_gone_is_gone_from_the_file(tmp_path):
    file = tmp_path / "f.toml"
    write_settings(file, FULL.model_copy(update={"officer": "ab"}), heading="one")
    write_settings(file, FULL, heading="one")
    assert written(file) == FULL
    assert "officer" not in file.read_text()
