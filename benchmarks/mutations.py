"""Is any of 10,000 altered documents admitted, or does one end in a traceback?

    python benchmarks/mutations.py [--count N] [--seed S]

Builds the tests' tiny federation once, alters what it signed, and hands every mutant to the real
verifier. A mutant must be refused with an error of this program. It is *harmless* if it is accepted
and everything that was signed is unchanged: white space around it, an unknown further signature. A
mutant that its own signer signed again is *its word* if accepted: no verifier can know better.
Last answer: none of 10,000; see results/mutations_cpu_20261123.md.
"""

import argparse
import base64
import copy
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import safetensors.numpy

from ddm_fed.bundle.submission import read_submission
from ddm_fed.bundle.verify import ENVELOPE_FILE, EXPERT_FILE, ROUTER_FILE, verify_bundle
from ddm_fed.ensemble.folder import STATEMENT_FILE, verify_ensemble
from ddm_fed.ensemble.model_signing import SIGNATURE_FILE
from ddm_fed.errors import DdmFedError, RefusedError, StateError
from ddm_fed.mixture import release_tensors
from ddm_fed.models import expert_tensors
from ddm_fed.records import IN_TOTO_PAYLOAD, now, sha256_hex
from ddm_fed.signing import PLAN_PAYLOAD, ROSTER_PAYLOAD, SigningKey, seal
from ddm_fed.storage.blob_store import BlobStore
from ddm_fed.storage.tensors import DEFAULT_BOUNDS, check_tensor_file
from ddm_fed.trust import establish_chain, establish_trust, open_checkpoint
from ddm_fed.trust.log import CHECKPOINT_FILE, LEAVES_FILE, read_log
from ddm_fed.trust.published import PLAN_FILE, roster_files

SLOWEST_S = 1.0
GROWTH_MIB = 48
HARMLESS, OWN_WORD, ADMITTED = "harmless", "its word", "ADMITTED"
RAW = ("NaN", "1e999", "1.5", "01", "-0", "9" * 400, "[" * 5000, "[" * 3000 + "]" * 3000, "\x00")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**53 - 1, 2**53, 2**64, "", " ", "\ud800", "\x00\x1b[2J",
    "a" * 70000,
    "../x", "1e400", "-1", "NaN", "1E-400", "0", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z",
    "2026-11-23", [], {}, [[]], "0" * 64, "f" * 64,
)  # fmt: skip


