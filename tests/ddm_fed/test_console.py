"""What people see, whatever they look at it with: encodings, widths, names, signals, full disks."""

import ast
import fcntl
import io
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import click
import pytest
import typer
from commands import Started, done
from rich.text import Text

import coordinator.cli.main
import sites.cli.main
from coordinator.workspace import CoordinatorFolder
from ddm_fed import console, progress
from ddm_fed.errors import StateError, names_its_path, naming

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PLAN = ROOT / "examples" / "digits" / "plan.toml"
APPS = {"ddm-site": sites.cli.main.app, "ddm-coord": coordinator.cli.main.app}


def commands(group: click.Command, words: tuple[str, ...]):
    """Yields every command below `group` with what is typed for it."""
    yield words, group
    for name, inner in getattr(group, "commands", {}).items():
        yield from commands(inner, (*words, name))


EVERY = [
    pytest.param(words, command, id=" ".join(words))
    for name, app in APPS.items()
    for words, command in commands(typer.main.get_command(app), (name,))
]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"COLUMNS": "200"} | variables


def process(*words: object, cwd: Path | None = None, **variables: str):
    """Runs the installed command; returns exit status and both streams, as bytes."""
    ended = subprocess.run(
        [BIN / str(words[0]), *map(str, words[1:])],
        env=environment(**variables),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def on_a_terminal(columns: int, *words: object) -> str:
    """Returns what a command writes to a terminal of that width, without its colours."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = environment(TERM="xterm")
    del env["COLUMNS"]
    started = Started(*map(str, words), env=env, stdin=there, stdout=there, stderr=there)
    os.close(there)
    shown = b""
    try:
        while block := os.read(here, 65536):
            shown += block
    except OSError:  # Linux says so when the last writer is gone
        pass
    started.wait()
    os.close(here)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())


# Encodings


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("words", [("ddm-site",), ("ddm-site", "train"), ("ddm-coord", "sample")])
def test_help_on_output_of_any_encoding_is_whole(words, encoding):
    code, out, err = process(*words, "--help", PYTHONIOENCODING=encoding)

    assert (code, err) == (0, b"")
    assert b"Example: ddm-" in out
    if encoding != "utf-8":
        assert b"..." in out


def test_table_with_a_name_that_the_output_cannot_write_is_shown_all_the_same(tmp_path):
    code = (
        "from ddm_fed import console\n"
        "console.run(lambda: console.show_table('\\udcff', ['ä'], [['…\\u65e5']]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert rb"\udcff" in ended.stdout
    assert rb"...\u65e5" in ended.stdout


@pytest.mark.parametrize(("encoding", "said"), [("latin-1", "byte 0xfc"), ("utf-16", "UTF-16")])
@pytest.mark.parametrize("command", ["plan show", "publish", "budget"])
def test_plan_in_another_encoding_is_refused_with_its_name(run, tmp_path, encoding, said, command):
    CoordinatorFolder.create(tmp_path / "c", "digits")
    file = tmp_path / "mine.toml"
    file.write_bytes(("# für alle\n" + PLAN.read_text("utf-8")).encode(encoding))
    words = {
        "plan show": ("ddm-coord", "plan", "show", file),
        "publish": ("ddm-coord", "publish", file, "--coordinator", tmp_path / "c"),
        "budget": ("ddm-site", "budget", "--plan", file),
    }[command]

    code, _, err = run(*words)

    assert code == 1
    assert err.startswith("error[DDM101]: mine.toml is not written in UTF-8: ")
    assert said in err


@pytest.mark.slow
def test_plan_and_settings_with_a_byte_order_mark_are_read(run, tmp_path):
    home = CoordinatorFolder.create(tmp_path / "c", "digits")
    file = home.path / "coordinator.toml"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    plan = tmp_path / "mine.toml"
    plan.write_bytes(b"\xef\xbb\xbf" + PLAN.read_bytes())

    assert CoordinatorFolder.open(home.path).settings.federation == "digits"
    assert run("ddm-coord", "plan", "show", plan)[0] == 0


@pytest.mark.slow
def test_plan_is_read_the_same_in_any_locale(tmp_path):
    plan = tmp_path / "mine.toml"
    plan.write_text("# für alle\n" + PLAN.read_text("utf-8"), "utf-8")

    code, _, err = process(
        *("ddm-coord", "plan", "show", plan),
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )

    assert code == 0, err


# Markup


@pytest.mark.parametrize(("words", "command"), EVERY)
def test_no_word_of_help_is_eaten_as_markup(words, command):
    texts = [command.help or "", *(getattr(p, "help", None) or "" for p in command.params)]
    for text in texts:
        assert Text.from_markup(text).plain == text


@pytest.mark.parametrize("text", ["[router] of the plan", "a[/bold]b", "x:key:y", "C:\\", "[red]"])
@pytest.mark.parametrize("terminal", [True, False])
def test_text_like_markup_is_shown_as_it_is(monkeypatch, text, terminal):
    shown = io.StringIO()
    monkeypatch.setenv("COLUMNS", "200")
    for made in (console.out, console.err):  # the very ones that commands write with
        monkeypatch.setattr(made, "_file", shown)
        monkeypatch.setattr(made, "_force_terminal", terminal)
        monkeypatch.setattr(made, "no_color", True)

    console.say(text)
    console.next_step(text)
    console.show_error(StateError(text, hint=text))
    console.show_text(text)
    console.show_table(text, ["name", text], [["row", text]])
    with console.counting(text, 3, text) as update:
        update(1, text)
    with console.moving_bytes(text, 3) as advance:
        advance(3)

    found = shown.getvalue().count(text)
    assert found >= (10 if terminal else 8)


# Widths


def test_status_on_a_narrow_terminal_cuts_no_word(stages):
    home = stages.submitted.home.path
    shown = on_a_terminal(60, "ddm-coord", "status", "--coordinator", home)

    assert re.search(r"^hospital-a\r?$", shown, re.MULTILINE)
    assert re.search(r"^  state: arrived\r?$", shown, re.MULTILINE)
    assert re.search(r"^  waiting for: `ddm-coord admit`\r?$", shown, re.MULTILINE)


def test_keys_on_a_narrow_terminal_stay_whole(stages):
    home = stages.submitted.home.path
    shown = on_a_terminal(60, "ddm-coord", "roster", "show", "--coordinator", home)

    key = stages.submitted.key("hospital-a").public.keyid
    assert key in shown.replace("\r\n", "\n")


@pytest.mark.slow
@pytest.mark.parametrize(("words", "command"), EVERY)
def test_help_in_few_columns_cuts_no_option(words, command, monkeypatch, capsys):
    main = {"ddm-site": sites.cli.main.main, "ddm-coord": coordinator.cli.main.main}[words[0]]
    shown_params = [param for param in command.params if not getattr(param, "hidden", False)]
    wanted = {option for param in shown_params for option in param.opts if option[0] == "-"}
    for columns in ("60", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys, "argv", [*words, "--help"])
        with pytest.raises(SystemExit):
            main()
        shown = capsys.readouterr().out
        assert [option for option in wanted if option not in shown] == []


def test_help_in_few_columns_has_no_escapes_of_its_own(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "argv", ["ddm-site", "train", "--help"])
    with pytest.raises(SystemExit):
        sites.cli.main.main()
    assert "\\[" not in capsys.readouterr().out


# Suggestions


@pytest.mark.parametrize(
    "words",
    [("ddm-site", "reviw"), ("ddm-coord", "publsh"), ("ddm-coord", "roster", "shw")],
    ids=" ".join,
)
def test_misspelt_command_is_guessed_at_once_and_once(run, words):
    code, _, err = run(*words)
    assert code == 2
    assert err.count("Did you mean") == 1


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("ddm-coord", "init", "x", "--federaton", "y"), "'--federation'"),
        (("ddm-coord", "sample", ".", "--solver", "heum", "--out", "x"), "`heun`"),
        (("ddm-coord", "sample", ".", "--router", "Mixtur", "--out", "x"), "`mixture`"),
    ],
    ids=lambda found: " ".join(found) if isinstance(found, tuple) else found,
)
def test_misspelt_option_and_choice_are_guessed(run, words, near):
    ended = run(*words)
    assert ended.code == 2
    assert f"id you mean {near}?" in ended.err


def interpolated_commands() -> list[str]:
    """Every text in the source that puts a value into a command to be typed, without quoting it."""
    found = []
    for package in ("sites", "coordinator", "ddm_fed"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.JoinedStr):
                    continue
                before = ""
                for part in node.values:
                    if isinstance(part, ast.Constant):
                        before += part.value
                    elif re.search(r"(ddm-site|ddm-coord|python -m) [a-z ]*[^`]*$", before):
                        found.append(f"{path.name}: {ast.unparse(part.value)}")
    return found


def test_commands_that_are_suggested_are_put_together_by_one_that_quotes():
    # none of these can have a blank: a number, and names that a pattern allows
    assert set(interpolated_commands()) == {
        "assemble.py: kind",
        "load.py: kind",
        "changes.py: name",
        "report.py: name",
    }


def test_next_step_with_blanks_in_paths_can_be_pasted(run, tmp_path):
    folder = tmp_path / "our consortium's"
    _, _, err = run("ddm-coord", "init", folder, "--federation", "digits")

    (line,) = [line for line in err.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: "))
    assert words == ["ddm-coord", "roster", "add", "--coordinator", str(folder), "ENROLMENT_FILES"]


# Places to listen at


@pytest.mark.parametrize("option", ["--listen", "--enroll", "--web"])
@pytest.mark.parametrize("place", ["8443", ":8443", "host", "::1:8443", "h:99999", "h:٨", "h:"])
def test_place_that_cannot_be_listened_at_is_wrong_usage_before_anything_is_opened(
    run, option, place
):
    code, out, err = run("ddm-coord", "serve", f"{option}={place}")
    assert (code, out) == (2, "")
    said = " ".join(re.sub("[│|]", " ", err).split())
    assert ("127.0.0.1:8443 to be reached from this machine only" in said) == (place == "8443")
    assert place == "8443" or "cannot listen on this" in said


# Full disks


WRITERS = """
import resource, signal, sys
from pathlib import Path

import numpy as np
import torch

from ddm_fed.storage.digests import check_file
from ddm_fed.storage.files import (append_durably, new_folder, write_atomically)
from ddm_fed.pictures import write_grid
from ddm_fed.records import sha256_hex

from ddm_fed.signing import write_key
from ddm_fed.storage.tensors import write_tensors

folder = Path(sys.argv[1])
(folder / "source").write_bytes(bytes(9999))


def into_new_folder(path):
    with new_folder(path) as made, (made / "inner").open("wb") as file:
        file.write(bytes(9999))


writers = {
    "write_atomically": lambda path: write_atomically(path, bytes(9999)),
    "append_durably": lambda path: append_durably(path, bytes(9999)),
    "new_folder": into_new_folder,
    "check_file": lambda path: check_file(
        folder / "source", sha256=sha256_hex(bytes(9999)), size_bytes=9999, what="x", copy_to=path
    ),
    "write_tensors": lambda path: write_tensors(path, {"a": np.zeros(9999)}),
    "grid.png": lambda path: write_grid(path, torch.rand(99, 1, 8, 8)),
    "key.pem": write_key,
}
resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))  # as a full disk: an error without a name
for name, write in writers.items():
    try:
        write(folder / name)
    except Exception as error:
        print(type(error).__name__, str(folder / name) in str(error), name)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of files work otherwise elsewhere")
