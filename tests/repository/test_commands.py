"""The two commands as people meet them: exit status, streams, and words when something is wrong."""

import json
import os
import pty
import re
import subprocess
import sys
import warnings
from pathlib import Path

import commands
import pytest
from commands import Started

from ddm_fed import __version__
from ddm_fed.signing import read_public

with warnings.catch_warnings():  # typer 0.20 imports a name that click 8.5 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)

EXAMPLE_PLAN = Path(__file__).parents[2] / "examples" / "digits" / "plan.toml"
SOME_ROOT = "sha256:" + "a" * 64
SOME_KEY = "ed25519:" + "a" * 64
KEYID = re.compile(r"ed25519:[0-9a-f]{64}")
PIN = re.compile(r"sha256:[0-9a-f]{64}")
ESCAPE = "\x1b"
REFUSED = ("ddm-coord", "publish", EXAMPLE_PLAN, "--coordinator")  # and a folder that is none


def clean_environment(**variables):
    """Returns the least a command needs, so that nobody's settings decide a test."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"COLUMNS": "200"} | variables


def process(command, *arguments, **variables):
    """Runs the command as a process of its own."""
    return commands.run(command, *arguments, env=clean_environment(**variables))


@pytest.fixture
def consortium(run, tmp_path):
    """A coordinator of the federation `digits`, and its root fingerprint."""
    ended = run("ddm-coord", "init", tmp_path / "consortium", "--federation", "digits")
    return tmp_path / "consortium", ended.out.strip()


@pytest.fixture
def make_site(run, tmp_path, consortium):
    """Returns a function that makes a site of the consortium, and returns its folder."""

    def make(folder, *, name="hospital-a", root=consortium[1]):
        run("ddm-site", "init", tmp_path / folder, "--name", name, "--root", root)
        return tmp_path / folder

    return make


def request_of(site):
    return site / "enrolment.dsse.json"


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(ended, code):
    """Checks what a refusal looks like: status 1, code and hint on stderr, nothing on stdout."""
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"error[{code}]: ")
    assert "\n\nhint: " in ended.err
    assert "Traceback" not in ended.err


def assert_wrong_usage(ended):
    """Checks what wrong usage looks like: status 2; click's box, or the code and a hint."""
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err
    ours = ended.err.startswith("error[DDM107]: ") and "\n\nhint: " in ended.err
    assert ours or "─ Error ─" in ended.err


@pytest.mark.parametrize("command", ["ddm-site", "ddm-coord"])
def test_process_with_version_prints_it_on_stdout(command):
    assert process(command, "--version") == (0, f"{command} {__version__}\n", "")


@pytest.mark.parametrize("command", ["ddm-site", "ddm-coord"])
def test_process_with_an_unknown_option_ends_with_2(command):
    assert_wrong_usage(process(command, "init", "folder", "--colour", "red"))


def test_process_that_is_refused_ends_with_1(tmp_path):
    assert_refused(process(*REFUSED, tmp_path), "DDM104")


def test_process_that_makes_a_coordinator_prints_the_fingerprint_alone_on_stdout(tmp_path):
    ended = process("ddm-coord", "init", tmp_path / "home", "--federation", "digits")
    assert (ended.code, ended.out.count("\n")) == (0, 1)
    assert PIN.fullmatch(ended.out.strip())


def test_process_that_makes_a_site_writes_to_stderr_only(tmp_path):
    ended = process(
        "ddm-site", "init", tmp_path / "home", "--name", "hospital-a", "--root", SOME_ROOT
    )
    assert (ended.code, ended.out) == (0, "")
    assert KEYID.search(ended.err)


def test_process_with_the_folder_in_its_environment_uses_it(consortium):
    ended = process("ddm-coord", "status", "--json", DDM_COORDINATOR=str(consortium[0]))
    assert json.loads(ended.out)["federation"] == "digits"


def on_a_terminal(*arguments, **variables):
    """Returns what a command writes to a terminal."""
    here, there = pty.openpty()
    env = clean_environment(**{"TERM": "xterm-256color"} | variables)
    process = Started(*arguments, env=env, stdin=there, stdout=there, stderr=there)
    os.close(there)
    shown = b""
    while True:
        try:
            block = os.read(here, 65536)
        except OSError:  # Linux says so when the last writer is gone
            break
        if not block:
            break
        shown += block
    process.wait()
    os.close(here)
    return shown.decode()


def test_process_on_a_terminal_writes_its_error_in_colour(tmp_path):
    assert f"{ESCAPE}[1;31m" in on_a_terminal(*REFUSED, tmp_path)


