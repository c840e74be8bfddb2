"""Plants a bug in a copy of a real function's source, wherever that function is used."""

import inspect
import textwrap
from collections.abc import Callable
from types import CodeType
from typing import Any


def plant(monkeypatch: Any, function: Callable[..., Any], *changes: tuple[str, str]) -> None:
    """Gives `function` the code of its own source after `changes`, each `(old, new)`.

    The function object stays the one that everybody imported.
    """
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        if source.count(old) != 1:
            raise AssertionError(f"{function.__qualname__} holds {old!r} {source.count(old)} times")
        source = source.replace(old, new)
    put_in_place(monkeypatch, function, source)


def put_in_place(monkeypatch: Any, function: Callable[..., Any], source: str) -> None:
    """Gives `function` the code of `source`."""
    monkeypatch.setattr(function, "__code__", _code(source, function))


def _code(source: str, function: Callable[..., Any]) -> CodeType:
    compiled = compile(source, inspect.getfile(function), "exec")
    own = function.__code__
    for constant in compiled.co_consts:
        if isinstance(constant, CodeType) and constant.co_name == own.co_name:
            if constant.co_freevars != own.co_freevars:
                raise AssertionError(f"{function.__qualname__} closes over other names now")
            return constant
    raise AssertionError(f"{function.__qualname__} is not in its own source")
