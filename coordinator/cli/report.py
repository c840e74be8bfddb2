"""`ddm-coord report`: what is known of an ensemble or a student, on one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import CoordinatorOption, RootOption, pinned_root
from ddm_fed import console
from ddm_fed.commands.options import PdfOption
from ddm_fed.commands.sample import EnsembleOrStudent
from ddm_fed.errors import OptionError

if TYPE_CHECKING:
    from ddm_fed.trust import RosterChain
    from ddm_fed.trust.log import Log


def report(
    ensemble: EnsembleOrStudent,
    out: Annotated[Path, typer.Option(help="The page to write, one HTML file.", dir_okay=False)],
    coordinator: CoordinatorOption = Path(),
    root: RootOption = None,
    published: Annotated[
        Path | None,
        typer.Option(
            help="A newer published folder, which says whether it may still be used. By default "
            "that of --coordinator."
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `sample` made of this ensemble or student.", file_okay=False
        ),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Folder that `evaluate` made of these samples.")
    ] = None,
    router_samples: Annotated[
        int,
        typer.Option(
            help="Draw so many images from each expert, and judge by them how well the router "
            "knows whose image it sees. 0 leaves that unknown; hundreds are useful. A student has "
            "no router.",
            min=0,
        ),
    ] = 0,
    card: Annotated[
        Path | None,
        typer.Option(help="Also write a model card for Hugging Face, Markdown.", dir_okay=False),
    ] = None,
    card_license: Annotated[
        str,
        typer.Option(
            "--license",
            help="The model's license for the card, as Hugging Face names it, such as apache-2.0.",
        ),
    ] = "unknown",
    pdf: PdfOption = None,
) -> None:
    """Write what is known of an ensemble or a student as one page: origin, privacy, quality.

    It verifies first, and says what is not known with the command that finds it out. The page
    loads nothing and holds no image of a site. Of an ensemble it has the shares of the sites and
    the router too, of a student by whom it was taught, how, and what a call takes.

    Examples: ddm-coord report ensemble --root sha256:3b6a… --out report.html · ddm-coord report
    ensemble --samples samples --evaluation evaluation --router-samples 500 --out report.html
    --card README.md --pdf report.pdf
    """
    from coordinator.cli.open_ensemble import open_either
    from ddm_fed.distillation.folder import VerifiedStudent
    from ddm_fed.distillation.opening import is_student
    from ddm_fed.report.ensemble_facts import EnsembleFacts, gather
    from ddm_fed.report.ensemble_page import ensemble_page
    from ddm_fed.report.facts import Sources
    from ddm_fed.report.files import require_replaceable, write_report
    from ddm_fed.report.model_card import model_card, require_license
    from ddm_fed.report.printing import find_browser, printed
    from ddm_fed.report.student_facts import StudentFacts, gather_student
    from ddm_fed.report.student_page import student_page

    for option, path in (("--out", out), ("--card", card), ("--pdf", pdf)):
        if path is not None:
            require_replaceable(path, option)
    if card_license != "unknown" and card is None:
        raise OptionError("--license belongs to --card", hint="give --card as well")
    require_license(card_license)
    browser = None if pdf is None else find_browser()
    if router_samples and is_student(ensemble):
        raise OptionError(
            f"--router-samples {router_samples}: {ensemble} is a student, which has no router",
            hint="leave it out, or give the ensemble that the student was made from",
        )
    verified = open_either(ensemble, root, coordinator)
    seen = _seen(pinned_root(root, coordinator), published, coordinator)
    facts: EnsembleFacts | StudentFacts
    if isinstance(verified, VerifiedStudent):
        facts = gather_student(verified, Sources(samples, evaluation, seen=seen))
        page = student_page(facts)
    else:
        if router_samples:
            console.say(f"judging the router by {router_samples} images of each expert")
        facts = gather(verified, Sources(samples, evaluation, router_samples, seen))
        page = ensemble_page(facts)
    write_report(out, page)
    console.say(f"{out} is the report: open it in any browser, or print it")
    if card is not None:
        write_report(card, model_card(facts, card_license))
        console.say(f"{card} is the model card")
    if pdf is not None and browser is not None:
        write_report(pdf, printed(page, browser))
        console.say(f"{pdf} is the same as a PDF")
    for item in facts.unknown:
        console.say(f"not known: {item.what}. It is found by: {item.command}")


def _seen(pin: str, published: Path | None, coordinator: Path) -> "tuple[RosterChain, Log] | None":
    """Returns the newest rosters and log at hand; None if there are none of this federation."""
    from coordinator.workspace import CoordinatorFolder
    from ddm_fed.trust.published import read_seen

    if published is not None:
        return read_seen(published, pin)
    if not (coordinator / "coordinator.toml").exists():
        return None
    home = CoordinatorFolder.open(coordinator)
    return read_seen(home.published, pin) if home.settings.root == pin else None
