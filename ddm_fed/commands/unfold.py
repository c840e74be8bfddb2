"""Options that several commands take together, written down once as the fields of a dataclass."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, get_type_hints


def unfolds(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator of a command that takes `flags`, an instance of the dataclass `kind`.

    The decorated command takes each field of `kind` instead, with its type and its default, so that
    Typer makes an option of each.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own, fields = signature(command), signature(kind)
        kept = {name: item for name, item in own.parameters.items() if name != "flags"}
        hints = get_type_hints(command, include_extras=True) | get_type_hints(
            kind, include_extras=True
        )

        def unfolded(**given: Any) -> None:
            flags = kind(**{name: given.pop(name) for name in fields.parameters})
            command(**given, flags=flags)

        parameters = [
            item.replace(kind=Parameter.KEYWORD_ONLY)
            for item in (*kept.values(), *fields.parameters.values())
        ]
        unfolded.__name__, unfolded.__doc__ = command.__name__, command.__doc__
        unfolded.__annotations__ = {item.name: hints[item.name] for item in parameters}
        unfolded.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return unfolded

    return decorate