class Dice:
    """A seeded source of choices."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def below(self, limit: int) -> int:
        """Returns a number from 0 to before `limit`."""
        return int(self._generator.integers(max(1, limit)))

    def of(self, items):
        """Returns one of `items`."""
        return items[self.below(len(items))]

    def bytes(self, limit: int) -> bytes:
        """Returns 1 to `limit` bytes."""
        return self._generator.bytes(1 + self.below(limit))


# Bytes


def mutate_bytes(data: bytes, dice: Dice, others: list[bytes], *, near: int = 1 << 30) -> bytes:
    """Alters bytes, mostly among the first `near`."""
    span = min(len(data), near)
    at = dice.below(span)
    end = min(len(data), at + 1 + dice.below(40))
    match dice.below(11):
        case 0 | 1:
            return data[:at] + bytes([data[at] ^ (1 << dice.below(8))]) + data[at + 1 :]
        case 2:
            return data[:at] + dice.bytes(8) + data[at:]
        case 3:
            return data[:at] + data[end:]
        case 4:
            return data[:at]
        case 5:
            return data[:end] + data[at:]
        case 6:
            return data + dice.of([dice.bytes(20), b" ", b"\n", b"\x00", data])
        case 7:
            return dice.of(others)
        case 8:
            return data[:at] + dice.of(others)[at:]
        case 9:
            return dice.of([b"\xef\xbb\xbf", b" ", b"\n", b"\x00", b"\xff"]) + data
        case _:
            return data[:at] + bytes(end - at) + data[end:]


# JSON


def containers(value: Any) -> list[Any]:
    """Returns every object and array in `value`, itself included."""
    found = [value] if isinstance(value, dict | list) else []
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            found += containers(item)
    return [item for item in found if item]


def mutate_json(value: Any, dice: Dice) -> bytes:
    """Returns the text of `value` with one alteration of its structure or of a value."""
    value = copy.deepcopy(value)
    holder = dice.of(containers(value) or [[0]])
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key, other = dice.of(keys), dice.of(keys)
    replaced: dict[str, str] = {}
    choice = dice.below(11)
    if choice == 0:
        del holder[key]
    elif choice == 1:
        holder[key], holder[other] = holder[other], holder[key]
    elif choice in {2, 3}:
        holder[key] = dice.of(ODD)
    elif choice == 4:
        holder[key], replaced = "@@raw@@", {'"@@raw@@"': dice.of(RAW)}
    elif choice == 5 and isinstance(holder, dict):
        holder["@@key@@"] = dice.of([holder[key], dice.of(ODD)])
        replaced = {'"@@key@@"': json.dumps(dice.of([key, key.upper(), "extra"]))}
    elif choice == 6 and isinstance(holder, dict):
        holder[dice.of([key.upper(), key + " ", "", "x"])] = holder.pop(key)
    elif choice in {5, 6}:
        holder.insert(dice.below(len(holder) + 1), copy.deepcopy(dice.of(holder)))
    elif choice == 7:
        holder[key] = dice.of([[holder[key]], {"x": holder[key]}, str(holder[key])])
    else:
        holder[key] = edited(holder[key], dice)
    text = json.dumps(value, separators=(",", ":"), sort_keys=bool(dice.below(4)))
    for mark, raw in replaced.items():
        text = text.replace(mark, raw)
    return text.encode()


def edited(item: Any, dice: Dice) -> Any:
    """Returns a value near `item`."""
    if isinstance(item, bool) or item is None:
        return not item
    if isinstance(item, int):
        return dice.of([item + 1, item - 1, -item, item * 2, item ^ 1])
    if isinstance(item, str) and item:
        at = dice.below(len(item))
        return item[:at] + chr(32 + dice.below(95)) + item[at + dice.below(2) :]
    if isinstance(item, list):
        return dice.of([item[::-1], item + item, item[1:]])
    return dice.of(ODD)


def mutate_envelope(data: bytes, dice: Dice, others: list[bytes], outsider: SigningKey) -> bytes:
    """Alters an envelope as bytes, as JSON, in its payload or in its signatures."""
    choice = dice.below(12)
    if choice < 3:
        return mutate_bytes(data, dice, others)
    envelope = json.loads(data)
    if choice == 3:
        return mutate_json(envelope, dice)
    payload = base64.b64decode(envelope["payload"])
    first, another = envelope["signatures"][0], json.loads(dice.of(others))
    if choice < 7:  # the payload is edited, the signature kept
        inner = mutate_json(json.loads(payload), dice)
        if choice == 6:
            inner = mutate_bytes(payload, dice, others)
        envelope["payload"] = base64.b64encode(inner).decode()
    elif choice == 7:
        text, name = envelope["payload"], dice.of(["payload", "sig"])
        holder = envelope if name == "payload" else first
        text = holder[name]
        holder[name] = dice.of([
            text.rstrip("="), text + "=", text + "\n", " " + text, text.replace("+", "-"),
            text.replace("/", "_"), text[:-5] + text[-4:], text + "AAAA", text + "é", "",
            text[:-2] + chr(ord(text[-2]) ^ 1) + text[-1],
        ])  # fmt: skip
    elif choice == 8:
        forged = json.loads(seal(payload, envelope["payloadType"], [outsider]))["signatures"][0]
        forged["keyid"] = dice.of([forged["keyid"], first["keyid"], "", "x" * 300])
        envelope["signatures"] = dice.of([[forged], [first, forged], [forged, first]])
    elif choice == 9:
        envelope["signatures"] = dice.of(
            [[], [first, first], [first] * 16, [first] * 17, another["signatures"], [first, 1]]
        )
    elif choice == 10:
        name = dice.of(["payload", "payloadType", "signatures"])
        envelope[name] = another[name]
    else:
        first["keyid"] = dice.of(["", "unknown", another["signatures"][0]["keyid"], "\x1b[2J"])
        return json.dumps(envelope, indent=dice.of([None, 1, 4])).encode()
    return json.dumps(envelope).encode()


# Folders


class Folder:
    """A folder whose files are altered and put back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
        self._touched: set[str] = set()

    def put(self, name: str, data: bytes) -> None:
        """Writes a file in the place of whatever is there."""
        self.remove(name)
        (self.path / name).write_bytes(data)

    def remove(self, name: str) -> Path:
        """Removes whatever is at `name`."""
        self._touched.add(name)
        file = self.path / name
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
        return file

    def restore(self) -> None:
        """Puts back what was altered."""
        for name in sorted(self._touched):
            self.remove(name)
            if name in self.files:
                (self.path / name).write_bytes(self.files[name])
        self._touched.clear()

    def unchanged(self, *, but: frozenset[str] = frozenset()) -> bool:
        """Returns whether all files but these have their first content."""
        return all(
            name in but or (self.path / name).read_bytes() == self.files.get(name)
            for name in self._touched
        )

    def rearrange(self, dice: Dice, others: list[bytes]) -> None:
        """Alters which files there are."""
        names = sorted(self.files)
        name, other = dice.of(names), dice.of(names)
        match dice.below(9):
            case 0:
                self.remove(name)
            case 1:
                self.put(name, self.files[other])
                self.put(other, self.files[name])
            case 2:
                self.put(name, dice.of(others))
            case 3:
                extra = dice.of(["x", ".x", SIGNATURE_FILE, "roster-0003.dsse.json", "é\n\x1b[2J"])
                self.put(dice.of([extra, f"{name}.bak"]), dice.of(others))
            case 4:
                self.remove(name).symlink_to(dice.of(["/etc/hostname", "/nonexistent", "/", "."]))
            case 5:
                self.remove(name).mkdir()
            case 6:
                os.mkfifo(self.remove(name))
            case 7:
                self.remove(name)
                self.put(
                    str(Path(name).with_name(dice.of(["X", Path(name).name + " "]))),
                    self.files[name],
                )
            case _:
                self.put(name, b"")