def test_what_cannot_be_written_is_named(tmp_path):
    script = tmp_path / "writers.py"
    script.write_text(WRITERS)
    assert done(script, tmp_path).out.splitlines() == [
        "OSError True write_atomically",
        "OSError True append_durably",
        "OSError True new_folder",
        "OSError True check_file",
        "MachineError True write_tensors",
        "OSError True grid.png",
        "OSError True key.pem",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files work otherwise elsewhere")
def test_command_on_a_full_disk_names_the_file_and_shows_no_traceback(tmp_path):
    code = (
        "import resource, sys, coordinator.cli.main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "sys.argv = ['ddm-coord', 'init', sys.argv[1], '--federation', 'digits']\n"
        "coordinator.cli.main.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "c"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error[DDM105]: the operating system refused: ")
    assert str(tmp_path / "c") in ended.stderr.splitlines()[0]
    assert "Traceback" not in ended.stderr


def test_names_that_an_error_has_already_are_kept(tmp_path):
    @names_its_path
    def write(path):
        raise FileNotFoundError(2, "gone", "other")

    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path)
    assert caught.value.filename == "other"
    with pytest.raises(OSError, match="no number"), naming(tmp_path):
        raise OSError("no number")


# Signals


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_command_that_is_ended_by_a_signal_says_so(number, status):
    code = (
        "import time\nfrom ddm_fed import console\n"
        "def work():\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "console.run(work)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        started.stdout.readline()
        started.send_signal(number)
        _, err = started.communicate(timeout=20)

    assert started.returncode == status
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert err.startswith(f"ended by {name}: nothing half-written is taken for whole")
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_that_is_ended_before_its_first_checkpoint_says_where_it_begins_again(
    stages, scratch, number
):
    fed = stages.drafted.copy(scratch, "consortium", "hospital-a")
    site = fed.site("hospital-a")
    plan = PLAN.read_text().replace('"digits"', '"test"')
    (scratch / "plan.toml").write_text(plan)
    done("ddm-coord", "publish", scratch / "plan.toml", "--coordinator", fed.home.path)
    words = ("train", "--site", site.path, "--plan", fed.published, "--data", "digits:0-4")
    readable, writable = os.pipe()
    with Started("ddm-site", *words, "--checkpoint-every", 600, stderr=writable) as started:
        os.close(writable)
        said = []
        with os.fdopen(readable) as lines:
            for line in lines:
                said.append(line)
                if line.startswith("a step takes ") and line not in said[:-1]:
                    started.send_signal(number)
        started.wait(60)
    text = "".join(said)

    assert re.search(
        r"a step takes [\d.e-]+ s: about .+ for the (1,[01])?[0-9]+ that are left; memory", text
    )
    assert "training was interrupted after" in text
    assert "hint: no checkpoint of a step was written yet: the same command begins with" in text
    assert (started.returncode, "Traceback" in text) == (1, False)


# Signs of life


def test_heartbeat_beats_although_nothing_moves():
    lines: list[str] = []
    with progress.Heartbeat("training", 1200, "steps", lines.append, every_s=0.02):
        time.sleep(0.2)
    count = len(lines)
    time.sleep(0.1)

    assert count >= 3
    assert len(lines) == count
    assert lines[0] == "training: 0 of 1,200 steps, 0 s so far"


def test_count_without_a_terminal_is_written_line_by_line(monkeypatch, capsys):
    monkeypatch.setattr(console, "Heartbeat", partial(progress.Heartbeat, every_s=0.02))
    with console.counting("training a", 9, "steps") as update:
        update(7, "loss 0.5")
        time.sleep(0.1)
    with console.moving_bytes("sending", 900) as advance:
        advance(500)
        advance(300)
        time.sleep(0.1)
    with console.waiting("reading the images"):
        time.sleep(0.1)

    said = capsys.readouterr().err.splitlines()
    assert "training a: 7 of 9 steps, 0 s so far, loss 0.5" in said
    assert "sending: 800 of 900 bytes, 0 s so far" in said
    assert "reading the images, 0 s so far" in said


def test_a_minute_passes_between_two_lines():
    assert progress.EVERY_S == 60


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (9600, "2 h 40 min"), (500_000, "5.8 days")],
)
def test_duration_is_said_as_people_say_it(seconds, said):
    assert progress.duration(seconds) == said
