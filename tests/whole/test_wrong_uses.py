"""What a new user does wrong: the message says what, why and what to do, and nothing is lost.

Each row is one wrong use of the real commands, on the folders of a real federation that `place`
lays out. No row may change a byte of them, beside what a site remembers of a published folder it
looked at and the images it decoded.
"""

import re
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest
from federation import PLAN_TOML, SITES, create_federation
from PIL import Image

from ddm_fed.records import read_plan_toml
from ddm_fed.storage.files import exclusive

BOUND = Path(commands.__file__).with_name("bound.py")
A, B, C = SITES
PIN = "sha256:" + "a" * 64
ROOT = "the fingerprint of the federation"
PETS = PLAN_TOML.replace("width = 8", 'width = 8\nconditioning = "class"\nclasses = ["cat", "dog"]')
# a name, what of the plan is replaced, and by what
PLANS = (
    ("key", "steps", "stepz"),
    ("table", "[training]", "[trainning]"),
    ("missing", 'architecture = "DiT-Nano/2"', ""),
    ("expired", "2036", "2020"),
    ("negative", "epsilon = 2", "epsilon = -2"),
    ("percent", "epsilon = 2", 'epsilon = "2%"'),
    ("much", "epsilon = 2", "epsilon = 9"),
    ("network", "DiT-Nano/2", "DiT-Nanno/2"),
    ("router", '"mixture"', '"mixtur"'),
    ("syntax", "channels = 1", "channels 1"),
    ("text", "height = 8", 'height = "8"'),
    ("another", '"test"', '"other"'),
    ("misplaced", "steps = 3", "steps = 3\nmax_epsilon = 2"),
)
REMEMBERED = re.compile(r"(^|/)(\.lock|\.offered(/.*)?|seen/.*|private/images(/.*)?)$")


