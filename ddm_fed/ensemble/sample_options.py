"""What `sample` may be asked for, what an ensemble can answer, and what to say of it."""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddm_fed.ensemble.folder import VerifiedEnsemble
from ddm_fed.ensemble.load import asks_centroids, frequencies_seen, load_releases
from ddm_fed.ensemble.pool import Precision
from ddm_fed.ensemble.prompts import require_prompts_fit
from ddm_fed.ensemble.sampling import SamplingOptions
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.errors import OptionError, guess
from ddm_fed.mixture import released_totals
from ddm_fed.records import DataSpec, RouterName
from ddm_fed.router import compares_captions


@dataclass(frozen=True)
class SampleOptions:
    """What is sampled, how, and what is written of it; see `ddm-coord sample --help`.

    Attributes:
        count: Number of samples.
        sampling: How they are sampled.
        router: Which of the routers the ensemble can have; None is the one of its record.
        label: The only class that is sampled; None samples every class as often as sites have it.
        resident: Most experts in memory at once; None keeps all.
        precision: Of the experts' arithmetic.
        png: Whether every sample is written as a picture of its own, too.
        devices: Where experts run; several take them in turn.
        prompts: Captions that samples are asked to be, in turn; none without captions in the plan.
        text_encoder: File of the plan's text encoder, where there are prompts.
        autoencoder: Folder of what decodes samples, where they are latents.
        latents: Whether latents are kept: beside the pictures, or in their place without
            `autoencoder`.
        embedder_weights: File of the embedder of the plan's centroids.
        part: `(i, n)` draws every n-th chunk from the i-th on only, i from 1. None draws all.
        offload: Whether experts that gave way to others stay in the processor's memory.
    """

    count: int
    sampling: SamplingOptions
    router: RouterName | None = None
    label: str | None = None
    resident: int | None = None
    precision: Precision = "float32"
    png: bool = True
    devices: tuple[str, ...] = ("cpu",)
    offload: bool = False
    prompts: tuple[str, ...] = ()
    text_encoder: Path | None = None
    autoencoder: Path | None = None
    latents: bool = False
    embedder_weights: Path | None = None
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Content:
    """What the images of an ensemble are, as its plan and its releases say.

    Attributes:
        data: Their form, and the classes of the plan.
        totals: Units of every class at all sites as released, `(G,)`, 0 where no site has any;
            None where the plan has no classes.
        knows_no_class: Whether experts were also trained with the class withheld, which guidance
            starts from.
        frequencies: Coefficients per channel that the router sees, or None if nobody knows.
        deaf: Whether the router asks centroids and cannot compare captions with them.
        one_network: Whether it is a student, of which no sample has a site.
    """

    data: DataSpec
    totals: Tensor | None
    knows_no_class: bool = True
    frequencies: int | None = None
    deaf: bool = False
    one_network: bool = False

    @classmethod
    def of(
        cls, verified: VerifiedEnsemble, router: RouterName | None, strategy: Strategy
    ) -> "Content":
        """Returns what a verified ensemble says of its images, sampled by `strategy`."""
        plan = verified.trust.plan
        totals = None
        if plan.data.classes:
            totals = released_totals(plan, load_releases(verified))
        return cls(
            plan.data,
            totals,
            plan.training.label_dropout > 0,
            frequencies_seen(verified, router, strategy.redraws_until),
            asks_centroids(verified, router) and not compares_captions(plan),
        )

    @property
    def held(self) -> tuple[str, ...]:
        """The classes that some site has; all of the plan where none stands out of the noise."""
        if self.totals is None or not self.totals.any():
            return self.data.classes
        pairs = zip(self.data.classes, self.totals.tolist(), strict=True)
        return tuple(name for name, total in pairs if total > 0)

    def weights(self, label: str | None) -> Tensor | None:
        """Returns what classes are drawn in proportion to, `(G,)`, or None without classes.

        Args:
            label: The only class to draw; by default every class, as often as sites have it.
        """
        if self.totals is None:
            return None
        if label is None:
            return self.totals if self.totals.any() else self.totals + 1
        only = self.totals.new_zeros(self.totals.shape)
        only[self.data.classes.index(label)] = 1
        return only


