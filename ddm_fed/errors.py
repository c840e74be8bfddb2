"""Every error a user can meet: what happened, why, and what to do about it.

    DdmFedError
    ├── InputError              what a person gave us cannot be used
    │   ├── PlanError           DDM101
    │   ├── DataError           DDM102
    │   ├── KeyFileError        DDM103
    │   ├── StateError          DDM104
    │   │   └── BusyError       DDM106
    │   ├── MachineError        DDM105
    │   └── OptionError         DDM107  ends with exit status 2
    ├── RefusedError            what arrived must not be trusted
    │   ├── MalformedError      DDM201
    │   ├── SignatureError      DDM202
    │   ├── UnknownSignerError  DDM203
    │   ├── PlanMismatchError   DDM204
    │   ├── FileSetError        DDM205
    │   │   └── SizeError       DDM219
    │   ├── DigestError         DDM206
    │   ├── WeightsError        DDM207
    │   │   └── ValuesError     DDM218
    │   ├── ReplayError         DDM208
    │   ├── ExpiredError        DDM209
    │   ├── PolicyError         DDM210
    │   ├── RosterError         DDM211
    │   ├── WeakKeyError        DDM212
    │   ├── EquivocationError   DDM213
    │   ├── RevokedKeyError     DDM214
    │   ├── CountersignatureError DDM215
    │   ├── LogError            DDM216
    │   └── RollbackError       DDM217
    ├── BudgetError             DDM301  privacy that may not be spent
    ├── MechanismError          DDM302  noise that is not what it promises
    ├── CheckpointError         DDM401  a training state that cannot be continued
    ├── DivergedError           DDM402  a training whose numbers are not finite
    └── ExchangeError           DDM501  a bundle that cannot travel just now
        ├── OffsetError         DDM502
        └── QuotaError          DDM503

`docs/errors.md` explains each code; a test holds the two lists together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ClassVar, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
MAX_MESSAGE = 4000
MAX_DETAILS = 100


def printable(text: str) -> str:
    """Returns `text` as it may be shown: control characters and broken Unicode are escaped.

    Names and keys that a peer chose end up in messages, and must not steer a terminal.
    """
    whole = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)


def guess(word: str, known: Iterable[str]) -> str:
    """Returns `, did you mean ...?` where one of `known` is close to `word`, else nothing.

    The one place that guesses; of commands and options click does so itself.
    """
    import difflib  # hardly ever needed, and every command imports this module

    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), names, n=1)
    return f", did you mean `{printable(names[near[0]])}`?" if near else ""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts `path` into what the operating system refuses inside the block without saying where.

    A full disk, for one, is an error of a write, which knows no name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def names_its_path(
    function: Callable[Concatenate[Path, P], R],
) -> Callable[Concatenate[Path, P], R]:
    """Returns `function`, which takes a path first, with `naming` around it."""

    @wraps(function)
    def named(path: Path, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with naming(path):
            return function(path, *args, **kwargs)

    return named


class DdmFedError(Exception):
    """An error with a stable `code` and a `hint`; never carries a private value or a key.

    `details` are several things that are wrong at once; people are shown each on a line.
    """

    code: ClassVar[str] = "DDM000"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str, details: Sequence[str] = ()) -> None:
        shown = printable(message[:MAX_MESSAGE])
        super().__init__(shown + " …" if len(message) > MAX_MESSAGE else shown)
        self.hint = hint
        self.details = tuple(printable(text[:MAX_MESSAGE]) for text in details[:MAX_DETAILS])

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.message}\n\nhint: {self.hint}"

    @property
    def message(self) -> str:
        """The sentence without code and hint, with all details."""
        return ": ".join(filter(None, (self.title, "; ".join(self.details))))

    @property
    def title(self) -> str:
        """The sentence without code, hint and details."""
        return str(self.args[0])


class InputError(DdmFedError):
    """What a person gave us cannot be used."""


class PlanError(InputError):
    """The plan file is not valid."""

    code = "DDM101"


class DataError(InputError):
    """The images cannot be used as they are."""

    code = "DDM102"


class KeyFileError(InputError):
    """A private key file is missing, readable by others, or cannot be opened."""

    code = "DDM103"


class StateError(InputError):
    """A command was run before the step it builds on, or on the wrong folder."""

    code = "DDM104"


class BusyError(StateError):
    """Another process is at work in the same folder."""

    code = "DDM106"


class MachineError(InputError):
    """The operating system refused: no room, no permission, a broken disk."""

    code = "DDM105"


class OptionError(InputError):
    """An option of a command has a value that cannot be used, or is missing: wrong usage.

    To be raised where another command line is the remedy, not another command before it.
    """

    code = "DDM107"
    exit_status = 2


# What not everybody needs, by the name of its module, and the extra that brings it: None is that of
# the role, `site` or `coordinator`. What only one feature needs says so itself.
EXTRA_OF: dict[str, str | None] = {
    "diffusers": "diffusers",
    "jinja2": "report",
    "matplotlib": "report",
    "sklearn": "report",
    **dict.fromkeys(("braceexpand", "fsspec", "google", "grpc", "grpc_health", "h11")),
    **dict.fromkeys(("opacus", "opendp", "prometheus_client", "tenacity", "tomlkit", "uvicorn")),
}


def not_installed(error: ModuleNotFoundError, role: str) -> StateError | None:
    """Returns what to say of a package that was left out when this was installed, or None.

    Args:
        error: What an import raised.
        role: The extra with all that this program may need.
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    return StateError(
        f"this needs `{module}`, which is not installed: only what verifies and samples is",
        hint=f"pip install 'ddm-fed[{EXTRA_OF[module] or role}]'; 'ddm-fed[site]' and "
        "'ddm-fed[coordinator]' bring all that a role needs, 'ddm-fed[all]' everything",
    )


