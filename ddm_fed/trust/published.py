"""The folder a coordinator publishes: plan, rosters and transparency log, whole and signed.

    plan.dsse.json
    roster-0001.dsse.json, roster-0002.dsse.json, ...
    leaves.jsonl, checkpoint

Sites train under it, keep a copy of what they saw, and every ensemble carries one too.
"""

from pathlib import Path

from ddm_fed.errors import PlanMismatchError, RollbackError, RosterError, StateError
from ddm_fed.limits import MAX_LOG_BYTES, MAX_ROSTERS_BYTES
from ddm_fed.records import MAX_DOCUMENT_BYTES
from ddm_fed.storage.files import copy_bounded, read_bounded
from ddm_fed.trust import RosterChain, Trust, establish_chain, establish_trust
from ddm_fed.trust.log import LEAVES_FILE, LOG_FILES, Log, read_log, require_continues

PLAN_FILE = "plan.dsse.json"
_ROSTER_GLOB = "roster-[0-9][0-9][0-9][0-9].dsse.json"


def roster_file(version: int) -> str:
    """Returns the file name of roster `version`."""
    return f"roster-{version:04d}.dsse.json"


def roster_files(folder: Path) -> list[str]:
    """Returns the names of the rosters in `folder`, in order."""
    return sorted(path.name for path in folder.glob(_ROSTER_GLOB))


def published_files(folder: Path) -> list[str]:
    """Returns the names of all published documents in `folder`: rosters in order, plan, log."""
    return [*roster_files(folder), PLAN_FILE, *LOG_FILES]


def published_folder(path: Path) -> Path:
    """Returns the published folder that a person means with `path`: it, or the signed plan in it.

    Raises:
        StateError: it is something else, or not there.
    """
    if path.is_dir():
        require_plan(path)
        return path
    hint = f"give the coordinator's published folder, or the {PLAN_FILE} inside it"
    if not path.exists():
        raise StateError(f"there is no {path}", hint=hint)
    if path.suffix == ".toml":
        raise StateError(
            f"{path} is the plan as people wrote it, which nobody has signed; work is done under "
            "the signed one",
            hint=hint,
        )
    if path.name != PLAN_FILE:
        raise StateError(f"{path} is neither a published folder nor the plan in one", hint=hint)
    return path.parent


def require_plan(folder: Path) -> None:
    """Refuses a folder without a signed plan.

    Raises:
        StateError: it has none.
    """
    if (folder / PLAN_FILE).exists():
        return
    inside = folder / "published"
    raise StateError(
        f"there is no {PLAN_FILE} in {folder}",
        hint=f"point to {inside}"
        if (inside / PLAN_FILE).exists()
        else "point to the coordinator's published folder, or to the plan file inside it",
    )


def read_chain(folder: Path, root: str) -> RosterChain:
    """Returns the rosters in `folder`, verified down from the pinned digest `root`.

    Raises:
        RefusedError: see `establish_chain`.
    """
    return establish_chain(root, _rosters(folder))


def read_published(folder: Path, root: str) -> Trust:
    """Returns the trust that the documents in `folder` establish from the pinned digest `root`.

    Raises:
        StateError: there is no plan in `folder`.
        RefusedError: a document does not hold; see `establish_trust`.
    """
    require_plan(folder)
    plan = read_bounded(folder / PLAN_FILE, MAX_DOCUMENT_BYTES)
    return establish_trust(root, _rosters(folder), plan)


def _rosters(folder: Path) -> list[bytes]:
    found, taken = [], 0
    for name in roster_files(folder):
        data = read_bounded(folder / name, MAX_DOCUMENT_BYTES)
        taken += len(data)
        if taken > MAX_ROSTERS_BYTES:
            raise RosterError(
                f"the rosters in {folder} have more than {MAX_ROSTERS_BYTES} bytes together",
                hint="no federation changes so often; ask the coordinator",
            )
        found.append(data)
    if not found:
        raise RosterError(
            f"there is no roster in {folder}", hint="fetch the coordinator's published folder"
        )
    return found


def copy_published(source: Path, target: Path) -> None:
    """Copies the published documents of `source` into the folder `target`; nothing is believed.

    Raises:
        FileSetError: one is missing, or not a plain file.
        SizeError: one is larger than any may be.
    """
    for name in published_files(source):
        most = MAX_LOG_BYTES if name == LEAVES_FILE else MAX_DOCUMENT_BYTES
        copy_bounded(source / name, target / name, most)


def read_seen(folder: Path, root: str) -> tuple[RosterChain, Log]:
    """Returns rosters and log of any folder that holds both: published, seen, or an ensemble.

    Raises:
        RefusedError: a document does not hold.
    """
    chain = read_chain(folder, root)
    return chain, read_log(folder, chain)


def require_newer_plan(new: Trust, seen: Trust, *, what: str) -> None:
    """Refuses a plan that comes before the one seen, or stands in its place.

    Raises:
        RollbackError: it is older.
        PlanMismatchError: the coordinator signed two plans with one number.
    """
    found, known = new.plan.version, seen.plan.version
    if found < known:
        raise RollbackError(
            f"{what}: its plan has the number {found}, {known} was seen before",
            hint="fetch the newest published folder; a plan that was replaced is no longer in "
            "force, whoever signed it",
        )
    if found == known > 0 and new.plan_sha256 != seen.plan_sha256:
        raise PlanMismatchError(
            f"{what}: there are two plans {found}, {new.plan_sha256} and {seen.plan_sha256}, both "
            "signed by the coordinator",
            hint="keep both folders: together they prove it; ask the coordinator's people",
        )


def require_newer(
    new: tuple[RosterChain, Log], seen: tuple[RosterChain, Log], *, what: str
) -> None:
    """Refuses rosters and log that do not continue the ones seen before.

    Raises:
        RollbackError: they are older.
        RosterError: the root keys signed two rosters of the same version.
        LogError: the log is another one; both signed heads are in the message.
    """
    (chain, log), (seen_chain, seen_log) = new, seen
    common = min(len(chain.sha256), len(seen_chain.sha256))
    for version in range(common):
        if chain.sha256[version] != seen_chain.sha256[version]:
            raise RosterError(
                f"{what}: there are two rosters {version + 1}, {chain.sha256[version]} and "
                f"{seen_chain.sha256[version]}, both signed by the root keys",
                hint="keep both folders: together they prove it; ask the holders of the root keys",
            )
    if common < len(seen_chain.sha256):
        raise RollbackError(
            f"{what}: its newest roster is {common}, {len(seen_chain.sha256)} was seen before",
            hint="fetch the newest published folder",
        )
    require_continues(log, seen_log, what=what)