@pytest.mark.parametrize("arguments", [[*REFUSED, "/"], ["ddm-site", "--help"]])
def test_process_on_a_terminal_with_no_color_writes_no_colour(arguments):
    codes = re.findall(rf"{ESCAPE}\[([\d;]*)m", on_a_terminal(*arguments, NO_COLOR="1"))
    numbers = {int(number) for code in codes for number in code.split(";") if number}
    assert numbers <= {0, 1, 2, 3, 4}  # bold, faint, italic and underlined are no colours


def test_process_on_a_dumb_terminal_writes_no_escape_codes(tmp_path):
    shown = on_a_terminal(*REFUSED, tmp_path, TERM="dumb")
    assert "DDM104" in shown
    assert ESCAPE not in shown


def test_process_into_a_pipe_writes_no_escape_codes(consortium):
    ended = process("ddm-coord", "status", "--coordinator", consortium[0])
    assert (ended.code, ended.out.startswith("digits: sites")) == (0, True)
    assert ESCAPE not in ended.out + ended.err


@pytest.mark.parametrize("arguments", [[*REFUSED, "/"], ["ddm-site", "--help"]])
def test_process_into_a_pipe_with_no_color_writes_no_escape_codes(arguments):
    ended = process(*arguments, NO_COLOR="1")
    assert ESCAPE not in ended.out + ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ddm-site", "fly"],
        ["ddm-site", "train", "--plan", "x", "--data", "digits", "--precision", "float8"],
        ["ddm-site", "train", "--plan", "x", "--data", "digits", "--max-bad-fraction", "2"],
        ["ddm-site", "train", "--plan", "x", "--data", "digits", "--value-range", "0"],
        ["ddm-site", "train", "--data", "digits"],
        ["ddm-site", "submit", "--plan", "x"],
        ["ddm-coord", "init", "new"],
        ["ddm-coord", "publish", "there-is-no-plan.toml"],
        ["ddm-coord", "roster", "add", "."],
        ["ddm-coord", "assemble", "new", "--router", "pooled"],
        ["ddm-coord", "sample", "e", "--out", "o", "--root", SOME_ROOT, "--strategy", "top-0"],
        ["ddm-coord", "sample", "e", "--out", "o", "--root", SOME_ROOT, "--strategy", "best"],
        ["ddm-coord", "sample", "e", "--out", "o", "--root", SOME_ROOT, "--solver", "rk4"],
        ["ddm-coord", "sample", "e", "--out", "o", "--root", SOME_ROOT, "--router", "pooled"],
        ["ddm-coord", "sample", "e", "--out", "o", "--root", SOME_ROOT, "--count", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(run, consortium, monkeypatch, arguments):
    monkeypatch.chdir(consortium[0])
    assert_wrong_usage(run(*arguments))


@pytest.mark.parametrize("name", ["Hospital", "hospital a", "-a", "", "a" * 64, "../a", "ä", "a\n"])
def test_init_with_a_bad_name_ends_with_2_and_makes_nothing(run, tmp_path, name):
    site = run("ddm-site", "init", tmp_path / "s", f"--name={name}", "--root", SOME_ROOT)
    home = run("ddm-coord", "init", tmp_path / "c", f"--federation={name}")
    assert_wrong_usage(site)
    assert_wrong_usage(home)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "root", ["", "a" * 64, "sha256:" + "A" * 64, SOME_ROOT + "0", "rsa:00", SOME_KEY]
)
def test_init_with_a_bad_fingerprint_ends_with_2_and_makes_nothing(run, tmp_path, root):
    assert_wrong_usage(run("ddm-site", "init", tmp_path / "s", "--name", "a", f"--root={root}"))
    assert list(tmp_path.iterdir()) == []


