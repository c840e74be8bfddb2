"""What a site is told that mixtures like its own were worth."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ddm_fed.mixture import measured
from ddm_fed.mixture.measured import EPSILONS, MEASURED
from sites.cli.main import app

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks/results/private_mixtures_cpu_20261129.md"


def test_row_and_column_are_never_above_what_a_site_has():
    for units, epsilon in ((1_000, 0.5), (4_999, 1.99), (5_000, 2), (10**6, 40)):
        found = measured(units, epsilon)
        assert found.images <= units
        assert float(found.epsilon) <= epsilon
    assert measured(10**6, 40) == (50_000, "10", MEASURED[50_000][-1])


def test_site_smaller_than_every_one_that_was_studied_is_told_no_figure():
    assert measured(299, 10) is None
    assert measured(50_000, 0.49) is None


@pytest.mark.parametrize("file", [RESULTS, ROOT / "docs/privacy.md"])
def test_figures_are_those_of_the_study_and_of_the_privacy_page(file):
    text = file.read_text()
    for images, row in MEASURED.items():
        cells = " | ".join(value.lstrip("0") for value in row)
        assert f"| {images:,} | {cells} |" in text
    assert len(EPSILONS) == len(row)


def budget(*words):
    found = CliRunner().invoke(app, ["budget", *map(str, words)])
    assert found.exit_code == 0
    return " ".join(found.output.split())


@pytest.mark.slow
def test_budget_says_what_the_mixture_of_a_site_of_that_size_was_worth(tmp_path):
    plan = (ROOT / "examples/digits/plan-private.toml").read_text()
    file = tmp_path / "plan.toml"
    file.write_text(plan)
    said = budget("--plan", file, "--units", 6000)
    assert "5,000 images at epsilon 4, was right in 0.785" in said
    assert "so few units" in budget("--plan", file, "--units", 100)
    assert "Give --units" in budget("--plan", file)
    file.write_text(re.sub(r"components = \d+", "radius = 3", plan))
    assert "In a study" not in budget("--plan", file, "--units", 6000)
