"""The commands and options of both programs, frozen: one is added on purpose, or not at all.

To add or remove one on purpose: `python tests/repository/test_command_list.py` writes
`commands.txt` anew, and goes into the same commit.
"""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

import coordinator.cli.main
import sites.cli.main

FROZEN = Path(__file__).with_name("commands.txt")
PROGRAMS = {"ddm-site": sites.cli.main.app, "ddm-coord": coordinator.cli.main.app}
ON_PURPOSE = f"run `python tests/repository/{Path(__file__).name}` if it was meant, and commit"


def commands_of(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yields every command below `command` that does something, in the order of the help."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for word in command.list_commands(click.Context(command)):
        yield from commands_of(f"{name} {word}", command.commands[word])


def line_of(name: str, command: click.Command) -> str:
    """Returns a command as it is typed, with all it takes."""
    words = [
        param.human_readable_name if isinstance(param, click.Argument) else "/".join(param.opts)
        for param in command.params
    ]
    return " ".join([name, *words])


def everything() -> list[tuple[str, click.Command]]:
    return [
        found
        for name, app in PROGRAMS.items()
        for found in commands_of(name, typer.main.get_command(app))
    ]


def test_commands_and_options_are_those_of_the_frozen_list():
    frozen = FROZEN.read_text("utf-8").splitlines()
    present = [line_of(name, command) for name, command in everything()]
    assert present == frozen, ON_PURPOSE


@pytest.mark.parametrize(("name", "command"), everything(), ids=[n for n, _ in everything()])
def test_help_says_what_each_argument_and_option_means(name, command):
    assert command.help
    # Typer's argument keeps its help although click 8.5 takes it away
    silent = [param.name for param in command.params if not getattr(param, "help", None)]
    assert silent == []


def test_both_programs_share_their_options_of_sampling_and_evaluating():
    lines = {name: line_of(name, command).split() for name, command in everything()}
    own = {"--site", "--coordinator", "--root"}
    own |= {"--remote", "--remote-timeout"}  # only the coordinator's certificate is let in
    for command in ("sample", "evaluate", "keygen"):
        here, there = lines[f"ddm-site {command}"][2:], lines[f"ddm-coord {command}"][2:]
        assert [w for w in here if w not in own] == [w for w in there if w not in own]


# `export ENSEMBLE` is `sign-model` today; `export` has other forms
@pytest.mark.parametrize(
    "name", [("ddm-coord", "audit"), ("ddm-coord", "export", "ensemble")], ids=" ".join
)
def test_retired_command_is_unknown(name, capsys):
    program, *words = name
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(PROGRAMS[program])(words)
    assert ended.value.code == 2
    assert "No such command" in capsys.readouterr().err


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{line_of(*found)}\n" for found in everything()), "utf-8")