def test_init_with_a_threshold_nobody_can_meet_ends_with_2_and_makes_nothing(run, tmp_path):
    arguments = ["--federation", "digits", "--threshold", "2"]
    assert_wrong_usage(run("ddm-coord", "init", tmp_path / "c", *arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", ["0", "-1", "inf", "nan", "much"])
def test_init_with_a_bad_limit_ends_with_2(run, tmp_path, limit):
    arguments = ["--name", "a", "--root", SOME_ROOT, f"--max-epsilon={limit}"]
    assert_wrong_usage(run("ddm-site", "init", tmp_path / "s", *arguments))


@pytest.mark.parametrize(
    "arguments", [["verify", "e"], ["sample", "e", "--out", "o"]], ids=["verify", "sample"]
)
def test_root_that_is_no_fingerprint_ends_with_2(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert_wrong_usage(run("ddm-coord", *arguments, "--root", "sha256:abc"))
    assert_wrong_usage(run("ddm-coord", *arguments, "--root", SOME_KEY))


@pytest.mark.parametrize("delta", ["0", "1", "-1", "nan"])
def test_ledger_at_a_delta_that_is_no_probability_ends_with_2(run, make_site, delta):
    assert_wrong_usage(run("ddm-site", "ledger", "--site", make_site("a"), f"--delta={delta}"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["ddm-site", "ledger"],
        ["ddm-site", "train", "--plan", ".", "--data", "digits"],
        ["ddm-site", "review", "--plan", "."],
        ["ddm-site", "release", "--plan", "."],
        ["ddm-site", "submit", "--plan", ".", "--to", "."],
        ["ddm-site", "rotate", "--plan", "."],
        ["ddm-coord", "status"],
        ["ddm-coord", "roster", "renew"],
        ["ddm-coord", "roster", "show"],
        ["ddm-coord", "publish", str(EXAMPLE_PLAN)],
        ["ddm-coord", "admit"],
        ["ddm-coord", "assemble", "e"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_command_on_a_folder_of_another_kind_is_refused(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*arguments), "DDM104")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["verify", "e"], ["sample", "e", "--out", "o"]])
def test_verifying_without_a_pinned_root_is_wrong_usage(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e").mkdir()
    ended = run("ddm-coord", *arguments)
    assert_wrong_usage(ended)
    assert "--root is missing" in ended.err


def test_init_of_a_coordinator_twice_is_refused_and_loses_nothing(run, consortium):
    before = files_of(consortium[0])
    assert_refused(run("ddm-coord", "init", consortium[0], "--federation", "other"), "DDM104")
    assert files_of(consortium[0]) == before


def test_init_of_a_site_twice_is_refused_and_loses_nothing(run, make_site):
    site = make_site("a")
    before = files_of(site)
    again = run("ddm-site", "init", site, "--name", "b", "--root", SOME_ROOT)
    assert_refused(again, "DDM104")
    assert files_of(site) == before


def test_init_where_a_file_is_in_the_way_is_refused(run, tmp_path):
    (tmp_path / "taken").write_text("a letter")
    arguments = ["--name", "a", "--root", SOME_ROOT]
    assert_refused(run("ddm-site", "init", tmp_path / "taken", *arguments), "DDM104")


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"name = 3\n", b"name = 2026-01-01\n", b"name = \n"],
    ids=["not UTF-8", "a number", "a date", "no TOML"],
)
def test_settings_that_are_not_valid_are_refused(run, make_site, content):
    site = make_site("a")
    (site / "site.toml").write_bytes(content)
    assert_refused(run("ddm-site", "ledger", "--site", site), "DDM104")


@pytest.fixture
def enroll(run, consortium):
    def enrolled(site, *arguments):
        return run(
            *("ddm-coord", "roster", "add", request_of(site), "--coordinator", consortium[0]),
            *arguments,
        )

    return enrolled


def rosters_of(home):
    return {path.name: path.read_bytes() for path in (home / "published").glob("roster-*")}


def test_roster_add_with_the_key_that_was_read_out_is_accepted(run, enroll, make_site, consortium):
    site = make_site("a")
    key = read_public(site / "keys" / "site.pub").keyid
    ended = enroll(site, "--key", key)
    assert (ended.code, key in ended.out) == (0, True)
    (kept,) = (consortium[0] / "enrolled").iterdir()
    assert kept.name.startswith("hospital-a-")
    assert kept.read_bytes() == request_of(site).read_bytes()
    shown = run("ddm-coord", "roster", "show", "--json", "--coordinator", consortium[0])
    current = json.loads(shown.out)["current"]
    assert [member["name"] for member in current["sites"]] == ["hospital-a"]


def test_key_that_a_site_reads_out_is_the_one_init_printed(run, tmp_path):
    ended = run("ddm-site", "init", tmp_path / "s", "--name", "a", "--root", SOME_ROOT)
    assert KEYID.findall(ended.err)[0] == read_public(tmp_path / "s" / "keys" / "site.pub").keyid


def test_roster_add_with_another_key_than_was_read_out_is_refused(enroll, make_site, consortium):
    before = rosters_of(consortium[0])
    assert_refused(enroll(make_site("a"), "--key", SOME_KEY), "DDM204")
    assert list((consortium[0] / "enrolled").iterdir()) == []
    assert rosters_of(consortium[0]) == before


def test_roster_add_of_the_same_site_twice_changes_nothing(enroll, make_site, consortium):
    site = make_site("a")
    first, before = enroll(site), files_of(consortium[0])
    second = enroll(site)
    assert (first.code, second.code, second.out) == (0, 0, "")
    assert "nothing changed" in second.err
    assert files_of(consortium[0]) == before


def test_roster_add_of_a_taken_name_with_another_key_is_refused(enroll, make_site, consortium):
    enroll(make_site("a"))
    before = files_of(consortium[0])
    assert_refused(enroll(make_site("b")), "DDM104")
    assert files_of(consortium[0]) == before


def test_roster_add_of_a_site_that_pinned_another_root_is_refused(enroll, make_site):
    assert_refused(enroll(make_site("a", root=SOME_ROOT)), "DDM204")


def test_roster_add_of_an_altered_request_is_refused(enroll, make_site):
    site = make_site("a")
    envelope = json.loads(request_of(site).read_bytes())
    envelope["signatures"][0]["sig"] = "A" * 86 + "=="
    request_of(site).write_text(json.dumps(envelope))
    assert_refused(enroll(site), "DDM202")


@pytest.mark.parametrize("content", ["", "hello", "{}", "[" * 5000, '{"payload": 1.5}'])
def test_roster_add_of_something_else_is_refused(enroll, make_site, content):
    site = make_site("a")
    request_of(site).write_text(content)
    assert_refused(enroll(site), "DDM201")


@pytest.fixture
def publish(run, consortium, tmp_path):
    def published(text):
        (tmp_path / "plan.toml").write_text(text)
        return run("ddm-coord", "publish", tmp_path / "plan.toml", "--coordinator", consortium[0])

    return published


def test_publish_before_anybody_is_enrolled_is_refused(publish, consortium):
    before = files_of(consortium[0] / "published")
    assert_refused(publish(EXAMPLE_PLAN.read_text()), "DDM104")
    assert files_of(consortium[0] / "published") == before
    assert not (consortium[0] / "published" / "plan.dsse.json").exists()


def test_publish_with_an_invalid_plan_shows_every_problem(publish):
    plan = EXAMPLE_PLAN.read_text().replace("height = 8", "height = 2").replace("steps", "stepz")
    ended = publish(plan + 'x = 1\n[submission]\nmax_bytes = "many"\n')
    assert_refused(ended, "DDM101")
    for problem in ("`data.height`", "`training.stepz`", "did you mean `steps`?", "`privacy.x`"):
        assert problem in ended.err
    assert "`submission.max_bytes`" in ended.err


def test_publish_with_a_misspelt_router_key_suggests_the_right_one(publish):
    ended = publish(EXAMPLE_PLAN.read_text().replace("frequencies", "frequencis"))
    assert "did you mean `frequencies`?" in ended.err


@pytest.mark.parametrize("line", ["expires_at = 07:32:00", "expires_at =", "steps = inf"])
def test_publish_with_a_value_of_another_kind_is_refused(publish, line):
    key = line.split(" ")[0]
    assert_refused(publish(re.sub(f"(?m)^{key} =.*$", line, EXAMPLE_PLAN.read_text())), "DDM101")


def test_publish_of_a_plan_of_another_federation_is_refused(publish, enroll, make_site):
    enroll(make_site("a"))
    other = EXAMPLE_PLAN.read_text().replace('"digits"', '"other"')
    assert_refused(publish(other), "DDM204")


def test_publish_twice_keeps_the_roster(publish, enroll, make_site, consortium):
    enroll(make_site("a"))
    before = rosters_of(consortium[0])
    publish(EXAMPLE_PLAN.read_text())
    assert "under roster 2: hospital-a" in publish(EXAMPLE_PLAN.read_text()).err
    assert len(before) == 2
    assert rosters_of(consortium[0]) == before


def test_status_as_json_is_json_and_nothing_else(run, publish, enroll, make_site, consortium):
    enroll(make_site("a"))
    publish(EXAMPLE_PLAN.read_text())
    enroll(make_site("b", name="hospital-b"))
    ended = run("ddm-coord", "status", "--json", "--coordinator", consortium[0])
    found = json.loads(ended.out)
    assert (ended.code, ended.err, found["federation"]) == (0, "", "digits")
    assert [(row["site"], row["state"]) for row in found["sites"]] == [
        ("hospital-a", "in the roster"),
        ("hospital-b", "in the roster"),
    ]


def test_site_with_another_root_does_not_believe_the_published_folder(
    run, publish, enroll, make_site, consortium
):
    enroll(make_site("a"))
    publish(EXAMPLE_PLAN.read_text())
    stranger = make_site("b", root=SOME_ROOT)
    plan = ["--plan", consortium[0] / "published", "--data", "digits"]
    assert_refused(run("ddm-site", "train", "--site", stranger, *plan), "DDM211")


def test_coordinator_whose_key_others_can_read_is_refused(run, consortium, enroll, make_site):
    site = make_site("a")
    (consortium[0] / "keys" / "root.pem").chmod(0o644)
    assert_refused(enroll(site), "DDM103")


def test_what_the_operating_system_refuses_is_an_error_with_a_hint_and_status_1():
    words = [
        Path(sys.executable).parent / "ddm-site",
        "init",
        "/proc/nowhere",
        "--name",
        "site",
        "--root",
        SOME_ROOT,
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error[DDM105]: the operating system refused: ")
    assert "Traceback" not in done.stderr
