"""Bugs planted in what trains: each is caught before anything leaves, and by name.

The bugs are those that a private training can have without its output showing it: no noise, noise
that can be foreseen, a unit that counts too much, numbers that were never released.
"""

# ruff: noqa: E501  a statement and its mutant stand whole, one under the other

import ast
import inspect
import textwrap
from dataclasses import dataclass, replace
from decimal import Decimal

import pytest
import torch
from federation import (
    PRIVATE,
    SITES,
    a_plan,
    create_federation,
    paid_for,
    random_images,
)
from federation import train as train_site
from planting import plant, put_in_place
from pydantic import ValidationError

from coordinator.roster import proposals
from ddm_fed.errors import MechanismError, OptionError, PolicyError
from ddm_fed.privacy import (
    NoisyUpdate,
    PrivateStep,
    Randomness,
    Stream,
    clip_factors,
    fresh_secret,
    mechanisms,
    noised,
    recorded_gradients,
)
from ddm_fed.privacy.dpsgd import Adding, Clipped, factors_of
from ddm_fed.privacy.randomness import _uniform
from ddm_fed.privacy.recorded_gradients import (
    RecordedGradients,
    _OfAllUnits,
    _Record,
    squared_norms,
)
from ddm_fed.progress import Watch
from ddm_fed.records import SampledGaussianEvent
from ddm_fed.training import (
    Payment,
    PrivateRun,
    PrivateTraining,
    RunOptions,
    UnitDraws,
    read_trained,
    train_private_expert,
)
from sites.train import expert as site_training
from sites.train.audit import AuditOptions, run_audit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_block")]

A = SITES[0]
# the gradient is never shortened after its noise, which would undo what is multiplied into it
PLAN = a_plan(max_epsilon=PRIVATE, steps="steps = 3\nclip_norm = 100000")
SHORTENING = a_plan(max_epsilon=PRIVATE)
PART = a_plan(max_epsilon=PRIVATE + '\ntrainable = "last-1"', steps="steps = 3")
SECRET = Randomness.for_tests(4)


# as planned, but for the noise itself: finding it takes seconds, and nothing here needs it
EVENT = SampledGaussianEvent(
    sampling_rate=Decimal("0.5"), noise_multiplier=Decimal("0.85"), steps=3
)


def noise_of(plan=PLAN):
    return PrivateTraining.planned(plan, EVENT, 24.0)


ENGINES = ("recorded", "functional")
MADE = (Adding.__init__, Adding.add, Adding.result, clip_factors)  # of the functional engine


def engine_of(function):
    return "functional" if function in MADE else "recorded"


@dataclass
class Ran:
    losses: list[float]
    state: dict[str, torch.Tensor]


def a_run(folder, plan=PLAN, data=None, engine="recorded", **options):
    """A whole private training, as a site's is but for its ledger; its first step is proved.

    The engine is chosen before: whether it agrees with another one has no say here.
    """
    losses, noise = [], replace(noise_of(plan), gradients=engine)
    expert = train_private_expert(
        data or random_images(0),
        plan,
        "ab" * 32,
        folder / "checkpoint.safetensors",
        noise,
        Payment(lambda: "0" * 64, lambda _: paid_for(noise)),
        options=RunOptions(**options),
        randomness=SECRET,
        watch=Watch(lambda report: losses.append(report.loss)),
    )
    return Ran(losses, expert.state)


@pytest.fixture(autouse=True)
def all_norms_of_rows(monkeypatch):
    """The recording engine makes the norms of all layers out of products of rows."""
    monkeypatch.setattr(recorded_gradients, "WORTH_IT", 100.0)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return {kind: a_run(tmp_path_factory.mktemp(kind), engine=kind) for kind in ENGINES}


# --- in the training itself ---