def not_written(path: Path, error: Exception) -> MachineError:
    """Returns the error of a file that a library could not write, in the library's own words."""
    return MachineError(
        f"{path} cannot be written: {error}",
        hint="make room or correct the permissions, then run the same command again: it goes on "
        "from what is whole",
    )


class RefusedError(DdmFedError):
    """Something that arrived is not trusted; nothing of it was used."""


class MalformedError(RefusedError):
    """Bytes do not have the form their type demands."""

    code = "DDM201"


class SignatureError(RefusedError):
    """A signature does not hold over the bytes it came with."""

    code = "DDM202"


class UnknownSignerError(RefusedError):
    """No signature comes from a key that may sign this."""

    code = "DDM203"


class PlanMismatchError(RefusedError):
    """The document belongs to another plan, roster or federation."""

    code = "DDM204"


class FileSetError(RefusedError):
    """A folder does not hold exactly the regular files it was signed with."""

    code = "DDM205"


class DigestError(RefusedError):
    """A file's bytes are not the bytes that were signed."""

    code = "DDM206"


class WeightsError(RefusedError):
    """A tensor file does not hold the tensors the plan asks for, or holds values nobody can use."""

    code = "DDM207"


class ReplayError(RefusedError):
    """A submission is older than one that was already admitted."""

    code = "DDM208"


class ExpiredError(RefusedError):
    """A document is not valid at this time."""

    code = "DDM209"


class PolicyError(RefusedError):
    """A submission does not satisfy the plan's privacy policy, or its arithmetic does not hold."""

    code = "DDM210"


class RosterError(RefusedError):
    """The chain of rosters does not lead from the pinned root key to this roster."""

    code = "DDM211"


class WeakKeyError(RefusedError):
    """A public key with which a signature would prove nothing."""

    code = "DDM212"


class EquivocationError(RefusedError):
    """A site signed two different submissions with one sequence number: evidence against it."""

    code = "DDM213"


class RevokedKeyError(RefusedError):
    """A key signed outside the range of the log in which it may sign."""

    code = "DDM214"


class CountersignatureError(RefusedError):
    """A signature that the site's own policy requires is missing."""

    code = "DDM215"


class LogError(RefusedError):
    """The transparency log does not hold what it must, or shows two histories."""

    code = "DDM216"


class RollbackError(RefusedError):
    """What is offered is older than what was seen from the same source before."""

    code = "DDM217"


class ValuesError(WeightsError):
    """A tensor holds NaN, infinity, or values beyond the plan's bounds."""

    code = "DDM218"


class SizeError(FileSetError):
    """A submission is larger than the plan allows."""

    code = "DDM219"


class BudgetError(DdmFedError):
    """The release would spend more privacy than the plan or the site's own policy allows."""

    code = "DDM301"


class MechanismError(DdmFedError):
    """Private training does not keep its promise, on made-up data or in a step that was taken."""

    code = "DDM302"


class CheckpointError(DdmFedError):
    """A training checkpoint belongs to another run, or is damaged."""

    code = "DDM401"


class DivergedError(DdmFedError):
    """Training ended in numbers that are not finite: there is nothing to release."""

    code = "DDM402"


class ExchangeError(DdmFedError):
    """The other side cannot be reached, or does not answer as it must."""

    code = "DDM501"


class OffsetError(ExchangeError):
    """An upload went on from another byte than where the coordinator stands."""

    code = "DDM502"


class QuotaError(ExchangeError):
    """The coordinator takes no more just now: no room, or too much from one sender at once."""

    code = "DDM503"
