"""Documents held to their word: every command and every option that they name exists."""

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Iterator

import click
import commands
import pytest
from documents import ROOT, blocks_of
from typed import APPS, problems_with

DOCUMENTS = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "adr", *(ROOT / "examples").rglob("."))
    for path in folder.glob("*.md")
)
STARTS = re.compile(r"(?<![`\w./-])ddm-(?:site|coord)\b")
ENDS = re.compile(r"\s(?:&&|\|\||[|;>&])(?:\s|$)|[;)]\s|$")
README_BLOCKS = [block for block in blocks_of(ROOT / "README.md") if "ddm-" in block.text]


def lines_of(text: str) -> list[str]:
    """Returns the lines of a block, those that a backslash ends put together."""
    return text.replace("\\\n", " ").splitlines()


def commands_in(line: str) -> Iterator[list[str]]:
    """Yields the words of every command in a line of shell."""
    for start in STARTS.finditer(line.partition(" # ")[0]):
        rest = line[start.start() :].partition(" # ")[0]
        end = ENDS.search(rest)
        yield shlex.split(rest[: end.start()] if end else rest)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_blocks_of_a_document_can_be_run_as_they_are_written(path):
    found = []
    for block in blocks_of(path):
        if block.kind not in ("", "sh"):
            continue
        for line in lines_of(block.text):
            for words in commands_in(line):
                found += problems_with(words, whole=True)
    assert found == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_text_of_a_document_exist(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = []
    for quoted in re.findall(r"`(ddm-(?:site|coord) [^`]+)`", text):
        for words in commands_in(" ".join(quoted.split())):
            found += problems_with(words, whole=False)
    assert found == []


def suggestions() -> list[tuple[str, str]]:
    """Returns every command between backquotes in texts of the source, with its file."""
    found = []
    for package in ("ddm_fed", "sites", "coordinator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = " ".join(node.value.split())
                    found += [
                        (str(path.relative_to(ROOT)), quoted)
                        for quoted in re.findall(r"`(ddm-(?:site|coord) [^`]+)`", text)
                    ]
    return found


def test_commands_that_hints_name_exist():
    found = suggestions()
    assert len(found) > 50
    wrong = [
        f"{path}: {problem}"
        for path, quoted in found
        for words in commands_in(quoted)
        for problem in problems_with(words, whole=False)
    ]
    assert wrong == []


def examples() -> Iterator[tuple[str, str]]:
    """Yields the examples in the help of every command."""

    def below(group: click.Command, words: str) -> Iterator[tuple[str, str]]:
        for paragraph in (group.help or "").split("\n\n"):
            for part in re.findall(r"Examples?: (.+)$", " ".join(paragraph.split())):
                for line in part.split(" · "):
                    yield words, line.removesuffix(".")
        for name, inner in getattr(group, "commands", {}).items():
            yield from below(inner, f"{words} {name}")

    for name, app in APPS.items():
        yield from below(app, name)


def test_examples_in_help_can_be_run_as_they_are_written():
    found = list(examples())
    assert len(found) > 30
    wrong = [
        f"{name}: {problem}"
        for name, line in found
        for words in commands_in(line)
        # the folder of the site may come from the environment or be the present one
        for problem in problems_with(words, whole=True)
    ]
    assert wrong == []


# README.md's own commands, by real processes

# in place of the two programs: says which words the shell makes of a line
SPELLER = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" >> words
"""


def small_plan(text: str) -> str:
    """Returns the example's plan with as few steps as a test can have."""
    return re.sub(r"(?m)^steps = \d+", "steps = 3", text)


@pytest.fixture
def shell(tmp_path):
    """Returns a function that runs a line of bash in `tmp_path`, and the command in it."""
    folder, programs = tmp_path / "run", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name in APPS:
        (programs / name).write_text(SPELLER)
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"

    def run(line: str) -> str:
        spelt = folder / "words"
        words = ["bash", "-euc", line]
        said = subprocess.run(
            words, cwd=folder, env={"PATH": path}, capture_output=True, check=True
        )
        assert (said.stdout, said.stderr) == (b"", b"")
        if not line.strip():
            return ""
        program, *rest = spelt.read_text("utf-8").split("\0")[:-1]
        spelt.unlink()
        ended = commands.done(program, *rest, cwd=folder)
        return ended.out + ended.err

    return folder, run


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_readme_commands_run_line_by_line_end_with_a_sampled_ensemble(shell):
    folder, run = shell
    plan = folder / "examples" / "digits" / "plan.toml"
    plan.parent.mkdir(parents=True)
    original = ROOT / "examples" / "digits" / "plan.toml"
    plan.write_text(small_plan(original.read_text("utf-8")), "utf-8")
    known: dict[str, str] = {}
    ran = []
    for block in README_BLOCKS:
        for line in lines_of(block.text):
            for prefix, value in known.items():  # what people read to one another
                line = line.replace(f"{prefix}…", value)
            said = run(line)
            for prefix in ("sha256:", "ed25519:"):
                if match := re.search(f"{prefix}[0-9a-f]{{64}}", said):
                    known.setdefault(prefix, match[0])
            ran.append(shlex.split(line)[1] if line.strip() else "")

    assert ran[:3] == ["init", "init", "roster"]
    assert {"train", "review", "release", "submit", "assemble", "sample"} <= set(ran)
    assert (folder / "samples" / "grid.png").is_file()