WITHOUT = "{name: value / self.expected_units for name, value in clipped.total.items()}"
RELEASE = "self.release(clipped, step, clip_norm)"
TRAINING_BUGS = {
    "no noise": (PrivateStep.noisy_mean, (RELEASE, WITHOUT), "the gradient"),
    "half of the noise": (
        PrivateStep.noisy_mean,
        (RELEASE, RELEASE.replace("clip_norm)", "clip_norm / 2)")),
        "the gradient",
    ),
    "a first step without noise": (
        PrivateStep.noisy_mean,
        (RELEASE, f"{RELEASE} if step else {WITHOUT}"),
        "step 0 is not what its ledger entry says: the gradient",
    ),
    "noise of a constant": (
        PrivateRun.__init__,
        (
            "self._randomness,\n        sampling_rate",
            "Randomness(bytes(32), 'csprng'),\n        sampling_rate",
        ),
        "the gradient",
    ),
    "noise of a public seed": (
        PrivateRun.__init__,
        (
            "self._randomness,\n        sampling_rate",
            "Randomness(run.seed.to_bytes(32, 'big'), 'csprng'),\n        sampling_rate",
        ),
        "the gradient",
    ),
    "the same noise every step": (
        PrivateStep.release,
        ('stream("noise", step)', 'stream("noise", 0)'),
        "noise of two steps",
    ),
    "noise rounded to bfloat16": (
        noised,
        ("noise.mul_(scale)", "noise.mul_(scale).bfloat16().double()"),
        "the gradient",
    ),
    "an average of weights before noise": (
        NoisyUpdate.take,
        ("self.optimizer.step()", "self.averages.update(step)\n    self.optimizer.step()"),
        "the average of half-life",
    ),
    "sums divided by the true number in the step": (
        PrivateStep.noisy_mean,
        (RELEASE, "{n: v * self.expected_units / len(chosen) for n, v in " + RELEASE + ".items()}"),
        "the gradient",
    ),
    "sums divided by the true number of units": (
        PrivateStep.noisy_mean,
        (
            RELEASE,
            "{n: v * self.expected_units / (len(units) - 1) / self.sampling_rate "
            "for n, v in " + RELEASE + ".items()}",
        ),
        "the gradient",
    ),
    "a training that ends when the private loss is low": (
        PrivateRun._steps,
        (
            "loss = proof.take(step)",
            "loss = proof.take(step)\n        if loss < 1e9 and step: return",
        ),
        "the training ended after step 2 of 3",
    ),
    "steps that are taken twice": (
        PrivateRun._steps,
        ("loss = proof.take(step)", "self.update.take(step)\n        loss = proof.take(step)"),
        "the number of steps taken",
    ),
    "clipping of sums instead of units": (
        Adding.add,
        (
            "clip_factors(list(gradients.values()), self._clip_norm)",
            "clip_factors([g.mean(0).expand_as(g) for g in gradients.values()], self._clip_norm)",
        ),
        "sensitivity",
    ),
    "a layer that is not clipped": (
        Adding.add,
        (
            "(factors @ flat).view_as(self._total[name])",
            "(factors @ flat if 'embed' not in name else flat.sum(0)).view_as(self._total[name])",
        ),
        "sensitivity",
    ),
    "a recorded layer that is not clipped": (
        _Record.add_to,
        ("scaled = g * factors", "scaled = g if 'head' in name else g * factors"),
        "sensitivity",
    ),
    "a recorded layer that has no part in the norm": (
        _Record.add_to,
        ("in self._pairs.values()]\n    norms", "in list(self._pairs.values())[5:]]\n    norms"),
        "sensitivity",
    ),
    "a norm of recorded tokens one by one": (
        squared_norms,
        ("(inner * outer).sum((1, 2))", "(inner * outer).diagonal(dim1=1, dim2=2).sum(1)"),
        "sensitivity",
    ),
    "a bias that nobody recorded": (
        _Record.take_linear,
        ("if bias is not None:", "if bias is not None and 'head' not in bias:"),
        "the gradient",
    ),
    "batches of a fixed size": (
        PrivateStep.included,
        (
            "return torch.from_numpy(chosen).nonzero()[:, 0]",
            "return torch.randperm(units)[: round(units * self.sampling_rate)]",
        ),
        "size of the steps",
    ),
    "a secret that is kept": (
        PrivateRun.run_steps,
        ('replace(self.run, secret="", proved', "replace(self.run, proved"),
        "still holds the secret",
    ),
    "images scaled by the darkest and brightest of all": (
        UnitDraws._rows,
        (
            "self._images.batch(flat)",
            "(self._images.batch(flat) / self._images.images.abs().max())",
        ),
        "the gradient",
    ),
    "draws that depend on who else is there": (
        UnitDraws._draw,
        ("self._first + unit)", "self._first + unit + len(self))"),
        "the gradient",
    ),
}


@pytest.mark.parametrize("bug", TRAINING_BUGS)
def test_bug_in_a_private_training_stops_it_by_name(bug, tmp_path, monkeypatch):
    function, change, name = TRAINING_BUGS[bug]
    plant(monkeypatch, function, change)
    with pytest.raises(MechanismError, match=name):
        a_run(tmp_path, engine=engine_of(function))


@pytest.mark.parametrize("kind", ENGINES)
def test_training_without_a_bug_is_not_accused(kind, honest):
    assert len(honest[kind].losses) == 3
    assert all(torch.isfinite(value).all() for value in honest[kind].state.values())


def test_secret_that_everybody_has_is_refused(monkeypatch):
    plant(monkeypatch, Randomness.from_system.__func__, ("os.urandom(SECRET_BYTES)", "bytes(32)"))
    with pytest.raises(MechanismError, match="the same random bytes twice"):
        fresh_secret()


# --- around the training, at a site ---


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    fed = create_federation(tmp_path_factory.mktemp("planted") / "fed", sites=(A,))
    proposals.publish_plan(fed.home, PLAN)
    fed.look(A)
    return fed