# The campaign


class World:
    """What is altered, and what it said before."""

    def __init__(self, stages: Any, scratch: Path) -> None:
        fed = stages.submitted
        self.trust, self.moment = fed.trust, now()
        self.scratch = scratch
        self.bundle = Folder(
            Path(shutil.copytree(fed.arrival("hospital-a"), scratch / "bundle", symlinks=True))
        )
        self.ensemble = Folder(Path(shutil.copytree(stages.ensemble, scratch / "ensemble")))
        self.log = Folder(scratch / "log")
        self.log.path.mkdir()
        for name in (LEAVES_FILE, CHECKPOINT_FILE):
            self.log.put(name, self.ensemble.files[name])
        self.log = Folder(self.log.path)
        (scratch / "blobs").mkdir(mode=0o700)
        self.store = BlobStore(scratch / "blobs")
        self.outsider = SigningKey.generate()
        self.site_key, self.root_key = fed.key("hospital-a"), fed.root_key()
        self.coordinator_key = fed.coordinator_key()
        self.rosters = [self.ensemble.files[name] for name in roster_files(self.ensemble.path)]
        self.plan = self.ensemble.files[PLAN_FILE]
        self.envelope = self.bundle.files[ENVELOPE_FILE]
        self.documents = [
            data for name, data in self.ensemble.files.items() if name.endswith(".dsse.json")
        ]
        plan = self.trust.plan
        self.tables = {
            EXPERT_FILE: expert_tensors(plan.data, plan.expert.default),
            ROUTER_FILE: release_tensors(self.trust.plan),
        }
        self.verified = verify_bundle(self.bundle.path, self.trust, self.moment)
        self.assembled = verify_ensemble(self.ensemble.path, self.trust.root)
        self.genuine = {found.payload_sha256 for found in self.assembled.bundles}
        self.checkpoint = self.ensemble.files[CHECKPOINT_FILE]

    def alter(self, envelope: bytes, dice: Dice) -> bytes:
        """Returns the envelope altered, not signed again."""
        return mutate_envelope(envelope, dice, self.documents, self.outsider)

    def sign_again(self, envelope: bytes, kind: str, key: SigningKey, dice: Dice) -> bytes:
        """Returns the envelope with its payload altered and signed by `key`."""
        payload = base64.b64decode(json.loads(envelope)["payload"])
        for _ in range(1 + dice.below(2)):
            try:
                payload = mutate_json(json.loads(payload), dice)
            except (ValueError, TypeError, RecursionError):
                break
        return seal(payload, kind, [key])

    def restore(self) -> None:
        """Puts back everything that was altered."""
        for folder in (self.bundle, self.ensemble, self.log):
            folder.restore()
        for blob in self.store.folder.iterdir():
            blob.unlink()