def require_fit(ensemble: Ensemble, content: Content, options: SampleOptions) -> None:
    """Refuses options that the ensemble cannot answer.

    Raises:
        OptionError: naming the option, and what to give instead.
    """
    classes, guidance = content.data.classes, options.sampling.guidance
    if options.label is not None and options.label not in classes:
        hint = f"its classes are {', '.join(classes)}"
        if not classes:
            hint = "its experts know no classes: leave --class out"
        if content.data.text is not None:
            hint = "the plan has captions: give --prompt instead"
        raise OptionError(
            f"--class {options.label} is not in the plan{guess(options.label, classes)}",
            hint=hint,
        )
    if options.label is not None and options.label not in content.held:
        raise OptionError(
            f"--class {options.label}: no site released a count of `{options.label}` that stands "
            "out of its noise, so no expert is known to have learnt it, and what came out would be "
            "invented",
            hint=f"the classes that sites have are {', '.join(content.held)}",
        )
    if options.sampling.temperature != 1 and not options.sampling.strategy.asks_router:
        raise OptionError(
            f"--router-temperature {options.sampling.temperature:g}: strategy "
            f"{options.sampling.strategy} asks no router",
            hint="leave it out, or choose another --strategy",
        )
    require_prompts_fit(content.data, options.prompts, options.text_encoder, guidance)
    if guidance != 1.0 and not content.data.conditional:
        raise OptionError(
            f"--guidance {guidance:g} needs classes to guide to, and the plan has none",
            hint="leave --guidance out",
        )
    if guidance != 1.0 and not content.knows_no_class:
        raise OptionError(
            f"--guidance {guidance:g} starts from what experts say without a class, and "
            "under this plan (training.label_dropout = 0) they never learnt to say anything",
            hint="leave --guidance out; for guidance train under a plan with a label_dropout such "
            "as 0.1",
        )
    if options.sampling.attribution and ensemble.sees_until <= 0:
        raise OptionError(
            "--attribution asks the router whose an image is, and this router looks at no image",
            hint="give --router mixture, or another that the ensemble has; the sites that were "
            "drawn are in samples.npz anyway",
        )
    looks = options.sampling.strategy.asks_router or options.sampling.attribution
    if ensemble.reads_estimate and looks and options.embedder_weights is None:
        raise OptionError(
            "--embedder-weights is missing: the router compares embeddings of images",
            hint="give the file whose digest is `router.centroids.weights_sha256` of the plan, or "
            "choose --strategy sticky without --attribution, or another --router",
        )
    try:
        ensemble.require(options.sampling.strategy)
    except ValueError as error:
        raise OptionError(
            f"--strategy: {error}",
            hint="choose --strategy sticky, or --router mixture where the plan has it",
        ) from None


def notes_on(content: Content, options: SampleOptions) -> list[str]:
    """Returns what has to be known of such samples before anybody counts or compares them."""
    sampling, notes = options.sampling, list[str]()
    pixels = math.prod(content.data.shape[1:])
    missing = [name for name in content.data.classes if name not in content.held]
    if missing and options.label is None:
        notes.append(f"no site is known to have {', '.join(missing)}: none were drawn")
    if content.totals is not None and not content.totals.any():
        notes.append(
            "no released count of a class stands out of its noise: classes were drawn in equal "
            "parts, whatever the sites have"
        )
    seen = content.frequencies
    if sampling.strategy.asks_router and seen is not None and seen < pixels:
        notes.append(
            f"strategy {sampling.strategy} goes by a router that sees {seen} of {pixels} "
            "frequencies: what sites differ in beyond those is mixed; --strategy sticky keeps it"
        )
    if sampling.temperature != 1:
        notes.append(
            f"at router temperature {sampling.temperature:g} the shares of the sites are not exact"
        )
    if content.data.text is not None and not options.prompts:
        notes.append("no --prompt was given: these are images that nothing was said of")
    if options.prompts and content.deaf:
        notes.append(
            "sites were drawn by their shares, whatever the prompt: centroids answer prompts where "
            "the plan's text encoder is their embedder and `router.centroids.prompts` are given"
        )
    if sampling.guidance != 1.0 and not content.one_network:
        text = f"under guidance {sampling.guidance:g} the shares of the sites are not exact"
        if sampling.strategy.asks_router:
            text += ": some may be far too large; use --strategy sticky, which draws sites by share"
        notes.append(text)
    return notes
