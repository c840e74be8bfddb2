"""How a program is put together from its commands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import click
import typer
import typer.core
import typer.main

from ddm_fed import console
from ddm_fed._version import __version__
from ddm_fed.errors import guess


class _Argument(typer.core.TyperArgument):
    """An argument that keeps its help, which click 8.5 takes from arguments of Typer 0.20."""

    def __init__(self, *, help: str | None = None, **rest: Any) -> None:  # noqa: A002
        super().__init__(help=help, **rest)
        self.help = help


setattr(typer.main, "TyperArgument", _Argument)  # noqa: B010
_none_of = click.Choice.get_invalid_choice_message


def _guess_choice(choice: click.Choice[Any], value: Any, ctx: click.Context | None) -> str:
    """Returns what click says of a word that is none of its choices, and the nearest of these."""
    return _none_of(choice, value, ctx).removesuffix(".") + (
        guess(str(value), choice.choices) or "."
    )


# click itself guesses at commands and options
setattr(click.Choice, "get_invalid_choice_message", _guess_choice)  # noqa: B010


def make_program(
    name: str,
    panels: Mapping[str, Sequence[Callable[..., None] | typer.Typer]],
    *,
    description: str,
    epilog: str,
) -> typer.Typer:
    """Returns a program whose help lists its commands in the order given.

    Args:
        name: What is typed.
        panels: Commands and groups of commands under the title of their panel. A command is called
            like its function: `import_` is `import`, `sign_model` is `sign-model`.
        description: What the program is for.
        epilog: An example, below the commands.
    """
    commands = [(panel, command) for panel, group in panels.items() for command in group]
    order = [_name(command) for _, command in commands]

    class InOrder(typer.core.TyperGroup):
        """Lists groups among commands, where Typer would list them last."""

        def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
            return order

    app = typer.Typer(
        name=name,
        cls=InOrder,
        no_args_is_help=True,
        rich_markup_mode="rich",
        suggest_commands=False,  # click does, since 8.5
        pretty_exceptions_enable=False,
        help=description,
        epilog=epilog,
    )
    for panel, command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
        else:
            app.command(_name(command), rich_help_panel=panel)(command)

    def show_version(asked: bool) -> None:
        if asked:
            typer.echo(f"{name} {__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=show_version, is_eager=True, help="Show the version."
            ),
        ] = False,
    ) -> None:
        pass

    return app


def _name(command: Callable[..., None] | typer.Typer) -> str:
    if isinstance(command, typer.Typer):
        return str(command.info.name)
    return command.__name__.strip("_").replace("_", "-")


def run_program(app: typer.Typer, role: str) -> None:
    """Runs a program; errors end with exit status 1, wrong usage with 2.

    `role` is the extra that brings all it needs.
    """
    typer.core.HAS_RICH = console.has_room_for_tables()
    console.run(app, role=role)
