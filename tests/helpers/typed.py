"""Commands as people type them, held against the commands and options that there are."""

import re

import click
import typer

import coordinator.cli.main
import sites.cli.main

APPS = {
    "ddm-site": typer.main.get_command(sites.cli.main.app),
    "ddm-coord": typer.main.get_command(coordinator.cli.main.app),
}


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """Returns the command that `words` name, and what follows its name.

    Raises:
        LookupError: there is no such command.
    """
    found, rest = APPS[words[0]], words[1:]
    while isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in found.commands:
            raise LookupError(f"{' '.join(words)}: no command {rest[0]}")
        found, rest = found.commands[rest[0]], rest[1:]
    return found, rest


def problems_with(words: list[str], *, whole: bool) -> list[str]:
    """Returns what is wrong with a command as it is written.

    Args:
        words: What is typed.
        whole: Whether it is meant to be run, so that nothing it needs may be missing.
    """
    try:
        command, rest = resolved(words)
    except LookupError as error:
        return [str(error)]
    said = " ".join(words)
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    options = [word.partition("=")[0] for word in rest if re.match("--[a-z]", word)]
    found = [f"{said}: no option {option}" for option in options if option not in known]
    if found or not whole or isinstance(command, click.Group):
        return found
    context = click.Context(command, info_name=said)
    try:
        given, left, _ = command.make_parser(context).parse_args(list(rest))
    except click.UsageError as error:
        return [f"{said}: {error.message}"]
    missing = [p.name for p in command.params if p.required and given.get(p.name) in (None, ())]
    return [f"{said}: lacks {name}" for name in missing] + (
        [f"{said}: too much: {left}"] * bool(left)
    )