def same(condition: bool) -> str:
    return HARMLESS if condition else ADMITTED


Case = Callable[[], str]


def submission_envelope(world: World, dice: Dice) -> Case:
    data = world.alter(world.envelope, dice)

    def run() -> str:
        _, sha256 = read_submission(data, world.trust.chain, what="it")
        return same(sha256 in world.genuine)  # alone, another site's genuine manifest is one too

    return run


def submission_again(world: World, dice: Dice) -> Case:
    data = world.sign_again(world.envelope, IN_TOTO_PAYLOAD, world.site_key, dice)
    world.bundle.put(ENVELOPE_FILE, data)

    def run() -> str:
        found = verify_bundle(world.bundle.path, world.trust, world.moment)
        ours = found.site == "hospital-a" and found.sha256 == world.verified.sha256
        return OWN_WORD if ours else ADMITTED

    return run


def check_bundle(world: World, store: BlobStore | None) -> Case:
    def run() -> str:
        found = verify_bundle(world.bundle.path, world.trust, world.moment, store=store)
        files = {name: sha256_hex(path.read_bytes()) for name, path in found.files.items()}
        unchanged = found.payload_sha256 == world.verified.payload_sha256
        return same(unchanged and files == world.verified.sha256)

    return run


def bundle_bytes(world: World, dice: Dice) -> Case:
    name = dice.of([ENVELOPE_FILE, EXPERT_FILE, ROUTER_FILE])
    data = world.bundle.files[name]
    near = dice.of([200, 1 << 30])
    changed = (
        world.alter(data, dice)
        if name == ENVELOPE_FILE
        else mutate_bytes(data, dice, world.documents, near=near)
    )
    world.bundle.put(name, changed)
    return check_bundle(world, dice.of([None, world.store]))


def bundle_folder(world: World, dice: Dice) -> Case:
    world.bundle.rearrange(dice, [*world.documents, *world.bundle.files.values()])
    return check_bundle(world, dice.of([None, world.store]))


def check_chain(world: World, rosters: list[bytes], accepted: str | None = None) -> Case:
    def run() -> str:
        found = establish_chain(world.trust.root, rosters)
        return accepted or same(found.sha256 == world.trust.chain.sha256)

    return run


def roster_bytes(world: World, dice: Dice) -> Case:
    rosters = list(world.rosters)
    if dice.below(10):
        index = dice.below(len(rosters))
        rosters[index] = world.alter(rosters[index], dice)
    else:  # not the chain without its newest: only who saw that one can miss it
        first, second = rosters
        rosters = dice.of(
            [[], [second], [second, first], [first, first], [first, second, second], [world.plan]]
        )
    return check_chain(world, rosters)


def roster_again(world: World, dice: Dice) -> Case:
    *before, newest = world.rosters
    forged = world.sign_again(newest, ROSTER_PAYLOAD, world.root_key, dice)
    return check_chain(world, [*before, forged], OWN_WORD)


