"""The batches a student learns from: noised lessons, and what their teachers say of them.

A training step regresses eps - x_0. It learns the teacher's v instead from images and noise with
the same x_t whose difference is v: x_t - t v and x_t + (1 - t) v. So the loop, its averages and its
checkpoints are those of every expert.
"""

import torch

from ddm_fed.distillation.lessons import Lessons
from ddm_fed.distillation.options import TeacherName
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.flows import ClassCondition, Condition, interpolate, rows_of
from ddm_fed.records import TrainingSpec
from ddm_fed.training import seeded
from ddm_fed.training.batches import Batch, BatchOrder, draw_times

FULL = Strategy("full")


class TaughtBatches:
    """The batches of a distillation, as functions of (seed, step).

    Args:
        lessons: Images, teachers and classes.
        ensemble: The teachers.
        spec: Batch size, times and label dropout.
        seed: The run's seed.
        teacher: Whose velocity is learnt: of the expert a lesson belongs to, or of all.
    """

    def __init__(
        self,
        lessons: Lessons,
        ensemble: Ensemble,
        spec: TrainingSpec,
        *,
        seed: int,
        teacher: TeacherName,
    ) -> None:
        self._lessons, self._ensemble, self._spec = lessons, ensemble, spec
        self._seed, self._teacher = seed, teacher
        self._order = BatchOrder(batch_size=spec.batch_size, count=len(lessons), seed=seed)

    @torch.no_grad()
    def draw(self, step: int, rows: slice) -> Batch:
        """Returns `rows` of the batch of `step`. What is drawn for others is drawn all the same."""
        spec, generator = self._spec, seeded(self._seed, "step", step)
        count, lessons = spec.batch_size, self._lessons
        eps = torch.randn((count, *lessons.images.shape[1:]), generator=generator)[rows]
        t = draw_times(spec, count, generator)[rows]
        # experts of some kinds have learnt nothing of the last of the noise
        t = t.clamp(max=self._ensemble.experts.largest_time)
        dropped = torch.rand(count, generator=generator) < float(spec.label_dropout)
        wanted = self._order.rows(step)[rows]
        condition: Condition | None = None
        if lessons.labels is not None:
            condition = ClassCondition(lessons.labels[wanted]).dropped(dropped[rows])
        x_t = interpolate(lessons.images[wanted], eps, t)
        v = self._velocity(x_t, t, condition, lessons.sites[wanted])
        time = t.reshape(-1, *(1,) * (x_t.ndim - 1))
        return Batch(x_t - time * v, x_t + (1 - time) * v, t, condition)

    def _velocity(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        condition: Condition | None,
        sites: torch.Tensor,
    ) -> torch.Tensor:
        ensemble = self._ensemble
        device = ensemble.experts.device
        x, at = x_t.to(device), t.to(device)
        asked = None if condition is None else condition.to(device)
        if self._teacher == "ensemble":
            return ensemble.velocity(x, at, asked, strategy=FULL).to(x_t)
        v = torch.empty_like(x)
        for site in sorted(set(sites.tolist())):
            own = (sites == site).nonzero()[:, 0].to(device)
            v[own] = ensemble.site_velocity(site, x[own], at[own], rows_of(asked, own)).to(x)
        return v.to(x_t)


def taught_by(lessons: Lessons, spec: TrainingSpec, seed: int, sites: int) -> list[int]:
    """Returns how many images of a whole training each expert teaches, of its own lessons."""
    order = BatchOrder(batch_size=spec.batch_size, count=len(lessons), seed=seed)
    counts = torch.zeros(sites, dtype=torch.long)
    for step in range(spec.steps):
        counts += lessons.sites[order.rows(step)].bincount(minlength=sites)
    return [int(count) for count in counts.tolist()]
