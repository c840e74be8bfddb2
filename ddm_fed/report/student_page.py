"""The report of a student as a page."""

from ddm_fed.models import NetworkCost
from ddm_fed.report.model_page import model_page
from ddm_fed.report.student_facts import StudentFacts
from ddm_fed.report.student_summary import in_short, limits, promises, teaching

COST_COLUMNS = ("asked at every call", "parameters", "GFLOP for one image")


def student_page(facts: StudentFacts) -> bytes:
    """Returns the page of a student, HTML in UTF-8; equal for equal facts."""
    return model_page(
        "student.html",
        facts,
        summary=in_short(facts),
        limits=limits(facts),
        promises=promises(facts),
        teaching=teaching(facts),
        cost_columns=COST_COLUMNS,
        cost_rows=_cost_rows(facts),
    )


def _cost_rows(facts: StudentFacts) -> list[tuple[str, str, str]]:
    """Returns what one call takes: of the student, and of its ensemble's networks."""
    rows = [("the student", *_range([facts.cost]))]
    if facts.experts is not None:
        count = len(facts.experts)
        rows.append(("one expert of the ensemble", *_range(facts.experts)))
        if count > 1:
            parameters = sum(cost.parameters for cost in facts.experts)
            work = sum(cost.flops_per_image for cost in facts.experts)
            rows.append((f"all {count} experts", f"{parameters:,}", _giga(work)))
    return rows


def _range(costs: "list[NetworkCost] | tuple[NetworkCost, ...]") -> tuple[str, str]:
    """Returns parameters and work of one of several networks: one figure, or from what to what."""
    parameters = sorted({cost.parameters for cost in costs})
    work = sorted({cost.flops_per_image for cost in costs})
    return (
        " to ".join(f"{each:,}" for each in dict.fromkeys((parameters[0], parameters[-1]))),
        " to ".join(map(_giga, dict.fromkeys((work[0], work[-1])))),
    )


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3g}"
