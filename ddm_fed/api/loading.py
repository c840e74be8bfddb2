"""An ensemble or a student that verifies, in memory: sampled, asked and described from Python."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_fed.api.sample_set import SampleSet
from ddm_fed.api.verifying import verify_usable
from ddm_fed.api.watching import counted
from ddm_fed.autoencoders import open_autoencoder
from ddm_fed.distillation.facts import facts_of
from ddm_fed.distillation.folder import VerifiedStudent
from ddm_fed.distillation.lessons import log_posterior_of_images
from ddm_fed.distillation.opening import Sampled, kind_of
from ddm_fed.distillation.sampling import (
    NAME,
    load_student,
    require_no_experts_asked,
    student_content,
)
from ddm_fed.ensemble.decoding import open_decoder
from ddm_fed.ensemble.devices import chosen_devices
from ddm_fed.ensemble.pool import Precision
from ddm_fed.ensemble.prompts import encode_prompts, prompts_of, require_prompts_fit
from ddm_fed.ensemble.sample_job import SampleJob, load_for_sampling, with_embedder
from ddm_fed.ensemble.sample_options import Content, SampleOptions, notes_on, require_fit
from ddm_fed.ensemble.sampling import SamplingOptions
from ddm_fed.ensemble.staleness import Staleness
from ddm_fed.ensemble.strategy import DEFAULT_STRATEGY, Strategy
from ddm_fed.ensemble.velocity import require_condition
from ddm_fed.errors import DataError, OptionError, guess
from ddm_fed.flows import CALLS_PER_STEP, ClassCondition, Condition, Solver
from ddm_fed.records import RouterName

FULL = Strategy("full")
AFTER_LOADING = SamplingOptions(DEFAULT_STRATEGY, steps=50, solver="heun", seed=0)


def load(
    folder: str | Path,
    root: str,
    *,
    published: str | Path | None = None,
    router: RouterName | None = None,
    device: str | Sequence[str] | None = None,
    precision: Precision = "float32",
    resident: int | None = None,
    offload: bool = False,
    autoencoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    embedder_weights: str | Path | None = None,
    progress: bool = True,
) -> "LoadedEnsemble":
    """Returns the ensemble or the student in `folder`, verified as `ddm-coord verify` does.

    Args:
        folder: What `ddm-coord assemble` or `distill` wrote, or a copy of it from anywhere.
        root: The fingerprint of the federation, `sha256:…`, which a person told you.
        published: A newer published folder, which says whether it may still be used.
        router: Another router than the one it was assembled with.
        device: `cpu`, `cuda`, `cuda:1`, or several, over which experts are spread; by default the
            GPU, if there is one.
        precision: Of the arithmetic.
        resident: The most experts in memory at once; by default all.
        offload: Whether experts that had to make room stay in the processor's memory.
        autoencoder: Folder of the plan's autoencoder, where the plan has `data.latent`.
        text_encoder: File of the plan's text encoder, where the plan has captions.
        embedder_weights: File of the embedder of the plan's centroids, where the router asks them.
        progress: Whether this and later work shows how far it is: a bar in a terminal, and in a
            notebook that has ipywidgets; else a line now and then.

    Raises:
        RefusedError: it does not verify; the message names the rule and the item.
        StateError: it must not be used any more, or is something else.
        OptionError: an option does not fit it or this machine.
        ValueError: there is no such precision.
    """
    folder = Path(folder)
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r} is to be float32 or bfloat16")
    names = [device] if isinstance(device, str) else device
    options = SampleOptions(
        count=1,
        sampling=AFTER_LOADING,
        router=router,
        resident=resident,
        precision=precision,
        devices=chosen_devices(names),
        offload=offload,
        text_encoder=_path(text_encoder),
        autoencoder=_path(autoencoder),
        embedder_weights=_path(embedder_weights),
    )
    verified, newer = verify_usable(folder, root, published, progress=progress)
    for reason in () if newer is None else newer.newer:
        warnings.warn(f"{reason}; {folder} holds the earlier one", stacklevel=2)
    return LoadedEnsemble(verified, newer, options, progress=progress)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


class LoadedEnsemble:
    """A verified ensemble in memory; or a student, which is one of one network. See `load`.

    Attributes:
        sites: Names of the members, in their order.
        classes: Names of the plan's classes, in their order.
        shape: Of one image as experts see it, `(C, H, W)`: pixels, or latents.
    """

    def __init__(
        self, verified: Sampled, newer: Staleness | None, options: SampleOptions, *, progress: bool
    ) -> None:
        self._verified, self._newer, self._progress = verified, newer, progress
        data = verified.trust.plan.data
        self._data, self.classes, self.shape = data, data.classes, data.shape
        self.sites = tuple(member.site for member in verified.record.members)
        self._decoder = None
        if options.autoencoder is not None:
            self._decoder = open_autoencoder(options.autoencoder, data, options.devices[0])
        if isinstance(verified, VerifiedStudent):
            require_no_experts_asked(
                {
                    "--router": options.router is not None,
                    "--embedder-weights": options.embedder_weights is not None,
                    "--resident": options.resident is not None,
                    "--offload": options.offload,
                }
            )
            self._ensemble = load_student(
                verified, devices=options.devices, precision=options.precision
            )
        else:
            options = with_embedder(verified, options)
            self._ensemble = load_for_sampling(verified, options)
        self._options = options

    @property
    def is_student(self) -> bool:
        """Whether it is one network that learnt what an ensemble says: no sample has a site."""
        return isinstance(self._verified, VerifiedStudent)

    @property
    def shares(self) -> dict[str, float]:
        """The part of all samples that every site is due, by name; empty for a student."""
        if self.is_student:
            return {}
        found = self._ensemble.log_prior(1, None)[0].exp().tolist()
        return dict(zip(self.sites, found, strict=True))

    def __repr__(self) -> str:
        record, kind = self._verified.record, kind_of(self._verified)
        return (
            f"{kind} of {record.federation}, verified from {record.root[:23]}…, of "
            f"{', '.join(self.sites)}"
        )

    def report(self) -> dict[str, Any]:
        """Returns who made it of what, and what is promised of it, as plain values.

        What `ddm-coord verify --json` says (digests of plan, statement and files, the log, each
        site's privacy), and besides: `sites`, `shares`, `classes` and `shape`.
        """
        own = {
            "sites": list(self.sites),
            "shares": self.shares,
            "classes": list(self.classes),
            "shape": list(self.shape),
        }
        return facts_of(self._verified, self._newer) | own

    def sample(
        self,
        count: int = 64,
        *,
        seed: int = 0,
        strategy: str | None = None,
        steps: int = 50,
        solver: Solver = "heun",
        guidance: float = 1.0,
        label: str | None = None,
        prompts: str | Sequence[str] = (),
        router_temperature: float = 1.0,
        attribution: bool = False,
        latents: bool = False,
        batch_size: int = 256,
        in_flight: int = 1024,
    ) -> SampleSet:
        """Returns the images that `ddm-coord sample` makes with the same options, bit for bit.

        Args:
            count: Number of samples.
            seed: Same seed, same images.
            strategy: Which experts are asked; by default sticky. See `ddm-coord sample --help`.
            steps: Of the solver.
            solver: Which solver.
            guidance: Strength of the class or prompt; 1 is as trained.
            label: The only class that is made; by default every class, as often as sites have it.
            prompts: What images are to show, under a plan with captions; samples take them in turn.
            router_temperature: See `ddm-coord sample --help`.
            attribution: Whether to say which part of each sample came from which site.
            latents: Whether to give latents too; without an autoencoder, in place of images.
            batch_size: The most images an expert is given at once.
            in_flight: Number of samples worked on together.

        Raises:
            OptionError: an option does not fit the plan or the others; it names the command's.
            ValueError: a number is out of its range, or there is no such strategy.
        """
        if count < 1 or not math.isfinite(guidance):
            raise ValueError(f"count {count} has to be positive, guidance {guidance} finite")
        if solver not in CALLS_PER_STEP:
            raise ValueError(f"solver {solver!r} is to be one of {', '.join(CALLS_PER_STEP)}")
        told = prompts_of([prompts] if isinstance(prompts, str) else prompts, None)
        options = replace(
            self._options,
            count=count,
            sampling=SamplingOptions(
                strategy=DEFAULT_STRATEGY if strategy is None else Strategy.parse(strategy),
                steps=steps,
                solver=solver,
                seed=seed,
                guidance=guidance,
                temperature=router_temperature,
                batch_size=batch_size,
                in_flight=in_flight,
                attribution=attribution,
            ),
            label=label,
            prompts=told,
            text_encoder=self._options.text_encoder if told else None,
            latents=latents,
        )
        if self._decoder is None:
            open_decoder(None, self._data, options.devices[0], keep_latents=latents)
        content, names = self._content(options, strategy), self.sites
        if self.is_student:
            names = (NAME,)
        require_fit(self._ensemble, content, options)
        job = SampleJob(self._ensemble, content, options, names, self._decoder)
        with counted("sampling", count, "samples", progress=self._progress) as advance:
            parts = [job.arrays(indices, advance) for indices in job.chunks]
        arrays = {
            name: np.concatenate([part[name] for part in parts])
            for name in parts[0]
            if name != "calls"
        }
        return SampleSet.of(job, arrays, tuple(notes_on(content, options)))

    def _content(self, options: SampleOptions, strategy: str | None) -> Content:
        if isinstance(self._verified, VerifiedStudent):
            require_no_experts_asked(
                {
                    "--strategy": strategy is not None,
                    "--router-temperature": options.sampling.temperature != 1,
                    "--attribution": options.sampling.attribution,
                }
            )
            return student_content(self._verified)
        return Content.of(self._verified, options.router, options.sampling.strategy)

    def velocity(
        self,
        x: Tensor,
        t: float | Tensor,
        condition: str | Sequence[str] | None = None,
        *,
        strategy: str | None = None,
        site: str | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Returns u(x, t, condition) = sum_k p(k | x, t, condition) v_k(x, t, condition).

        Time runs from 0 (image) to 1 (noise), on the linear path x_t = (1 - t) x_0 + t noise, whose
        velocity is noise - x_0. A gradient by `x` is kept where torch keeps one.

        Args:
            x: States, `(B, C, H, W)` float32, of `shape`.
            t: Times, one for all or `(B,)`.
            condition: Classes of the plan by name, or prompts: one for all, or B of them.
            strategy: full by default, or top-K, threshold-W or nucleus-P.
            site: Ask the expert of this site alone.
            guidance: Strength of the condition; 1 is as trained.

        Returns:
            `(B, C, H, W)`, on the device of `x`.

        Raises:
            OptionError: it is a student, and was asked of experts; or prompts do not fit the plan.
            ValueError: there is no such site, class or strategy, or guidance has no condition.
            DataError: `x` is of another shape.
        """
        self._require_shape(x)
        times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        asked = self._condition(condition, len(x), guidance)
        require_condition(guidance, asked)
        if self.is_student:
            given = {"--strategy": strategy is not None, "--attribution": site is not None}
            require_no_experts_asked(given)
            return self._ensemble.site_velocity(0, x, times, asked, guidance=guidance)
        if site is not None:
            if site not in self.sites or strategy is not None:
                known = ", ".join(self.sites)
                raise ValueError(f"site {site!r} is to be one of {known}, without a strategy")
            place = self.sites.index(site)
            return self._ensemble.site_velocity(place, x, times, asked, guidance=guidance)
        chosen = FULL if strategy is None else Strategy.parse(strategy)
        if chosen.draws_sites or chosen.draws_several:
            raise ValueError(
                f"strategy {chosen} draws sites, for which a single velocity has no draws; give "
                "full, top-K, threshold-W or nucleus-P, or a site"
            )
        return self._ensemble.velocity(x, times, asked, strategy=chosen, guidance=guidance)

    def attribution(
        self,
        images: Tensor | NDArray[Any],
        condition: str | Sequence[str] | None = None,
        *,
        seed: int = 0,
    ) -> NDArray[np.float64]:
        """Returns which site each image is like: p(site | image), by the router at t = 0.05.

        It says whose released statistics an image resembles, not that anybody trained on it, and is
        no better than the router. For samples, `sample(attribution=True)` follows the whole way.

        Args:
            images: `(N, H, W, C)` uint8, as samples are; or a tensor `(N, C, H, W)` in [-1, 1].
                Latents, `(N, C, H, W)` of `shape`, where the plan has them and no autoencoder is at
                hand.
            condition: Classes of the plan by name, or prompts: one for all, or N of them.
            seed: Decides the noise of t = 0.05.

        Returns:
            `(N, K)`, columns in the order of `sites`, rows of sum 1.

        Raises:
            OptionError: it is a student, or its router looks at no image.
        """
        require_no_experts_asked({"--attribution": self.is_student})
        if self._ensemble.sees_until <= 0 or self._ensemble.reads_estimate:
            raise OptionError(
                "--attribution asks the router whose an image is, and this one looks at no image, "
                "or compares embeddings of what an expert makes of it",
                hint='load with router="mixture", or another that looks at images',
            )
        pixels = self._as_states(images)
        asked = self._condition(condition, len(pixels), 1.0)
        log_posterior = log_posterior_of_images(self._ensemble, pixels, asked, seed)
        found: NDArray[np.float64] = log_posterior.exp().numpy()
        return found

    def _as_states(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Returns images as experts see them, `(N, C, H, W)` float32."""
        found = torch.as_tensor(images)
        if found.dtype == torch.uint8:
            found = (found.permute(0, 3, 1, 2) if found.ndim == 4 else found) / 127.5 - 1
        if self._decoder is not None and tuple(found.shape[1:]) == self._data.pixel_shape:
            found = self._decoder.encode(found.float())[0]
        self._require_shape(found)
        return found.float().cpu()

    def _require_shape(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape or not len(x):
            raise DataError(
                f"images are {tuple(x.shape)}, expected (N, {', '.join(map(str, self.shape))})",
                hint="give tensors (N, C, H, W), or uint8 arrays (N, H, W, C) where they are "
                "images of the plan's size",
            )

    def _condition(
        self, asked: str | Sequence[str] | None, count: int, guidance: float
    ) -> Condition | None:
        """Returns what `count` images are asked to be, from names of classes or prompts."""
        if asked is None:
            return None
        names = [asked] * count if isinstance(asked, str) else list(asked)
        if len(names) != count:
            raise ValueError(f"{len(names)} conditions for {count} images: give one, or as many")
        if self._data.text is not None:
            told = prompts_of(dict.fromkeys(names), None)
            require_prompts_fit(self._data, told, self._options.text_encoder, guidance)
            encoded = encode_prompts(self._data, told, self._options.text_encoder)
            return None if encoded is None else encoded.condition(list(prompts_of(names, None)))
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            known = ", ".join(self.classes) or "none: it is unconditional"
            near = guess(unknown[0], self.classes)
            raise ValueError(
                f"{unknown[0]!r} is no class of the plan{near}; its classes are {known}"
            )
        places: Mapping[str, int] = {name: place for place, name in enumerate(self.classes)}
        return ClassCondition(torch.tensor([places[name] for name in names]))