@pytest.fixture
def fed(started, tmp_path):
    return started.copy(tmp_path / "fed", "consortium", A)


def test_expert_that_is_not_charged_is_not_trained(fed, monkeypatch):
    charge = 'entry = ledger.append(trust.plan_sha256, EXPERT_PURPOSE, "dp-sgd", event, plan.privacy.unit)'
    plant(monkeypatch, site_training._train_privately, (charge, "entry = ledger.entries()[-1]"))
    with pytest.raises(PolicyError, match="is of something else"):
        train_site(fed.site(A), fed.trust, random_images(0))


def test_exact_count_of_units_is_refused_before_it_leaves(fed, monkeypatch):
    plant(
        monkeypatch,
        site_training._train_privately,
        (
            "PrivateTraining.planned(plan, event, location.count, central)",
            "PrivateTraining.planned(plan, event, data.reveal().unit_count, central)",
        ),
    )
    with pytest.raises(PolicyError, match="expected units, its own release makes it"):
        train_site(fed.site(A), fed.trust, random_images(0))


def test_count_of_images_in_the_words_of_the_ledger_is_refused(fed, monkeypatch):
    plant(
        monkeypatch,
        site_training._train_privately,
        ('"dp-sgd"', 'f"dp-sgd on {len(data.reveal())} images"'),
    )
    with pytest.raises(ValidationError, match="mechanism"):
        train_site(fed.site(A), fed.trust, random_images(0))


def test_count_of_images_in_the_facts_of_the_training_is_refused(fed, monkeypatch):
    plant(
        monkeypatch,
        read_trained,
        ('f"ddm-fed {__version__}"', 'f"ddm-fed {__version__}, 24 images"'),
    )
    with pytest.raises(ValidationError, match="program"):
        train_site(fed.site(A), fed.trust, random_images(0))


def test_release_with_half_of_its_noise_is_not_certified(fed, monkeypatch):
    plant(
        monkeypatch,
        mechanisms.release,
        ("_discrete_gaussian(scale)", "_discrete_gaussian(scale / 2)"),
    )
    with pytest.raises(ArithmeticError, match="certifies rho"):
        train_site(fed.site(A), fed.trust, random_images(0))


def test_release_whose_noise_is_thrown_away_is_accused_by_the_audit(fed, monkeypatch):
    noisy = "Release(np.asarray(noisy, dtype=np.int64)"
    plant(monkeypatch, mechanisms.release, (noisy, "Release(exact"))
    train_site(fed.site(A), fed.trust, random_images(0))
    found = run_audit(
        fed.site(A), fed.trust, random_images(0), AuditOptions(canaries=2000, most_steps=2)
    )
    assert found.violates
    assert not all(finding.passed for finding in found.releases)


# --- every statement of the noisy update ---

