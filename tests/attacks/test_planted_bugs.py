"""Bugs planted in what trains: each is caught before anything leaves, and by name.

The bugs are those that a private training can have without its output showing it: no noise, noise
that can be foreseen, a unit that counts too much, numbers that were never released.
"""

# ruff: noqa: E501  a statement and its mutant stand whole, one under the other

import ast
import inspect
import textwrap
from dataclasses import dataclass
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
from ddm_fed.errors import MechanismError, PolicyError
from ddm_fed.privacy import (
    NoisyUpdate,
    PrivateStep,
    Randomness,
    Stream,
    clip_factors,
    fresh_secret,
    mechanisms,
    noised,
)
from ddm_fed.privacy.dpsgd import Adding
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

pytestmark = pytest.mark.slow

A = SITES[0]
# the gradient is never shortened after its noise, which would undo what is multiplied into it
PLAN = a_plan(max_epsilon=PRIVATE, steps="steps = 3\nclip_norm = 100000")
SHORTENING = a_plan(max_epsilon=PRIVATE)
SECRET = Randomness.for_tests(4)


# as planned, but for the noise itself: finding it takes seconds, and nothing here needs it
EVENT = SampledGaussianEvent(
    sampling_rate=Decimal("0.5"), noise_multiplier=Decimal("0.85"), steps=3
)


def noise_of(plan=PLAN):
    return PrivateTraining.planned(plan, EVENT, 24.0)


@dataclass
class Ran:
    losses: list[float]
    state: dict[str, torch.Tensor]


def a_run(folder, plan=PLAN, data=None, **options):
    """A whole private training, as a site's is but for its ledger; its first step is proved."""
    losses, noise = [], noise_of(plan)
    expert = train_private_expert(
        data or random_images(0),
        plan,
        "ab" * 32,
        folder / "checkpoint.safetensors",
        noise,
        Payment(lambda: "0" * 64, lambda _: paid_for(noise)),
        options=RunOptions(gradients="functional", **options),
        randomness=SECRET,
        watch=Watch(lambda report: losses.append(report.loss)),
    )
    return Ran(losses, expert.state)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return a_run(tmp_path_factory.mktemp("honest"))


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
        a_run(tmp_path)


def test_training_without_a_bug_is_not_accused(honest):
    assert len(honest.losses) == 3
    assert all(torch.isfinite(value).all() for value in honest.state.values())


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
# what each statement is turned into; those that only tell the site's own screen something
# may not stop a training, but have to change what is told
MUTANTS = {
    PrivateStep.noisy_mean: {
        "chosen = self.included(step, len(units))": ("chosen = torch.arange(len(units))", RAISES),
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
        "return result": ("return result.plus(result)", RAISES),
    },
    PrivateStep.release: {
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
        "noisy = {}": ("noisy = dict(total)", None),  # all of its values are set below
        "for name, value in total.items():": (
            "for name, value in list(total.items())[1:]:",
            RAISES,
        ),
        "noise = torch.from_numpy(normal(value.numel())).view(value.shape).to(value.device)": (
            "noise = torch.from_numpy(normal(1)).expand(value.shape).clone()",
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
        "factors = (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0)": (
            "factors = torch.ones_like(norms)",
            RAISES,
        ),
        "return (torch.where(torch.isfinite(norms), factors, 0.0), norms)": (
            "return (factors, norms)",
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
        "words = np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype='<u8')": (
            "words = np.frombuffer(bytes(range(8)) * count, dtype='<u8')",
            RAISES,
        ),
        "return (words >> np.uint64(11)).astype(np.float64) * MANTISSA": (
            "return (words >> np.uint64(12)).astype(np.float64) * MANTISSA",
            RAISES,
        ),
    },
    Stream.normal: {
        "half = (count + 1) // 2": ("half = count // 2 + 1", RAISES),
        "uniform = torch.from_numpy(self.uniform(2 * half))": (
            "uniform = torch.from_numpy(self.uniform(half)).repeat(2)",
            RAISES,
        ),
        "found = torch.empty(2 * half, dtype=torch.float64)": (
            "found = torch.empty(2 * half, dtype=torch.float64).bfloat16()",
            RAISES,
        ),
        "for start in range(0, half, PAIRS_AT_ONCE):": (
            "found.fill_(0.0)\nfor start in range(0, half // 2, PAIRS_AT_ONCE):",
            None,  # beyond one part only: see the numbers' own tests
        ),
        "pairs = slice(start, min(start + PAIRS_AT_ONCE, half))": (
            "pairs = slice(0, min(PAIRS_AT_ONCE, half))",
            None,
        ),
        "others = slice(half + start, half + pairs.stop)": (
            "others = pairs",
            RAISES,
        ),
        "radius = torch.log1p(-uniform[pairs]).mul_(-2).sqrt_()": (
            "radius = torch.log1p(-uniform[pairs]).mul_(-1).sqrt_()",
            RAISES,
        ),
        "angle = uniform[others] * (2 * math.pi)": ("angle = uniform[others] * math.pi", RAISES),
        "torch.mul(radius, angle.cos(), out=found[pairs])": ("found[pairs] = 0.0", RAISES),
        "torch.mul(radius, angle.sin(), out=found[others])": ("found[others] = 0.0", RAISES),
        "normal: Floats = found[:count].numpy()": (
            "normal: Floats = found[:count].numpy() / 2",
            RAISES,
        ),
        "return normal": ("return normal.clip(-2, 2)", RAISES),
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
        with pytest.raises((MechanismError, RuntimeError, ValueError, KeyError, TypeError)):
            a_run(tmp_path, SHORTENING if "norm" in statement and "largest" in statement else PLAN)
    else:
        assert a_run(tmp_path).losses != honest.losses


# --- what a bug outside the steps would do ---

OTHER_BUGS = {
    "a clip norm that follows from the images": (
        PrivateRun._rule,
        ("self.noise.clip_norm_at,", "lambda s: self.noise.clip_norm_at(s) * 1.2,"),
        "the gradient",
    ),
    "a learning rate that follows from the true number": (
        PrivateRun._rule,
        ("* factor", "* factor * len(self._images) / 23"),
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


@pytest.mark.parametrize("bug", OTHER_BUGS)
def test_bug_around_the_steps_stops_the_training_by_name(bug, tmp_path, monkeypatch):
    function, change, name = OTHER_BUGS[bug]
    plant(monkeypatch, function, change)
    with pytest.raises(MechanismError, match=name):
        a_run(tmp_path, SHORTENING if "rate" in bug else PLAN)


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