def check_plan(world: World, plan: bytes, accepted: str | None = None) -> Case:
    def run() -> str:
        found = establish_trust(world.trust.root, world.rosters, plan)
        return accepted or same(found.plan_sha256 == world.trust.plan_sha256)

    return run


def plan_bytes(world: World, dice: Dice) -> Case:
    return check_plan(world, world.alter(world.plan, dice))


def plan_again(world: World, dice: Dice) -> Case:
    forged = world.sign_again(world.plan, PLAN_PAYLOAD, world.coordinator_key, dice)
    return check_plan(world, forged, OWN_WORD)


def mutate_note(data: bytes, dice: Dice) -> bytes:
    if dice.below(2):
        return mutate_bytes(data, dice, [b"\n\n", b"", data[::-1]])
    lines = data.split(b"\n")
    at = dice.below(len(lines))
    number = str(dice.of([0, 1, 2, 4, 2**53, 2**64, -1, "03", "3 ", "٣", "1e3"])).encode()
    stranger = f"— witness {base64.b64encode(dice.bytes(80)).decode()}".encode()
    match dice.below(7):
        case 0:
            lines[1] = number
        case 1:
            lines.insert(at, lines[at])
        case 2:
            del lines[at]
        case 3:
            lines[at : at + 2] = lines[at : at + 2][::-1]
        case 4:
            lines.insert(len(lines) - 1, stranger)
        case 5:
            lines[at] = lines[at] + dice.of([b"\r", b" ", b"\x00", b"=", b"A"])
        case _:
            lines[at : at + 1] = [stranger] * (1 + dice.below(20))
    return b"\n".join(lines)


def checkpoint_bytes(world: World, dice: Dice) -> Case:
    data = mutate_note(world.checkpoint, dice)
    chain, head = world.trust.chain, world.assembled.log.head

    def run() -> str:
        keys = chain.coordinator_keys(None)
        found, _ = open_checkpoint(data, chain.log_origin, keys, what="it")
        return same((found.size, found.root) == (head.size, head.root))

    return run


def log_bytes(world: World, dice: Dice) -> Case:
    leaves = world.log.files[LEAVES_FILE]
    lines = leaves.split(b"\n")[:-1]
    match dice.below(7):
        case 0 | 1 | 2:
            index = dice.below(len(lines))
            lines[index] = world.alter(lines[index], dice)
        case 3:
            lines = dice.of([lines[::-1], lines[1:], lines[:-1], [*lines, lines[0]], [], lines * 9])
        case 4:
            lines[dice.below(len(lines))] = dice.of(world.documents)
        case 5:
            lines = [mutate_bytes(leaves, dice, world.documents)]
        case _:
            world.log.put(CHECKPOINT_FILE, mutate_note(world.checkpoint, dice))
    world.log.put(LEAVES_FILE, b"".join(line + b"\n" for line in lines))
    if not dice.below(20):
        world.log.rearrange(dice, world.documents)

    def run() -> str:
        found, expected = read_log(world.log.path, world.trust.chain), world.assembled.log
        return same((found.leaves, found.head) == (expected.leaves, expected.head))

    return run


def check_tensors(world: World, name: str, data: bytes) -> Case:
    path = world.scratch / "tensors"
    path.write_bytes(data)
    table = world.tables[name]

    def run() -> str:
        with path.open("rb") as file:
            check_tensor_file(file, table, what="it")
        # Values are free here, their digest is signed: what is accepted must be what another
        # reader finds in it, too.
        read = safetensors.numpy.load(data)
        fits = {key: value.shape for key, value in read.items()} == {
            key: shape for key, (_, shape) in table.items()
        } and all(
            np.isfinite(value).all() and (np.abs(value) <= DEFAULT_BOUNDS.max_absolute).all()
            for value in read.values()
            if value.dtype == np.float32
        )
        return same(fits)

    return run