RAISES, DIFFERS = "raises", "differs"
REFUSED = "refused"  # it costs quality and not privacy: single units do not agree
DEATHS = (MechanismError, RuntimeError, ValueError, KeyError, TypeError, UserWarning)
# what each statement is turned into; those that only tell the site's own screen something
# may not stop a training, but have to change what is told
MUTANTS = {
    PrivateStep.noisy_mean: {
        "chosen = self.share(self.included(step, len(units)))": (
            "chosen = torch.arange(len(units))",
            RAISES,
        ),
        "clipped = self.clipped_sum(weights, units.blocks(step, chosen), clip_norm)": (
            "clipped = self.clipped_sum(weights, units.blocks(step + 1, chosen), clip_norm)",
            RAISES,
        ),
        "return (self.release(clipped, step, clip_norm), clipped.loss)": (
            f"return ({WITHOUT}, clipped.loss)",
            RAISES,
        ),
    },
    PrivateStep.included: {
        "chosen = self.randomness.stream('inclusion', step).uniform(units) < self.sampling_rate": (
            "chosen = self.randomness.stream('inclusion', step).uniform(units) < 0.9",
            RAISES,
        ),
        "return torch.from_numpy(chosen).nonzero()[:, 0]": (
            "return torch.from_numpy(chosen).nonzero()[:-1, 0]",
            RAISES,
        ),
    },
    PrivateStep.share: {
        "return units[self.processes.rows(len(units))]": (
            "return units[self.processes.rows(len(units) - 1)]",
            RAISES,
        ),
    },
    Clipped.over: {
        "total = {name: processes.total(value) for name, value in self.total.items()}": (
            "total = {name: 2 * processes.total(value) for name, value in self.total.items()}",
            RAISES,
        ),
        "numbers = torch.tensor([self.loss, self.clipped], dtype=torch.float64, device=self.device)": (
            "numbers = torch.tensor([0.0, self.clipped], dtype=torch.float64, device=self.device)",
            DIFFERS,
        ),
        "loss, clipped = processes.total(numbers).tolist()": (
            "clipped, loss = processes.total(numbers).tolist()",
            DIFFERS,
        ),
        "return Clipped(total, loss, int(clipped))": (
            "return Clipped({n: v.clamp(min=0) for n, v in total.items()}, loss, 0)",
            RAISES,
        ),
    },
    PrivateStep.clipped_sum: {
        "result = Clipped({name: torch.zeros_like(w.detach()) for name, w in weights.items()}, 0.0, 0)": (
            "result = Clipped({name: torch.ones_like(w.detach()) for name, w in weights.items()}, 0.0, 0)",
            RAISES,
        ),
        "for rows in blocks:": ("for rows in []:", RAISES),
        "if len(rows[0]):": ("if not len(rows[0]):", RAISES),
        "here = [value.to(result.device) for value in rows]": (
            "here = [value[1:] for value in rows]",
            RAISES,
        ),
        "result = result.plus(self.gradients.clipped_sum(weights, here, clip_norm))": (
            "result = result.plus(self.gradients.clipped_sum(weights, here, 2 * clip_norm))",
            RAISES,
        ),
        "return result.over(self.processes)": (
            "return result.plus(result).over(self.processes)",
            RAISES,
        ),
    },
    PrivateStep.release: {
        "noisy = clipped.total": ("noisy = None", None),  # set again where the noise is drawn
        "if self.processes.rank == 0:": ("if self.processes.rank == 1:", RAISES),
        "noisy = {name: self.processes.of_first(value) for name, value in noisy.items()}": (
            "noisy = {name: self.processes.of_first(value / 2) for name, value in noisy.items()}",
            RAISES,
        ),
        "noisy = noised(clipped.total, clip_norm=clip_norm, noise_multiplier=self.noise_multiplier, normals=self.randomness.stream('noise', step).normals)": (
            "noisy = noised(clipped.total, clip_norm=clip_norm, noise_multiplier=self.noise_multiplier / 2, normals=self.randomness.stream('noise', step).normals)",
            RAISES,
        ),
        "return {name: value / self.expected_units for name, value in noisy.items()}": (
            "return {name: value / (self.expected_units + 1) for name, value in noisy.items()}",
            RAISES,
        ),
    },
    noised: {
        "scale = noise_multiplier * clip_norm": ("scale = noise_multiplier", RAISES),
        "drawn, noisy = (normals([value.numel() for value in total.values()]), {})": (
            "drawn, noisy = (normals([value.numel() for value in total.values()][::-1]), {})",
            RAISES,
        ),
        "for (name, value), numbers in zip(total.items(), drawn, strict=True):": (
            "for (name, value), numbers in list(zip(total.items(), drawn, strict=True))[1:]:",
            RAISES,
        ),
        "noise = torch.from_numpy(numbers).view(value.shape).to(value.device)": (
            "noise = torch.from_numpy(numbers[:1]).expand(value.shape).clone()",
            RAISES,
        ),
        "noisy[name] = noise.mul_(scale).add_(value).float()": (
            "noisy[name] = noise.mul_(scale).abs_().add_(value).float()",
            RAISES,
        ),
        "return noisy": (
            "return {name: value.clamp(-1, 1) for name, value in noisy.items()}",
            RAISES,
        ),
    },
    Adding.__init__: {
        "self._total = {name: torch.zeros_like(value.detach()) for name, value in weights.items()}": (
            "self._total = {name: torch.ones_like(value.detach()) for name, value in weights.items()}",
            RAISES,
        ),
        "self._clip_norm = clip_norm": ("self._clip_norm = 2 * clip_norm", RAISES),
        "self._loss, self._clipped = (0.0, 0)": ("self._loss, self._clipped = (1.0, 0)", DIFFERS),
    },
    Adding.add: {
        "factors, norms = clip_factors(list(gradients.values()), self._clip_norm)": (
            "factors, norms = clip_factors(list(gradients.values())[1:], self._clip_norm)",
            RAISES,
        ),
        "finite = bool(torch.isfinite(norms).all())": ("finite = True", RAISES),
        "for name, gradient in gradients.items():": (
            "for name, gradient in list(gradients.items())[:-1]:",
            RAISES,
        ),
        "flat = gradient.flatten(1) if finite else torch.nan_to_num(gradient.flatten(1))": (
            "flat = gradient.flatten(1)",
            RAISES,
        ),
        "self._total[name] += (factors @ flat).view_as(self._total[name])": (
            "self._total[name] += flat.sum(0).view_as(self._total[name])",
            RAISES,
        ),
        "self._loss += float(torch.nan_to_num(losses.detach()).sum())": ("pass", DIFFERS),
        "self._clipped += int((factors < 1).sum())": ("pass", None),  # nobody is told
    },
    Adding.result: {
        "return Clipped(self._total, self._loss, self._clipped)": (
            "return Clipped({n: 1.5 * v for n, v in self._total.items()}, self._loss, 0)",
            RAISES,
        ),
    },
    clip_factors: {
        "each = [torch.linalg.vector_norm(value.flatten(1), dim=1) for value in gradients]": (
            "each = [value.flatten(1).abs().amax(1) for value in gradients]",
            RAISES,
        ),
        "norms = torch.linalg.vector_norm(torch.stack(each), dim=0)": (
            "norms = torch.stack(each).amax(0)",
            RAISES,
        ),
        "return (factors_of(norms, clip_norm), norms)": (
            "return (factors_of(norms, 2 * clip_norm), norms)",
            RAISES,
        ),
    },
    factors_of: {
        "factors = (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0)": (
            "factors = torch.ones_like(norms)",
            RAISES,
        ),
        "return torch.where(torch.isfinite(norms), factors, 0.0)": (
            "return 1.01 * factors",
            RAISES,
        ),
    },
    RecordedGradients.clipped_sum: {
        "values = {name: value.detach() for name, value in weights.items()}": (
            "values = {name: 2 * value.detach() for name, value in weights.items()}",
            RAISES,
        ),
        "total = {name: torch.zeros_like(value) for name, value in values.items()}": (
            "total = {name: torch.ones_like(value) for name, value in values.items()}",
            RAISES,
        ),
        "loss, clipped, units = (0.0, 0, len(rows[0]))": (
            "loss, clipped, units = (1.0, 0, len(rows[0]))",
            DIFFERS,
        ),
        "size = self._units_at_once(values, rows) if units else 1": ("size = 2", None),  # any does
        "for start in range(0, units, size):": ("for start in range(size, units, size):", RAISES),
        "return Clipped(total, loss, clipped)": (
            "return Clipped({n: 1.5 * v for n, v in total.items()}, loss, clipped)",
            RAISES,
        ),
        "losses, record = self._recorded(values, [value[start:start + size] for value in rows])": (
            "losses, record = self._recorded(values, [value[start:start + size] for value in rows][::-1])",
            RAISES,
        ),
        "factors = record.add_to(total, clip_norm)": (
            "factors = record.add_to(total, 2 * clip_norm)",
            RAISES,
        ),
        "loss += float(torch.nan_to_num(losses).sum())": ("pass", DIFFERS),
        "clipped += int((factors < 1).sum())": ("pass", None),  # nobody is told
    },
    _OfAllUnits.forward: {
        "ctx.x, ctx.weight, ctx.take = (x.detach(), weight, take)": (
            "ctx.x, ctx.weight, ctx.take = (x.detach() / 2, weight, take)",
            RAISES,
        ),
        "return functional.linear(x, weight, bias)": (
            "return functional.linear(x, weight)",
            REFUSED,
        ),
    },
    _OfAllUnits.backward: {
        "ctx.take(ctx.x, gradients[0])": ("ctx.take(ctx.x, -gradients[0])", RAISES),
        "wanted = ctx.needs_input_grad[0]": ("wanted = False", REFUSED),
        "return (gradients[0] @ ctx.weight if wanted else None, None, None, None, None)": (
            "return (gradients[0] @ ctx.weight / 2 if wanted else None, None, None, None, None)",
            REFUSED,
        ),
    },
    _Record.take: {
        "known = self._made.get(name)": ("known = None", None),  # a layer is used once here
        "self._made[name] = gradients if known is None else known + gradients": (
            "self._made[name] = gradients.abs()",
            RAISES,
        ),
    },
    _Record.take_linear: {
        "a, g = (x.flatten(1, -2), gradients.flatten(1, -2))": (
            "a, g = (x.flatten(1, -2), gradients.flatten(1, -2).clamp(min=0))",
            RAISES,
        ),
        "if bias is not None:": ("if bias is None:", RAISES),
        "self.take(bias, g.sum(1))": ("self.take(bias, g.mean(1))", RAISES),
        # a layer is used once here, and few tokens make all norms cheap
        "if weight in self._pairs:": ("if False:", None),
        "before = self._pairs.pop(weight)": ("pass", None),
        "self.take(weight, before[1].mT @ before[0])": ("pass", None),
        "if weight not in self._made and cheap_norm(a, g):": (
            "if weight not in self._made or not cheap_norm(a, g):",
            None,
        ),
        "self._pairs[weight] = (a, g)": ("self._pairs[weight] = (a[:, :1], g[:, :1])", RAISES),
        "self.take(weight, g.mT @ a)": ("pass", None),
    },
    _Record.add_to: {
        "squares = [torch.linalg.vector_norm(v.flatten(1), dim=1) ** 2 for v in self._made.values()]": (
            "squares = []",
            RAISES,
        ),
        "squares += [squared_norms(a, g) for a, g in self._pairs.values()]": ("pass", RAISES),
        "norms = torch.stack(squares).sum(0).sqrt()": (
            "norms = torch.stack(squares).amax(0).sqrt()",
            RAISES,
        ),
        "factors, bad = (factors_of(norms, clip_norm), ~torch.isfinite(norms))": (
            "factors, bad = (torch.ones_like(norms), ~torch.isfinite(norms))",
            RAISES,
        ),
        "if bool(bad.any()):": ("if False:", RAISES),
        "for name, value in self._made.items():": (
            "for name, value in list(self._made.items())[1:]:",
            RAISES,
        ),
        "for name, (a, g) in self._pairs.items():": (
            "for name, (a, g) in list(self._pairs.items())[1:]:",
            RAISES,
        ),
        "return factors": ("return factors * 0", None),  # only counted, and nobody is told
        "self._forget(bad)": ("pass", RAISES),
        "total[name] += (factors @ value.flatten(1)).view_as(total[name])": (
            "total[name] += value.sum(0).view_as(total[name])",
            RAISES,
        ),
        "scaled = g * factors[:, None, None]": ("scaled = g", RAISES),
        "total[name].addmm_(scaled.flatten(0, 1).mT, a.flatten(0, 1))": (
            "total[name].addmm_(scaled.flatten(0, 1).mT, a.flatten(0, 1), alpha=1.01)",
            RAISES,
        ),
    },
    _Record._forget: {
        "def without(value: Tensor) -> Tensor:": ("def without(value):", None),  # the same
        "return value.masked_fill(units.view(-1, *(1 for _ in value.shape[1:])), 0.0)": (
            "return value",
            RAISES,
        ),
        "self._made = {name: without(value) for name, value in self._made.items()}": (
            "pass",
            RAISES,
        ),
        "self._pairs = {name: (without(a), without(g)) for name, (a, g) in self._pairs.items()}": (
            "pass",
            RAISES,
        ),
    },
    squared_norms: {
        # a unit has several rows here
        "if a.shape[1] == 1:": ("if False:", None),
        "return (a.square().sum(2) * g.square().sum(2))[:, 0]": ("pass", None),
        "inner, outer = (a @ a.mT, g @ g.mT)": ("inner, outer = (a @ a.mT, g @ g.mT / 4)", RAISES),
        "lengths = (inner.diagonal(dim1=1, dim2=2) * outer.diagonal(dim1=1, dim2=2)).sqrt().sum(1)": (
            "lengths = inner.diagonal(dim1=1, dim2=2).sum(1)",
            None,  # a millionth of it is added
        ),
        "return (inner * outer).sum((1, 2)) + ROUNDING * lengths.square()": (
            "return (inner * outer).amax((1, 2))",
            RAISES,
        ),
    },
    NoisyUpdate.take: {
        "clip_norm = self.rule.clip_norm(step)": (
            "clip_norm = 2 * self.rule.clip_norm(step)",
            RAISES,
        ),
        "gradient, loss = self.step.noisy_mean(self.trained, self.units, step, clip_norm)": (
            "gradient, loss = self.step.noisy_mean(self.trained, self.units, step + 1, clip_norm)",
            RAISES,
        ),
        "for name, value in self.trained.items():": (
            "for name, value in list(self.trained.items())[1:]:",
            RAISES,
        ),
        "value.grad = gradient[name]": ("value.grad = -gradient[name]", RAISES),
        "for group in self.optimizer.param_groups:": ("for group in []:", RAISES),
        "group['lr'] = self.rule.learning_rate(step)": ("group['lr'] = 1.0", RAISES),
        "if self.rule.largest_norm is not None:": ("if self.rule.largest_norm is None:", RAISES),
        "nn.utils.clip_grad_norm_(self.trained.values(), self.rule.largest_norm)": ("pass", RAISES),
        "self.optimizer.step()": ("pass", RAISES),
        "self.optimizer.zero_grad()": ("pass", None),  # every gradient is set anew
        "if self.averages is not None:": ("if self.averages is None:", RAISES),
        "self.averages.update(step)": ("pass", RAISES),
        "return loss": ("return 0.0", DIFFERS),
    },
    Stream.uniform: {
        "words, found = (self._words(count), np.empty(count))": (
            "words, found = (self._words(1).repeat(count), np.empty(count))",
            RAISES,
        ),
        "for start in range(0, count, AT_ONCE):": (
            "found[:] = 0.0\nfor start in range(AT_ONCE, count, AT_ONCE):",
            RAISES,
        ),
        "part = slice(start, start + AT_ONCE)": ("part = slice(start, start + 10)", RAISES),
        "found[part] = _uniform(words[part])": ("found[part] = _uniform(words[part]) / 2", RAISES),
        "return found": ("return found[::-1]", RAISES),
    },
    _uniform: {
        "return (words >> np.uint64(11)).astype(np.float64) * MANTISSA": (
            "return (words >> np.uint64(12)).astype(np.float64) * MANTISSA",
            RAISES,
        ),
    },
    Stream._words: {
        "found = np.empty(count, dtype='<u8')": ("found = np.zeros(count, dtype='>u8')", RAISES),
        "for start in range(0, count, AT_ONCE):": (
            "found[:] = 0\nfor start in range(AT_ONCE, count, AT_ONCE):",
            RAISES,
        ),
        "part = found[start:start + AT_ONCE].view(np.uint8).data": (
            "part = found[start:start + AT_ONCE].copy().view(np.uint8).data",
            RAISES,
        ),
        "self._encryptor.update_into(_NOTHING[:len(part)], part)": (
            "self._encryptor.update_into(part, part)",
            None,  # what was there is as good as nothing, and nobody knows it
        ),
        "return found": ("return found & np.uint64(2**63 - 1)", RAISES),
    },
    Stream.normals: {
        "together: list[int] = []": ("together = [2]", RAISES),
        "for index, count in enumerate(counts, start=1):": (
            "for index, count in enumerate(counts):",
            RAISES,
        ),
        "together.append(count)": ("together.append(count + 2)", RAISES),
        "if sum(together) >= AT_ONCE or index == len(counts):": (
            "if index == len(counts):",
            None,  # the same numbers, in more memory
        ),
        "yield from self._normals(together)": (
            "yield from [n / 2 for n in self._normals(together)]",
            RAISES,
        ),
        "together = []": ("pass", RAISES),
    },
    Stream._normals: {
        "halves = [(count + 1) // 2 for count in counts]": (
            "halves = [count // 2 + 1 for count in counts]",
            RAISES,
        ),
        "ends = np.cumsum(halves)": ("ends = np.asarray(halves)", RAISES),
        "starts, total = (ends - halves, int(ends[-1]))": (
            "starts, total = (0 * ends, int(ends[-1]))",
            RAISES,
        ),
        "words = self._words(2 * total)": ("words = self._words(total).repeat(2)", RAISES),
        "radii = np.concatenate([words[2 * s:s + e] for s, e in zip(starts, ends, strict=True)])": (
            "radii = words[:total]",
            RAISES,
        ),
        "angles = np.concatenate([words[s + e:2 * e] for s, e in zip(starts, ends, strict=True)])": (
            "angles = radii",
            RAISES,
        ),
        "cosines, sines = torch.empty((2, total), dtype=torch.float64)": (
            "cosines, sines = torch.empty((2, total), dtype=torch.float64).bfloat16()",
            RAISES,
        ),
        "for start in range(0, total, AT_ONCE):": (
            "cosines[:], sines[:] = 0, 0\nfor start in range(AT_ONCE, total, AT_ONCE):",
            RAISES,
        ),
        "part = slice(start, start + AT_ONCE)": ("part = slice(0, AT_ONCE)", None),  # one part only
        "radius = torch.from_numpy(_uniform(radii[part])).neg_().log1p_().mul_(-2).sqrt_()": (
            "radius = torch.from_numpy(_uniform(radii[part])).neg_().log1p_().mul_(-1).sqrt_()",
            RAISES,
        ),
        "angle = torch.from_numpy(_uniform(angles[part])).mul_(2 * math.pi)": (
            "angle = torch.from_numpy(_uniform(angles[part])).mul_(math.pi)",
            RAISES,
        ),
        "torch.mul(radius, angle.cos(), out=cosines[part])": ("cosines[part] = 0.0", RAISES),
        "torch.mul(radius, angle.sin_(), out=sines[part])": ("sines[part] = 0.0", RAISES),
        "return [np.concatenate([cosines[s:e], sines[s:e]])[:count] for s, e, count in zip(starts, ends, counts, strict=True)]": (
            "return [np.concatenate([cosines[s:e], cosines[s:e]])[:count] for s, e, count in zip(starts, ends, counts, strict=True)]",
            RAISES,
        ),
    },
    Randomness.stream: {
        "key = hmac.digest(self._secret, f'{purpose}/{step}'.encode(), 'sha256')": (
            "key = hmac.digest(self._secret, f'{purpose}'.encode(), 'sha256')",
            RAISES,
        ),
        "return Stream(key)": ("return Stream(bytes(32))", RAISES),
    },
}