def lay_out(folder: Path, stages) -> None:
    """Makes what the rows name: a federation at several stages, another one, and odd files."""
    stages.admitted.copy(folder, "consortium", *SITES)
    stages.drafted.copy(folder / "drafted", "consortium", A)
    stages.released.copy(folder / "released", "consortium", A)
    for name in ("ensemble", "tampered"):
        shutil.copytree(stages.ensemble, folder / name)
    weights = next((folder / "tampered").rglob("expert.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    create_federation(folder / "pets", read_plan_toml(PETS), sites=(A, B))
    (folder / "empty").mkdir()
    (folder / "others").mkdir()
    (folder / "others" / "thesis.docx").write_text("years of work")
    (folder / "plan.toml").write_text(PLAN_TOML)
    for name, old, new in PLANS:
        assert old in PLAN_TOML
        (folder / f"{name}.toml").write_text(PLAN_TOML.replace(old, new))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    for name, arrays in {
        "images": {"images": pixels},
        "rows": {"images": pixels.reshape(20, 64)},
        "spectral": {"images": np.repeat(pixels[..., None], 7, axis=-1)},
        "other-name": {"pictures": pixels},
        "nan": {"images": np.full((20, 8, 8), np.nan, np.float32)},
        "out-of-range": {"images": pixels, "labels": np.arange(20) % 3},
        "few-labels": {"images": pixels, "labels": np.arange(19) % 2},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    for kind in ("catt", "dog"):
        (folder / "animals" / kind).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(pixels[number]).save(folder / "animals" / kind / f"{number}.png")


@pytest.fixture(scope="module")
def place(stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    lay_out(folder, stages)
    yield folder
    shutil.rmtree(folder)


def train(data, site=B, plan="consortium/published", *more):
    return ("ddm-site", "train", "--site", site, "--plan", plan, "--data", data, *more)


def of(stage, command, *more):
    plan = f"{stage}/consortium/published"
    return ("ddm-site", command, "--site", f"{stage}/{A}", "--plan", plan, *more)


def coord(command, *more, at="consortium"):
    return ("ddm-coord", *command.split(), *more, "--coordinator", at)


def sample(*more, ensemble="ensemble", out="out"):
    words = ("ddm-coord", "sample", ensemble, "--root", ROOT, "--out", out)
    return (*words, *more) if "--count" in more else (*words, "--count", 2, *more)


PETS_PLAN = "pets/consortium/published"
UNDER = ("--plan", "consortium/published")
# what is typed; the exit status; what the message says and why; what it says to do
USES = [
    # mistyped
    (("ddm-site", "trian"), 2, "No such command 'trian'", "Did you mean 'train'?"),
    (("ddm-coord", "roster", "shwo"), 2, "No such command 'shwo'", "Did you mean 'show'?"),
    (("ddm-coord", "init", "new", "--federaton", "x"), 2, "No such option", "'--federation'?"),
    (sample("--solver", "heum"), 2, "'heum' is not one of 'euler', 'mid", "did you mean `heun`?"),
    (sample("--strategy", "stiky"), 2, "unknown strategy `stiky`", "did you mean `sticky`?"),
    (sample("--count", "-1"), 2, "-1 is not in the range x>=1", "sample --help"),
    (sample("--count", "many"), 2, "'many' is not a valid integer", "sample --help"),
    (sample("--class", "cat"), 2, "--class cat is not in the plan", "leave --class out"),
    (sample("--device", "cdua"), 2, "unknown device, did you mean `cuda`?", "use cpu, cuda"),
    (("ddm-coord", "sample", "ensemble", "--root", ROOT), 2, "Missing option", "sample --help"),
    (("ddm-coord", "assemble"), 2, "Missing argument 'TARGET'", "assemble --help"),
    (train("images.npz", B, "consortium/published", "--micro-batch", 0), 2, "not in the", "--help"),
    # beginning
    (("ddm-site", "init", "new", "--name", "a"), 2, "Missing option '--root'", "init --help"),
    (
        ("ddm-site", "init", "new", "--name", "a", "--root", "sha256:abcd"),
        *(2, "--root: should be `sha256:` and 64 hex digits", "see `ddm-site init --help`"),
    ),
    (
        ("ddm-site", "init", A, "--name", A, "--root", PIN),
        *(1, f"{A} holds site.toml already", "choose another folder, or use the one there is"),
    ),
    (
        ("ddm-site", "init", "images.npz", "--name", A, "--root", PIN),
        *(1, "images.npz is not a folder", "choose another path"),
    ),
    (("ddm-coord", "init", "new", "--federation", "My Team"), 2, "should be 1 to 63 of", "--help"),
    (("ddm-coord", "init", "consortium", "--federation", "x"), 1, "holds coordi", "choose another"),
    (("ddm-coord", "keygen", "images.npz"), 1, "images.npz exists already", "never overwritten"),
    # the roster
    (
        coord("roster add", f"{A}/enrolment.dsse.json", "--key", "ed25519:" + "a" * 64),
        *(1, "people read out ed25519:aaaa", "somebody changed the request on its way"),
    ),
    (coord("roster add", "plan.toml"), 1, "plan.toml cannot be read: it is not JSON", "fetch the"),
    (
        coord("roster add", f"pets/{A}/enrolment.dsse.json"),
        *(1, "wants to join the federation of sha256:", "read yours to its people again"),
    ),
    (coord("roster revoke", "hospitl-a"), 1, f"did you mean `{A}`?", f"it lists {A}, {B}, {C}"),
    # plans
    (coord("publish", "nowhere.toml"), 2, "PLAN nowhere.toml cannot be read", "give the path"),
    (coord("publish", "images.npz"), 1, "is not written in UTF-8", "if it is no plan at all"),
    (coord("publish", "key.toml"), 1, "`training.stepz`: unknown key", "did you mean `steps`?"),
    (coord("publish", "table.toml"), 1, "`trainning`: unknown key", "did you mean `training`?"),
    (coord("publish", "missing.toml"), 1, "`expert.architecture`: field required", "docs/plan.md"),
    (coord("publish", "misplaced.toml"), 1, "`training.max_epsilon`", "in `privacy.max_epsilon`"),
    (coord("publish", "expired.toml"), 1, "the plan expired on 2020-01-01", "a later date"),
    (coord("publish", "negative.toml"), 1, "`router.epsilon`: input should be gre", "docs/plan.md"),
    (
        coord("publish", "percent.toml"),
        1,
        "`router.epsilon`: a finite number is wr",
        "docs/plan.md",
    ),
    (coord("publish", "much.toml"), 1, "9 exceeds `privacy.max_epsilon` 3", "docs/plan.md"),
    (coord("publish", "network.toml"), 1, "`DiT-Nanno/2`", "did you mean `DiT-Nano/2`?"),
    (coord("publish", "router.toml"), 1, "`router.kind`: `mixtur` is not", "did you mean `mixture"),
    (coord("publish", "syntax.toml"), 1, "at line 6, column 10", "see examples/digits/plan.toml"),
    (coord("publish", "text.toml"), 1, "`data.height`: input should be a valid int", "docs/plan."),
    (
        coord("publish", "another.toml"),
        1,
        "of federation `other`, this coor",
        "correct `federation",
    ),
    # where to train, and under what
    (train("images.npz", B, "plan.toml"), 1, "which nobody has signed", "published folder"),
    (train("images.npz", B, "consortium"), 1, "no plan.dsse.json in", "to consortium/published"),
    (train("images.npz", B, "empty"), 1, "there is no plan.dsse.json in empty", "point to the"),
    (train("images.npz", "consortium"), 1, "there is no site.toml in consortium", "with --site"),
    (train("images.npz", "consortium/published", B), 1, "there is no site.toml in", "with --site"),
    (train("images.npz", B, PETS_PLAN), 1, "roster 1 has the digest sha256:", "another federation"),
    (train("images.npz", A), 1, "was trained on other images than these", "--restart"),
    # images
    (train("nothing"), 1, "nothing is neither `digits`, an .npz", "give a path that exists"),
    (train("digts"), 1, "did you mean `digits`?", "`digits` to try things out"),
    (train("digits:5-2"), 1, "digits:5-2 names no digits", "the smaller one first"),
    (train("empty"), 1, "empty holds no images", "check the path"),
    (train("others"), 1, "1 .docx files are not images: thesis.docx", "convert the images"),
    (train("plan.toml"), 1, "plan.toml is a file of a kind that is not read", "docs/data.md"),
    (train("broken.npz"), 1, "broken.npz cannot be read: File is not a zip", "write it again with"),
    (train("other-name.npz"), 1, "holds pictures, expected `images`", "savez_compressed(path, im"),
    (train("rows.npz"), 1, "(20, 64), expected (N, H, W)", "again, stacked"),
    (train("spectral.npz"), 1, "(20, 8, 8, 7)", "as grey or RGB"),
    (train("nan.npz"), 1, "the images hold NaN or infinity", "clean them before training"),
    (
        train("out-of-range.npz", f"pets/{A}", PETS_PLAN),
        *(1, "neither whole numbers from 0 to 1 nor names of classes", "in the order of `data.cl"),
    ),
    (
        train("few-labels.npz", f"pets/{A}", PETS_PLAN),
        *(1, "few-labels.npz has 20 images and 19 labels", "every image needs one label"),
    ),
    (
        train("images.npz", f"pets/{A}", PETS_PLAN),
        *(1, "has no labels, the plan asks for the classes cat, dog", "add `labels` to the .npz"),
    ),
    (
        train("animals", f"pets/{A}", PETS_PLAN),
        *(1, "the classes ['catt'], the plan has ['cat', 'dog']", "did you mean `cat`?"),
    ),
    # out of order
    (of("pets", "review"), 1, "there is no draft to review", "make one with `ddm-site train`"),
    (of("drafted", "release"), 1, "was not reviewed", "run `ddm-site review` and read"),
    (of("drafted", "submit", "--to", "consortium/inbox"), 1, "nothing is released", "-site relea"),
    (coord("assemble", "new", at="pets/consortium"), 1, f"nothing is admitted yet from {A}", "adm"),
    # sending
    (of("released", "submit", "--to", "no/inbox"), 1, "no/inbox does not exist", "mount the share"),
    (of("released", "submit", "--to", "images.npz"), 1, "is a file, not a folder", "has a folder"),
    (
        of("released", "submit", "--to", "others"),
        1,
        "holds other things, `thesis.d",
        "an inbox has",
    ),
    (
        of("released", "export", "others"),
        1,
        "nothing was written there",
        "name a folder of its own",
    ),
    (("ddm-site", "fetch", "--site", A, "--from", "x.org"), 2, "not the address", "grpcs://HOST"),
    (coord("import", "others"), 1, "there is no folder `incoming` in others", "`ddm-site export`"),
    # assembling
    (coord("status", at=A), 1, f"there is no coordinator.toml in {A}", "with --coordinator"),
    (coord("assemble", "ensemble"), 1, "ensemble exists already", "choose another folder"),
    (coord("assemble", "new", "--without", "hospitl-a"), 2, f"mean `{A}`?", "the roster lists"),
    (
        coord("assemble", "new", "--without", A, "--without", B, "--without", C),
        *(2, "no site is left to assemble", "leave fewer sites out"),
    ),
    (
        coord("remove", "x", "--out", "new", "--reason", "x"),
        1,
        "nothing of `x` was",
        "status` shows",
    ),
    # verifying and sampling
    (("ddm-coord", "verify", "nowhere", "--root", ROOT), 2, "does not exist", "verify --help"),
    (
        ("ddm-coord", "verify", "ensemble"),
        2,
        "--root is missing: without a finger",
        "--root sha256",
    ),
    (("ddm-coord", "verify", "ensemble", "--root", PIN), 1, "pinned is sha256:aa", "by telephone"),
    (
        ("ddm-coord", "verify", "empty", "--root", ROOT),
        2,
        "is no ensemble",
        "give the folder of an",
    ),
    (
        ("ddm-coord", "verify", "tampered", "--root", ROOT),
        1,
        "is not what was signed",
        "fetch it ag",
    ),
    (
        sample(ensemble="tampered"),
        1,
        "`expert.safetensors` is not what was signed",
        "fetch it again",
    ),
    (sample(ensemble="consortium"), 1, "consortium is no ensemble", "`ddm-coord assemble` or"),
    (
        sample(out="others"),
        1,
        "others holds other things, `thesis.docx`",
        "a new or an empty folder",
    ),
    (sample(out="images.npz"), 1, "images.npz is not a folder", "a new or an empty folder"),
    (
        ("ddm-coord", "evaluate", "ensemble", "--real", "images.npz"),
        *(1, "ensemble holds no finished samples", "make some with"),
    ),
]
USES_IN_WORDS = [" ".join(map(str, words)).replace(ROOT, "ROOT") for words, *_ in USES]


def contents(folder: Path) -> dict[str, bytes | None]:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
    return {name: content for name, content in found.items() if not REMEMBERED.search(name)}


def changes(folder: Path, before: dict[str, bytes | None]) -> set[str]:
    now = contents(folder)
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


@pytest.fixture(scope="module")
def before(place):
    return contents(place)


def assert_helpful(ended: commands.Ended, code: int, why: str, what_to_do: str) -> None:
    assert "Traceback" not in ended.out + ended.err
    assert (ended.code, ended.out) == (code, "")
    assert why in ended.err
    if "error[" in ended.err:
        message, hint, advice = ended.err[ended.err.index("error[") :].partition("\n\nhint: ")
        assert re.match(r"error\[DDM\d{3}\]: \S", message)
        assert hint
        assert advice.strip()
    else:  # click's own
        assert re.search(r"Try '\S+( \S+)* --help' for help", ended.err)
    assert what_to_do in ended.err


@pytest.mark.parametrize(("words", "code", "why", "what_to_do"), USES, ids=USES_IN_WORDS)
def test_wrong_use_is_told_what_why_and_what_to_do_and_nothing_is_lost(
    run, stages, place, before, monkeypatch, words, code, why, what_to_do
):
    monkeypatch.chdir(place)
    ended = run(*(stages.admitted.root if word == ROOT else word for word in words))
    assert_helpful(ended, code, why, what_to_do)
    assert changes(place, before) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "mode", "words", "why"),
    [
        ("images.npz", 0o000, train("images.npz"), "images.npz cannot be read: [Errno 13] Permi"),
        ("animals", 0o000, train("animals"), "Permission denied: 'animals"),
        ("plan.toml", 0o000, coord("publish", "plan.toml"), "plan.toml cannot be read: Permissi"),
        ("empty", 0o500, sample(out="empty/out"), "Permission denied: "),
        ("empty", 0o500, coord("assemble", "empty/new"), "Permission denied: "),
        (B, 0o500, train("images.npz"), "Permission denied: "),
        (f"{B}/keys", 0o000, ("ddm-site", "rotate", "--site", B, *UNDER), "Permission denied: "),
    ],
    ids=lambda found: " ".join(map(str, found[:2])) if isinstance(found, tuple) else None,
)
def test_what_may_not_be_read_or_written_is_named_and_nothing_is_lost(
    stages, place, before, kept, mode, words, why
):
    path = place / kept
    usual = path.stat().st_mode
    path.chmod(mode)
    try:
        typed = (stages.admitted.root if word == ROOT else word for word in words)
        ended = commands.run(BOUND, *typed, cwd=place)
    finally:
        path.chmod(usual)
    assert_helpful(ended, ended.code or 1, why, "hint: ")
    assert changes(place, before) == set()


def test_folder_at_which_another_command_works_is_left_alone(run, place, before, monkeypatch):
    monkeypatch.chdir(place)
    with exclusive(place / B / ".lock"):
        ended = run(*train("images.npz"))
    assert_helpful(ended, 1, "another process is working in", "wait until it has finished")
    assert changes(place, before) == set()


def test_at_least_forty_wrong_uses_are_in_the_table():
    assert len(set(USES_IN_WORDS)) == len(USES) >= 40