def tensor_header(world: World, dice: Dice) -> Case:
    name = dice.of([EXPERT_FILE, ROUTER_FILE])
    data = world.bundle.files[name]
    length = int.from_bytes(data[:8], "little")
    raw, values = data[8 : 8 + length], data[8 + length :]
    choice = dice.below(8)
    if choice < 2:
        raw = mutate_bytes(raw, dice, world.documents)
    elif choice < 6:
        raw = mutate_json(json.loads(raw), dice)
    elif choice == 6:
        raw += dice.of([b" " * 8, b"\n", b"\x00", b"{}", b" " * 100_000])
    length = len(raw)
    if choice == 7:
        length = dice.of(
            [0, 1, length + 1, length - 1, 2**63, 2**64 - 1, len(data), dice.below(99)]
        )
    return check_tensors(world, name, length.to_bytes(8, "little") + raw + values)


def tensor_values(world: World, dice: Dice) -> Case:
    name = dice.of([EXPERT_FILE, ROUTER_FILE])
    data = bytearray(world.bundle.files[name])
    start = 8 + int.from_bytes(data[:8], "little")
    if not dice.below(4):
        altered = bytes(data[:start]) + mutate_bytes(bytes(data[start:]), dice, world.documents)
        return check_tensors(world, name, altered)
    at = start + 4 * dice.below((len(data) - start) // 4)
    odd = dice.of([np.nan, np.inf, -np.inf, 1e4, -10001, 3e38, 1e-45, -0.0, 0.5, 1e19])
    data[at : at + 4] = np.float32(odd).tobytes()
    return check_tensors(world, name, bytes(data))


def check_ensemble(world: World, accepted: str | None = None) -> Case:
    signed_apart = frozenset({STATEMENT_FILE, SIGNATURE_FILE})

    def run() -> str:
        found = verify_ensemble(world.ensemble.path, world.trust.root)
        unchanged = world.ensemble.unchanged(but=signed_apart)
        if accepted:
            return accepted if unchanged else ADMITTED
        return same(unchanged and found.sha256 == world.assembled.sha256)

    return run


def ensemble_bytes(world: World, dice: Dice) -> Case:
    files = world.ensemble.files
    if not dice.below(3):
        world.ensemble.rearrange(dice, [*world.documents, *files.values()])
        return check_ensemble(world)
    name = dice.of([STATEMENT_FILE, *files])
    if name.endswith(".dsse.json"):
        changed = world.alter(files[name], dice)
    elif name == CHECKPOINT_FILE or name.endswith(".tlog-proof"):
        changed = mutate_note(files[name], dice)
    else:
        changed = mutate_bytes(files[name], dice, world.documents)
    world.ensemble.put(name, changed)
    return check_ensemble(world)


def ensemble_again(world: World, dice: Dice) -> Case:
    statement = world.ensemble.files[STATEMENT_FILE]
    forged = world.sign_again(statement, IN_TOTO_PAYLOAD, world.coordinator_key, dice)
    world.ensemble.put(STATEMENT_FILE, forged)
    return check_ensemble(world, OWN_WORD)


KINDS: dict[str, tuple[int, Callable[[World, Dice], Case]]] = {
    "submission envelope": (22, submission_envelope),
    "submission, signed again by its site": (12, submission_again),
    "bundle, a file": (10, bundle_bytes),
    "bundle, its set of files": (4, bundle_folder),
    "rosters": (9, roster_bytes),
    "roster, signed again by the root key": (5, roster_again),
    "plan": (7, plan_bytes),
    "plan, signed again by the coordinator": (5, plan_again),
    "checkpoint": (8, checkpoint_bytes),
    "log": (5, log_bytes),
    "tensor file, header": (4, tensor_header),
    "tensor file, values": (2, tensor_values),
    "ensemble": (5, ensemble_bytes),
    "ensemble, signed again by the coordinator": (2, ensemble_again),
}


@dataclass
class Tally:
    """What became of the mutants of one kind."""

    mutants: int = 0
    refused: Counter = field(default_factory=Counter)
    accepted: Counter = field(default_factory=Counter)
    slowest_s: float = 0.0


@dataclass
class Result:
    """What became of all; `failures` names seed positions that were admitted, fell or took long."""

    kinds: dict[str, Tally]
    failures: list[str]
    seconds: float
    growth_mib: float

    @property
    def mutants(self) -> int:
        """How many there were."""
        return sum(tally.mutants for tally in self.kinds.values())


def judge(case: Case) -> tuple[str, float]:
    """Returns what became of a mutant, and in how many seconds."""
    started = perf_counter()
    try:
        outcome = case()
    except (RefusedError, StateError) as error:
        outcome = error.code
    except DdmFedError as error:
        outcome = f"TRACEBACK {error.code}: not a refusal"
    except Exception:  # noqa: BLE001 - finding one is what this is for
        outcome = f"TRACEBACK {traceback.format_exc(limit=-4)}"
    return outcome, perf_counter() - started


def campaign(stages: Any, scratch: Path, *, count: int, seed: int) -> Result:
    """Returns what became of about `count` mutants of the federation `stages`."""
    world = World(stages, scratch)
    result = Result({kind: Tally() for kind in KINDS}, [], 0.0, 0.0)
    for number, (_, make) in enumerate(KINDS.values()):  # libraries are loaded, caches are filled
        judge(make(world, Dice(number)))
        world.restore()
    before, started = resident_mib(), perf_counter()
    whole = sum(share for share, _ in KINDS.values())
    for number, (kind, (share, make)) in enumerate(KINDS.items()):
        dice, tally = Dice(seed * 1000 + number), result.kinds[kind]
        for position in range(max(1, count * share // whole)):
            case = make(world, dice)
            outcome, seconds = judge(case)
            if seconds > SLOWEST_S:  # the machine may have been busy: once more
                outcome, seconds = judge(case)
            world.restore()
            tally.mutants += 1
            tally.slowest_s = max(tally.slowest_s, seconds)
            if seconds > SLOWEST_S:
                result.failures.append(f"{kind} {position}: {seconds:.1f} s, {outcome}")
            if outcome.startswith(("TRACEBACK", ADMITTED)):
                result.failures.append(f"{kind} {position}: {outcome}")
            elif outcome in {HARMLESS, OWN_WORD}:
                tally.accepted[outcome] += 1
            else:
                tally.refused[outcome] += 1
    result.seconds = perf_counter() - started
    result.growth_mib = resident_mib() - before
    return result


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def table(result: Result) -> str:
    """Returns the result as Markdown."""
    lines = [
        "| kind | mutants | refused, by code | harmless | its word | slowest ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, tally in result.kinds.items():
        codes = ", ".join(f"{code} {count}" for code, count in sorted(tally.refused.items()))
        lines.append(
            f"| {kind} | {tally.mutants} | {codes} | {tally.accepted[HARMLESS]} | "
            f"{tally.accepted[OWN_WORD]} | {1000 * tally.slowest_s:.0f} |"
        )
    return "\n".join(lines)


def build_federation(folder: Path) -> Any:
    """Returns the stages of the tests' federation."""
    helpers = Path(__file__).parents[1] / "tests" / "helpers" / "federation.py"
    spec = importlib.util.spec_from_file_location("federation", helpers)
    module = importlib.util.module_from_spec(spec)
    sys.modules["federation"] = module
    spec.loader.exec_module(module)
    return module.build_stages(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stages = build_federation(Path(name) / "federation")
        scratch = Path(name) / "scratch"
        scratch.mkdir()
        result = campaign(stages, scratch, count=options.count, seed=options.seed)
    print(table(result))
    print(
        f"\n{result.mutants} mutants in {result.seconds:.0f} s, {len(result.failures)} admitted, "
        f"with a traceback or above {SLOWEST_S:g} s; memory grew by {result.growth_mib:.1f} MiB."
    )
    for failure in result.failures[:40]:
        print(f"\n{failure}")
    sys.exit(bool(result.failures) or result.growth_mib > GROWTH_MIB)


if __name__ == "__main__":
    main()
