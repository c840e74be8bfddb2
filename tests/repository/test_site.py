"""The documentation as a site: what documents link to is in it, and nothing is fetched."""

import re
import shutil
import subprocess
import sys

import pytest
from documents import ROOT

FETCHED = re.compile(
    r"""<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+stylesheet[^>]+https?:"""
)


def build(folder, target):
    """Returns how MkDocs ends that builds the site of `folder`, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", target],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_site_is_built_without_a_warning_and_has_what_documents_link_to(tmp_path):
    code, said = build(ROOT, tmp_path / "site")
    assert code == 0, said
    front = (tmp_path / "site" / "index.html").read_text()
    assert "Institutions that may not pool their images" in front
    assert 'href="repository/ddm_fed/records/plan.py"' in front
    assert (tmp_path / "site/repository/ddm_fed/records/plan.py").is_file()
    decisions = (tmp_path / "site" / "adr" / "index.html").read_text()
    assert decisions.count('.html">00') == len(list((ROOT / "docs/adr").glob("0*.md")))
    paper = (tmp_path / "site" / "paper.html").read_text()
    figures = "repository/benchmarks/results/paper_fashion_cpu_20261129.html"
    assert f'href="{figures}"' in paper
    assert (tmp_path / "site" / figures).is_file()
    pages = list((tmp_path / "site").rglob("*.html"))
    assert [page for page in pages if FETCHED.search(page.read_text())] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code"),
    [("[there](docs/there.md), [a file](a.py)", 0), ("[gone](docs/gone.md)", 1), ("[no](b.py)", 1)],
)
def test_link_to_nothing_fails_the_build(tmp_path, text, code):
    (tmp_path / "docs" / "site").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "site" / "repository.py", tmp_path / "docs" / "site")
    config, nav, _ = (ROOT / "mkdocs.yml").read_text().partition("nav:\n  - Home")
    assert nav
    (tmp_path / "mkdocs.yml").write_text(config)
    (tmp_path / "README.md").write_text(f"# Front\n\n{text}\n")
    (tmp_path / "docs" / "there.md").write_text("# There\n\n[back](../README.md)\n")
    (tmp_path / "a.py").write_text("pass\n")
    found, said = build(tmp_path, tmp_path / "site")
    assert found == code, said
    if code:
        assert text.partition("(")[2][:-1].rpartition("/")[2] in said
