"""What the demos say of an earlier run: results that are there are never taken for new ones."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "examples" / "digits" / "taken_up.py"


@pytest.fixture
def say_taken_up():
    spec = importlib.util.spec_from_file_location("taken_up", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.say_taken_up


def test_first_run_takes_up_nothing_and_says_nothing(say_taken_up, tmp_path, capsys):
    (tmp_path / "released").mkdir()  # an empty folder is no bundle
    say_taken_up(tmp_path, {"a bundle": tmp_path / "released", "samples": tmp_path / "x.json"})
    assert capsys.readouterr().err == ""


def test_second_run_names_what_it_takes_up_and_what_is_left(say_taken_up, tmp_path, capsys):
    (tmp_path / "released" / "bundle").mkdir(parents=True)
    say_taken_up(tmp_path, {"a bundle": tmp_path / "released", "samples": tmp_path / "x.json"})
    said = capsys.readouterr().err
    assert "and not made again: a bundle." in said
    assert "Still to be made: samples." in said
    assert "to start afresh" in said