def statements(function):
    """Returns every statement of a function as one line each, without its docstring."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    return [
        head(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt)
        and node is not tree
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]


def head(node):
    return ast.unparse(node).partition("\n")[0]


def mutated(function, statement, replacement):
    """Returns the source of `function` with one statement replaced; a head keeps its body."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    lines = ast.unparse(tree).split("\n")
    (place,) = [n for n, line in enumerate(lines) if line.strip() == statement]
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    lines[place] = textwrap.indent(replacement, indent)
    return "\n".join(lines)


@pytest.mark.parametrize("function", MUTANTS, ids=lambda function: function.__qualname__)
def test_every_statement_of_the_noisy_update_has_a_mutant(function):
    assert sorted(statements(function)) == sorted(MUTANTS[function])


CASES = [
    pytest.param(function, statement, *mutant, id=f"{function.__qualname__}: {statement[:50]}")
    for function, of in MUTANTS.items()
    for statement, mutant in of.items()
    if mutant[1] is not None
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers nobody wrote: the tests decide
@pytest.mark.parametrize(("function", "statement", "replacement", "end"), CASES)
def test_mutant_of_the_noisy_update_dies(
    function, statement, replacement, end, honest, tmp_path, monkeypatch
):
    source = mutated(function, statement, replacement)
    put_in_place(monkeypatch, function, source)
    if end == RAISES:
        with pytest.raises(DEATHS):
            a_run(
                tmp_path,
                SHORTENING if "norm" in statement and "largest" in statement else PLAN,
                engine=engine_of(function),
            )
    elif end == REFUSED:
        with pytest.raises(OptionError, match="its gradients are off by"):
            a_run(tmp_path, engine="", gradients="recorded")
    else:
        found = a_run(tmp_path, engine=engine_of(function))
        assert found.losses != honest[engine_of(function)].losses


# --- what a bug outside the steps would do ---

OTHER_BUGS = {
    "a clip norm that follows from the images": (
        PrivateRun._rule,
        ("self.noise.clip_norm_at,", "lambda s: self.noise.clip_norm_at(s) * 1.2,"),
        "the gradient",
    ),
    "a learning rate that follows from the true number": (
        PrivateRun._rule,
        ("* planned_factor(", "* len(self._images) / 23 * planned_factor("),
        "the weights",
    ),
    "weights that are polished after the last proof": (
        PrivateRun.run_steps,
        (
            'complete = replace(self.run, secret="", ',
            "next(iter(self._part.parameters())).data += 0.01\n"
            '        complete = replace(self.run, secret="", ',
        ),
        "changed by something else than a step",
    ),
    "weights that are not trained and change after the last proof": (
        PrivateRun.run_steps,
        (
            'complete = replace(self.run, secret="", ',
            "next(iter(self._part.buffers())).add_(self._images.images.mean())\n"
            '        complete = replace(self.run, secret="", ',
        ),
        "not trained were changed",
    ),
    "weights that are changed between two steps": (
        PrivateRun._steps,
        (
            "loss = proof.take(step)",
            "next(iter(self._part.parameters())).data.mul_(1 + 0.1 * step)\n"
            "        loss = proof.take(step)",
        ),
        "changed by something else than a step",
    ),
    "first weights that the images have shaped": (
        PrivateRun.start,
        (
            "self.run = replace",
            "next(iter(self._part.parameters())).data += self._images.images.mean()\n"
            "    self.run = replace",
        ),
        "is not what it starts from",
    ),
}


@pytest.mark.parametrize("step", ["0", "1", "step"])
def test_step_that_writes_into_weights_that_are_not_trained_stops_the_training(
    step, tmp_path, monkeypatch
):
    changed = "average[name].add_(loss) for average in list(self.averages.of.values())[:1]"
    changed += " for name in average.keys() - self.trained.keys()"
    plant(
        monkeypatch,
        NoisyUpdate.take,
        ("    return loss", f"    [{changed} if step == {step}]\n    return loss"),
    )
    with pytest.raises(MechanismError, match="not trained"):
        a_run(tmp_path, PART)


@pytest.mark.parametrize("bug", OTHER_BUGS)
def test_bug_around_the_steps_stops_the_training_by_name(bug, tmp_path, monkeypatch):
    function, change, name = OTHER_BUGS[bug]
    plant(monkeypatch, function, change)
    with pytest.raises(MechanismError, match=name):
        a_run(tmp_path, PART if "not trained" in bug else SHORTENING if "rate" in bug else PLAN)


def test_training_that_was_refused_is_not_tried_again_until_it_passes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        plant(patch, PrivateStep.noisy_mean, (RELEASE, f"{RELEASE} if step else {WITHOUT}"))
        with pytest.raises(MechanismError, match="step 0"):
            a_run(tmp_path)
    assert SECRET.hex.encode() not in (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(MechanismError, match="is of a training that was refused"):
        a_run(tmp_path)


def test_release_that_is_drawn_towards_the_truth_is_not_released(fed, monkeypatch):
    plant(
        monkeypatch,
        mechanisms.release,
        ("noisy = measurement(exact.tolist())", "noisy = [int(v) for v in exact]"),
    )
    with pytest.raises(MechanismError, match="is not of the size that was paid for"):
        train_site(fed.site(A), fed.trust, random_images(0))
