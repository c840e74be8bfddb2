"""The site's half of the exchange over Flower: it answers what the coordinator asks for.

It runs in a process of the SuperNode, which needs to read `outbox/released` and to write one
folder for receipts. It has no key and reads no image. Both paths come from the site's own
`--node-config`, never from a message:

    --node-config 'released="/srv/hospital-a/outbox/released" receipts="/srv/ddm-receipts"'

An answer that is an error carries a code and nothing else: what went wrong here is written here.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before anything can import flwr
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from ddm_fed import console
from ddm_fed.errors import DdmFedError, FileSetError, MachineError, MalformedError, SizeError
from ddm_fed.exchange.flower import (
    ANSWER,
    DATA,
    MAX_MANIFEST_BYTES,
    MAX_OFFERED,
    MAX_PART_BYTES,
    PART,
    PROTOCOL,
    RECEIPT,
    STAT,
    missing_flower,
    require_flower,
)
from ddm_fed.storage.files import write_atomically
from sites.outbox.released import Released, read_released

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
except ModuleNotFoundError:
    raise missing_flower() from None

_DIGEST = re.compile("[0-9a-f]{64}")


class Places(NamedTuple):
    """The only two folders this app touches.

    Attributes:
        released: Read from: `outbox/released` of the site.
        receipts: Written to: a folder for receipts, and nothing else.
    """

    released: Path
    receipts: Path


Find = Callable[[Context], Places]
Work = Callable[[RecordDict, Places], RecordDict]


def configured(context: Context) -> Places:
    """Returns the folders that the site named when it started its SuperNode.

    Raises:
        FileSetError: one is not an absolute path of a folder.
    """
    found = {}
    for name in Places._fields:
        folder = Path(str(context.node_config.get(name, "")))
        if not folder.is_absolute() or not folder.is_dir():
            raise FileSetError(
                f"`{name}` in --node-config is not an absolute path of a folder",
                hint='start the SuperNode with --node-config \'released="…" receipts="…"\'',
            )
        found[name] = folder
    return Places(**found)


def make_app(find: Find = configured) -> ClientApp:
    """Returns the app that a SuperNode of this site runs.

    Args:
        find: Which folders belong to a node; a simulation has many nodes in one process.

    Raises:
        StateError: the installed Flower is not the tested one.
    """
    require_flower()
    app = ClientApp()
    for action, work in ((STAT, _stat), (PART, _part), (RECEIPT, _receipt)):
        app.query(action)(_answering(work, find))
    return app


def _answering(work: Work, find: Find) -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        try:
            content = work(message.content, find(context))
        except DdmFedError as error:
            console.show_error(error)
            content = _refusal(error.code)
        except OSError as error:
            console.say(f"the operating system refused: {error}")
            content = _refusal(MachineError.code)
        return Message(content, reply_to=message)

    return answer


def _refusal(code: str) -> RecordDict:
    return RecordDict({ANSWER: ConfigRecord({"protocol": PROTOCOL, "refused": code})})


def _stat(_: RecordDict, places: Places) -> RecordDict:
    """Answers with the manifests of what is released and has no receipt yet, oldest first."""
    offered: dict[str, bytes] = {}
    for bundle in _waiting(places):
        try:
            released = read_released(bundle)
        except DdmFedError as error:  # one that is damaged does not hold up the others
            console.show_error(error)
            continue
        if len(offered) < MAX_OFFERED:
            offered[released.digest] = released.envelope
    data = ArrayRecord({digest: _array(envelope) for digest, envelope in offered.items()})
    return RecordDict({ANSWER: ConfigRecord({"protocol": PROTOCOL}), DATA: data})


def _waiting(places: Places) -> list[Path]:
    bundles = [
        folder
        for folder in places.released.iterdir()
        if _DIGEST.fullmatch(folder.name)
        and not (places.receipts / f"{folder.name}.dsse.json").exists()
    ]
    return sorted(bundles, key=lambda folder: (folder.stat().st_mtime_ns, folder.name))


def _part(content: RecordDict, places: Places) -> RecordDict:
    """Answers with the bytes that were asked for, of a bundle that is released."""
    asked = content.config_records[PART]
    offset, length = _number(asked, "offset"), _number(asked, "length")
    if length > MAX_PART_BYTES:
        raise SizeError(
            f"{length} bytes were asked for at once, {MAX_PART_BYTES} are allowed",
            hint="the coordinator has to ask for smaller parts: `part-mib`",
        )
    released = _find(places, asked)
    with released.reading() as reader:
        data = reader.read(offset, length)
    facts = ConfigRecord({"protocol": PROTOCOL, "offset": offset})
    return RecordDict({ANSWER: facts, DATA: ArrayRecord({released.digest: _array(data)})})


def _receipt(content: RecordDict, places: Places) -> RecordDict:
    """Keeps a receipt for something released, for `ddm-site submit` to verify and collect."""
    released = _find(places, content.config_records[RECEIPT])
    record = content.array_records[DATA]
    data = record[released.digest].data if released.digest in record else b""
    if not 0 < len(data) <= MAX_MANIFEST_BYTES:
        raise SizeError(
            f"a receipt of {len(data)} bytes was sent, {MAX_MANIFEST_BYTES} are allowed",
            hint="the coordinator runs another program, or does not tell the truth",
        )
    target = places.receipts / f"{released.digest}.dsse.json"
    write_atomically(target, data)
    console.say(f"{released.digest[:16]}… has a receipt: {target}")
    return RecordDict({ANSWER: ConfigRecord({"protocol": PROTOCOL, "kept": released.digest})})


def _find(places: Places, asked: ConfigRecord) -> Released:
    """Returns the bundle that was asked for; its name is a digest, so it leads nowhere else."""
    digest = asked.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise MalformedError("a bundle was asked for by a name that is no digest", hint=_HINT)
    folder = places.released / digest
    if not folder.is_dir():
        raise FileSetError(f"{digest[:16]}… is not released", hint=_HINT)
    released = read_released(folder)
    if released.digest != digest:
        raise FileSetError(
            f"the folder {digest[:16]}… holds another bundle", hint="restore it from backup"
        )
    return released


_HINT = "the coordinator asks for what this site does not offer; compare versions"


def _number(asked: ConfigRecord, name: str) -> int:
    value = asked.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedError(f"`{name}` is not a whole number", hint=_HINT)
    return value


def _array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype="ddm.bytes", data=data)
