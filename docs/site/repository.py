"""Shows in the built site what documents link to outside docs/: README, figures, source files.

MkDocs knows the files of docs/ only. Here every file of the repository that a page links to becomes
a page (Markdown) or a plain file below `repository/`, README the front page, and links follow them.
A link to nothing stays as it is, so that MkDocs warns of it and the strict build fails.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
DECISIONS = "docs/adr"


def page_of(path: str) -> str:
    """Returns where the site has a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path == DECISIONS:
        return "adr/index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def path_of(page: str) -> str:
    """Returns which file of the repository a page of the site is."""
    if page == "index.md":
        return "README.md"
    inside = page.startswith("repository/")
    return page.removeprefix("repository/") if inside else f"docs/{page}"


def target_of(path: str, link: str) -> str:
    """Returns which file of the repository `link` names in the file `path`."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    readme = f"{found}/README.md"
    return readme if (ROOT / readme).is_file() else found


def linked(path: str) -> list[str]:
    """Returns the files of the repository that a Markdown file links to."""
    text = FENCE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    return [target_of(path, match[2]) for match in LINK.finditer(text)]


def on_files(files: Files, config: Any) -> Files:
    """Adds what pages link to, and what those link to."""
    waiting = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    waiting += [path_of(file.src_uri) for file in files if file.src_uri.endswith(".md")]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if files.get_file_from_path(page_of(path)) is None:
            files.append(File.generated(config, page_of(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += linked(path)
    lines = ["# Decisions", ""]
    for file in sorted((ROOT / DECISIONS).glob("*.md")):
        title = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({file.name})")
    files.append(File.generated(config, "adr/index.md", content="\n".join(lines)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links into those of the site."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = page_of(target_of(path_of(here), match[2]))
        if files.get_file_from_path(target) is None:
            return match[0]
        relative = os.path.relpath(target, posixpath.dirname(here) or ".")
        return f"{match[1]}{relative}{match[3] or ''}"

    if here == "adr/index.md":
        return markdown
    parts = FENCE.split(markdown)
    return "".join(part if index % 2 else LINK.sub(moved, part) for index, part in enumerate(parts))
