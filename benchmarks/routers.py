"""Which router, under which strategy? One table: the same experts, the same noise.

`pooled` is the paper's router, trained on everybody's images: it breaks the isolation of the sites
and is here as the upper bound only.

With `--embedder-weights` there are centroids of embeddings as well (such as EfficientNet-Lite0's,
`imagenet_network.py` makes the file). Their anchors are found among 400 test images, which then
judge nothing. They look at image estimates of all experts by share, at times up to .4, and are
sampled `sticky-then-routed-0.4`: give the others that strategy too to compare them.

Experts know no classes, unless `--classes` is given: under a skew of labels a router that is told
the class has nothing left to find out, since p(k | x_t, t, c) is pi_k(c) at every t.
"""

import argparse
import dataclasses
import functools
import hashlib
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ladder import Federation, load_federation, releases_of, train_experts
from private_mixtures import release
from torch import Tensor

from ddm_fed.embedding import Embedder, dct_basis, open_embedder
from ddm_fed.ensemble.sampling import Samples, SamplingOptions, sample
from ddm_fed.ensemble.strategy import Strategy
from ddm_fed.ensemble.velocity import Ensemble
from ddm_fed.evaluation import frechet_distance, train_classifier_on
from ddm_fed.flows import ClassCondition
from ddm_fed.mixture import (
    EmbeddedImages,
    anchor_lines,
    fit_mixtures,
    planned_anchors,
    public_anchors,
    release_tensors,
    released_weights,
)
from ddm_fed.router import (
    CalibratedRouter,
    Calibration,
    ClassifierRouter,
    CoefficientNetwork,
    HeadsRouter,
    HybridRouter,
    PooledReference,
    PriorRouter,
    Router,
    build_router,
    calibrated_hybrid,
    fit_calibration,
    knots_about,
    planned_centroid_router,
    posterior_quality,
    sees_until,
    train_classifier,
    train_head,
)

TIMES = (0.1, 0.3, 0.5, 0.69, 0.7, 0.9)
SWITCH = 0.7
TRAINING = """
steps = {steps}
batch_size = 64
learning_rate = 0.002
ema_half_lives = [{half_life}]
"""
RELEASE = """
kind = "mixture"
epsilon = {epsilon:g}
frequencies = {frequencies}
centre = -0.4
radius = {radius}
"""
POOLED = "POOLED (breaks isolation)"
UNTIL, PUBLIC = 0.4, 400
CENTROIDS = """
kind = "centroid"
epsilon = {epsilon:g}
"""


class Remembering:
    """An embedder that embeds no image twice."""

    def __init__(self, inside: Embedder) -> None:
        self._inside, self._known = inside, {}
        self.name, self.dimension, self.digest = inside.name, inside.dimension, inside.digest

    def images(self, images: Tensor) -> Tensor:
        keys = [hashlib.sha256(image.contiguous().numpy().tobytes()).digest() for image in images]
        for part in torch.split(torch.arange(len(images)), 64):
            missing = [row for row in part.tolist() if keys[row] not in self._known]
            if missing:
                found = self._inside.images(images[missing])
                self._known |= {keys[row]: found[at] for at, row in enumerate(missing)}
        return torch.stack([self._known[key] for key in keys])


class Unaware:
    """The condition is dropped: a router that was not told what the image shall be."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.reads_state = router.reads_state

    def log_prior(self, condition):
        prior = self._router.log_prior(None)
        return prior if condition is None else prior.expand(len(condition), -1)

    def log_posterior(self, x_t, t, condition):  # noqa: ARG002
        return self._router.log_posterior(x_t, t, None)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Ladder:
    """Experts, and everything routers are made of."""

    def __init__(self, federation: Federation, arguments: argparse.Namespace) -> None:
        self.embedder: Remembering | None = None
        if arguments.embedder_weights is not None:
            digest = hashlib.sha256(arguments.embedder_weights.read_bytes()).hexdigest()
            weights = arguments.embedder_weights
            self.embedder = Remembering(open_embedder(arguments.embedder, weights, digest))
            order = torch.randperm(len(federation.test), generator=generator(16))
            self.public = federation.test.images[order[:PUBLIC]]
            test = federation.test.rows(order[PUBLIC:])
            federation = dataclasses.replace(federation, test=test)
        self.federation, self.arguments = federation, arguments
        plan = self._plan(1000)
        self.experts = train_experts(federation, plan, arguments.work, workers=arguments.workers)
        self.shape, self.classes = plan.data.shape, len(plan.data.classes)
        self.own = [federation.train.of_site(site) for site in range(federation.sites)]
        self.basis = dct_basis(self.shape, plan.router.frequencies)
        self.offset = float(plan.router.centre) * self.basis.sum(1)
        self.everything = dct_basis(self.shape, self.shape[1] * self.shape[2])
        counts = federation.counts
        self.true_prior = PriorRouter(counts if self.classes else counts.sum(1, keepdim=True))
        self.real = [(own.images, self.known(own.labels)) for own in self.own]
        self.replayed = [self._replay(site) for site in range(federation.sites)]

    def _plan(self, epsilon: float, router: str = RELEASE):
        small = self.federation.train.images.shape[-1] <= 8
        steps = self.arguments.training_steps
        return self.federation.plan(
            TRAINING.format(steps=steps, half_life=max(20, steps // 10)),
            self.arguments.architecture,
            router.format(
                epsilon=epsilon, frequencies=36 if small else 64, radius=7 if small else 24
            ),
            classes=self.arguments.classes,
        )

    def centroids(self, epsilon: float, mixture: Router) -> dict[str, tuple[Router, int]]:
        """Centroids of real features, and a hybrid of `mixture` above and them below."""
        self.tell(f"centroids, eps {epsilon:g}")
        seen = self.embedder.images(self.public)
        anchors = public_anchors(seen, self.arguments.anchors, 0, dimensions=32)
        plan = self._plan(epsilon, CENTROIDS + anchor_lines(anchors, self.embedder))
        directions = EmbeddedImages(self.embedder, planned_anchors(plan.centroids))
        releases = [release(plan, own.images, None, directions)[0] for own in self.own]
        floats = sum(int(np.prod(shape)) for _, shape in release_tensors(plan).values())
        found = {}
        alone = planned_centroid_router(plan, releases, self.embedder)
        found["centroid"] = (alone, floats)
        calibration = self._calibration(alone, None)
        found["centroid calibrated"] = (CalibratedRouter(alone, calibration), floats)
        plain = HybridRouter(mixture, alone, UNTIL)
        both = calibrated_hybrid(mixture, alone, UNTIL, self._calibration(plain, UNTIL))
        found["hybrid of centroids"] = (both, floats)
        return found

    def estimate(self, x_t: Tensor, t: Tensor, condition: ClassCondition | None) -> Tensor:
        """The image that all experts expect, by their sites' shares; x_t where nobody looks."""
        if float(t.min()) > UNTIL:
            return x_t
        everybody = Ensemble(self.experts, self.true_prior)
        full = Strategy.parse("full")
        v = everybody.velocity(x_t, t, condition, strategy=full, batch_size=256)
        return (x_t - t.view(-1, 1, 1, 1) * v).float()

    @property
    def estimates(self) -> Callable | None:
        """What makes image estimates, where some router looks at them."""
        return None if self.embedder is None else self.estimate

    def known(self, labels: torch.Tensor) -> torch.Tensor | None:
        """The labels, where experts and routers know classes."""
        return labels if self.arguments.classes else None

    def _replay(self, site: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images drawn from one expert, of the classes its site has."""
        own, count = self.own[site], self.arguments.replay
        self.tell(f"drawing from expert {site}")
        labels = own.labels[torch.randint(len(own), (count,), generator=generator(site))]
        one = PriorRouter(torch.ones((1, max(1, self.classes))))
        drawn = self.draw(Ensemble([self.experts[site]], one), "sticky", labels, seed=1000 + site)
        return drawn.images, self.known(labels)

    def draw(
        self, ensemble: Ensemble, strategy: str, labels: torch.Tensor, *, seed: int
    ) -> Samples:
        options = SamplingOptions(
            Strategy.parse(strategy), self.arguments.steps, self.arguments.solver, seed
        )
        condition = ClassCondition(labels) if self.arguments.classes else None
        return sample(ensemble, self.shape, len(labels), options, condition=condition)

    def classifier(self, sets, seed: int, basis: torch.Tensor | None = None) -> Router:
        """A network trained on `(images, labels)` of every site, with all frequencies by default.

        Half of the images are learned without their class, so that neither posterior of `paris` is
        better trained than the other.
        """
        basis = self.everything if basis is None else basis
        rows = [((x.flatten(1).double() @ basis.T).float(), y) for x, y in sets]
        classes = self.classes if sets[0][1] is not None else 0
        network = CoefficientNetwork(len(basis), len(sets), classes)
        self.tell("training a classifier of sites")
        train = functools.partial(train_classifier, label_dropout=0.5)
        self._fit(train, network, rows, self.federation.shares, seed)
        return ClassifierRouter(network, basis, self.true_prior)

    def heads(self, mixtures, prior: PriorRouter, seed: int) -> tuple[Router, int]:
        """Heads against the pool of `mixtures`, and the number of weights of one."""
        reference = PooledReference(mixtures, self.offset, cells_are_classes=True)
        heads = []
        self.tell("training heads")
        for site, (images, labels) in enumerate(self.real):
            y = (images.flatten(1).double() @ self.basis.T).float()
            heads.append(CoefficientNetwork(len(self.basis), 1, self.classes, width=128))
            self._fit(train_head, heads[-1], (y, labels), reference, seed + site)
        weights = sum(value.numel() for value in heads[0].parameters())
        return HeadsRouter(heads, self.basis, prior), weights

    @staticmethod
    def tell(what: str) -> None:
        """Says on stderr where a long run is."""
        print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)

    def _fit(self, train: Callable, network, data, about, seed: int) -> None:
        train(
            network,
            data,
            about,
            steps=self.arguments.router_steps,
            batch_size=256,
            learning_rate=1e-3,
            generator=generator(seed),
        )

    def calibrated(self, router: Router) -> Router:
        """The router, calibrated."""
        return CalibratedRouter(router, self._calibration(router, None))

    def hybrid(self, high: Router, low: Router) -> Router:
        """Both as one, each calibrated by itself."""
        plain = HybridRouter(high, low, SWITCH)
        return calibrated_hybrid(high, low, SWITCH, self._calibration(plain, SWITCH))

    def _calibration(self, router: Router, switch: float | None) -> Calibration:
        """Fitted on the second half of the replayed images, in proportion to the shares."""
        self.tell("calibrating")
        images, sites, labels = [], [], []
        shares = self.federation.shares / self.federation.shares.max()
        for site, (x, y) in enumerate(self.replayed):
            half = len(x) // 2
            kept = slice(half, half + max(2, round(half * float(shares[site]))))
            images.append(x[kept])
            labels.append(None if y is None else y[kept])
            sites.append(torch.full((len(x[kept]),), site))
        known = torch.cat(labels) if self.arguments.classes else None
        return fit_calibration(
            router,
            torch.cat(images),
            torch.cat(sites),
            known,
            generator(5),
            times=knots_about(switch),
            estimate=self.estimates,
        )

    def routers(self) -> dict[str, tuple[Router, str, str, int]]:
        """Router, epsilon, messages per site, floats per site; by name."""
        found = {}
        counts = self.classes + 1 if self.classes else 1
        found["prior, exact counts"] = (self.true_prior, "none", "1", counts)
        first_halves = [
            (x[: len(x) // 2], None if y is None else y[: len(y) // 2]) for x, y in self.replayed
        ]
        replay = self.classifier(first_halves, 50)
        for epsilon in self.arguments.epsilons:
            plan, text = self._plan(epsilon), f"{epsilon:g}"
            releases = releases_of(self.own, plan)
            floats = sum(int(np.prod(shape)) for _, shape in release_tensors(plan).values())
            mixture = build_router(plan, "mixture", releases)
            prior = PriorRouter(released_weights(plan, releases))
            found[f"mixture, eps {text}"] = (mixture, text, "1", floats)
            found[f"mixture calibrated, eps {text}"] = (self.calibrated(mixture), text, "1", floats)
            heads, weights = self.heads(fit_mixtures(plan, releases), prior, 60)
            cost = f"{text}, heads none"
            found[f"heads, eps {text}"] = (heads, cost, "2", floats + weights)
            found[f"heads calibrated, eps {text}"] = (
                self.calibrated(heads),
                cost,
                "2",
                floats + weights,
            )
            hybrid = self.hybrid(mixture, replay)
            found[f"hybrid, eps {text}"] = (hybrid, text, "1", floats)
            if self.embedder is not None:
                for name, (router, sent) in self.centroids(epsilon, mixture).items():
                    whole = sent if name.startswith("centroid") else sent + floats
                    found[f"{name}, eps {text}"] = (router, text, "1", whole)
        found["replay"] = (replay, "as experts", "1", counts)
        found["replay calibrated"] = (self.calibrated(replay), "as experts", "1", counts)
        few = self.classifier(self.real, 71, self.basis)
        found[f"{POOLED}, {len(self.basis)} frequencies"] = (few, "none", "all images", 0)
        found[POOLED] = (self.classifier(self.real, 70), "none", "all images", 0)
        return found


class Judge:
    """Measures samples against real images of the pool, with features learned from real ones."""

    def __init__(self, ladder: Ladder) -> None:
        self._ladder, self._test = ladder, ladder.federation.test
        ladder.tell("training the judge")
        train, self.kinds = ladder.federation.train, len(ladder.federation.classes)
        self.network = train_classifier_on(
            train.images, train.labels, self.kinds, epochs=8, generator=generator(9)
        ).network
        # images no feature was learned from, divided among the sites as the training images are
        self.real = self.network.features(self._test.images).numpy()
        picked = torch.randint(len(train), (ladder.arguments.samples,), generator=generator(11))
        self.labels = train.labels[picked]
        # told no class: a sample of the wrong class must not hide behind the one it was asked for
        self._tell = ladder.classifier([(own.images, None) for own in ladder.own], 90)
        self._due = self._told(self._test.images)

    def fid(self, images: torch.Tensor) -> float:
        return frechet_distance(self.real, self.network.features(images).numpy())

    def share_error(self, images: torch.Tensor) -> float:
        """Total variation of the mean posterior of samples from that of real test images."""
        return float(0.5 * (self._told(images) - self._due).abs().sum())

    def _told(self, images: torch.Tensor) -> torch.Tensor:
        t = torch.full((len(images),), 0.02)
        noise = torch.randn(images.shape, generator=generator(14))
        x_t = 0.98 * images + 0.02 * noise
        return self._tell.log_posterior(x_t, t, None).exp().mean(0)

    def tstr(self, images: torch.Tensor) -> str:
        if not self._ladder.classes:
            return "no classes"
        trained = train_classifier_on(
            images, self.labels, self.kinds, epochs=10, generator=generator(12)
        )
        return f"{trained.network.accuracy(self._test.images, self._test.labels):.3f}"

    def quality(self, router: Router) -> list:
        test = self._test
        return posterior_quality(
            router,
            test.images,
            test.sites,
            self._ladder.known(test.labels),
            TIMES,
            generator(13),
            estimate=self._ladder.estimates,
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help=".npz with MedMNIST's keys; default: digits")
    parser.add_argument("--split", default="label-skew")
    parser.add_argument("--work", type=Path, required=True, help="keeps trained experts")
    parser.add_argument("--classes", action="store_true", help="experts and routers know them")
    parser.add_argument("--architecture", default="DiT-Nano/2")
    parser.add_argument("--training-steps", type=int, default=1500)
    parser.add_argument("--router-steps", type=int, default=3000)
    parser.add_argument("--replay", type=int, default=2000, help="images per expert")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--solver", default="dpm++2m")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[1, 8, 1000])
    parser.add_argument(
        "--strategies",
        nargs="*",
        default=["sticky", "sticky-then-routed", "per-step", "full", "top-2", "top-1"],
    )
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[7, 8, 9], help="of sampling; all ranks are means"
    )
    parser.add_argument("--embedder-weights", type=Path, help="adds centroids of its features")
    parser.add_argument("--embedder", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--anchors", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="processes that train experts")
    parser.add_argument("--ladder", default="", help="regular expression: routers of the ladder")
    arguments = parser.parse_args()
    federation = load_federation(arguments.data, arguments.split)
    sizes = federation.counts.sum(1).tolist()
    print(f"# {federation.name}: sites of {sizes} images\n", flush=True)
    ladder = Ladder(federation, arguments)
    judge, routers = Judge(ladder), ladder.routers()
    shown = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("work", "data", "embedder_weights")
    }
    options = ", ".join(f"{name} {value}" for name, value in sorted(shown.items()))
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    print(f"{options}; {len(federation.test)} test images judge posteriors and shares\n")
    qualities(judge, routers)
    fidelities(ladder, judge, routers)
    if arguments.classes:
        paris(ladder, judge, routers)
    costs(ladder, routers)


def qualities(judge: Judge, routers: dict) -> None:
    """How well every router knows the sites of real test images."""
    times = ", ".join(f"{t:g}" for t in TIMES)
    print(f"| router | NLL in nats at t = {times} | ECE at the same |\n| --- | --- | --- |")
    for name, (router, *_) in routers.items():
        found = judge.quality(router)
        nll = ", ".join(f"{at.nll:.3f}" for at in found)
        print(f"| {name} | {nll} | {', '.join(f'{at.ece:.3f}' for at in found)} |", flush=True)


def fidelities(ladder: Ladder, judge: Judge, routers: dict) -> None:
    """The ladder: routers and strategies."""
    train = ladder.federation.train
    real = train.images[torch.randperm(len(train), generator=generator(15))[: len(judge.labels)]]
    print(f"\nFID of {len(real)} real training images: {judge.fid(real):.2f}\n")
    print(
        "| router | strategy | FID | of pooled, full | TSTR | share error | calls a step | floats "
        "| messages | epsilon |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    # the same noise under every router: parts of pooled are taken seed by seed
    reference = measured(ladder, judge, routers[POOLED][0], "full")[0]
    chosen = {name: it for name, it in routers.items() if re.search(ladder.arguments.ladder, name)}
    for name, (router, epsilon, messages, floats) in chosen.items():
        until = sees_until(router)
        allowed = ladder.arguments.strategies if until == 1 else ["sticky"]
        if 0 < until < 1:
            allowed = [f"sticky-then-routed-{until:g}"]
        for strategy in allowed:
            fid, shares, tstr, calls = measured(ladder, judge, router, strategy)
            per_call = {"heun": 2, "midpoint": 2}.get(ladder.arguments.solver, 1)
            print(
                f"| {name} | {strategy} | {spread(fid)} | {spread(fid / reference)} "
                f"| {tstr} | {spread(shares, 3)} "
                f"| {calls / per_call:.2f} | {floats} | {messages} | {epsilon} |",
                flush=True,
            )


def measured(
    ladder: Ladder, judge: Judge, router: Router, strategy: str
) -> tuple[np.ndarray, np.ndarray, str, float]:
    """FID and share error by seed, TSTR of the first seed, expert calls per image and step."""
    fids, shares, tstr, calls = [], [], "", 0.0
    for seed in ladder.arguments.seeds:
        ensemble = Ensemble(ladder.experts, router)
        drawn = ladder.draw(ensemble, strategy, judge.labels, seed=seed)
        fids.append(judge.fid(drawn.images))
        shares.append(judge.share_error(drawn.images))
        tstr = tstr or judge.tstr(drawn.images)
        calls = sum(ensemble.experts.calls) / len(judge.labels) / ladder.arguments.steps
    return np.array(fids), np.array(shares), tstr, calls


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Mean and range over seeds."""
    low, high = values.min(), values.max()
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def paris(ladder: Ladder, judge: Judge, routers: dict) -> None:
    """Conditional experts under a posterior that is not told the class, and one that is."""
    print(
        "\n| router | posterior | strategy | FID | share error |\n| --- | --- | --- | --- | --- |"
    )
    names = [POOLED, "replay"]  # calibration was fitted with classes: without, it means nothing
    for name in names:
        aware = routers[name][0]
        for told, router in (("told the class", aware), ("not told", Unaware(aware))):
            for strategy in ("full", "top-1", "top-2", "sticky-then-routed"):
                fid, shares, _, _ = measured(ladder, judge, router, strategy)
                print(
                    f"| {name} | {told} | {strategy} | {spread(fid)} | {spread(shares, 3)} |",
                    flush=True,
                )


def costs(ladder: Ladder, routers: dict) -> None:
    """What a router takes of a call of one expert on the same 64 images."""
    x, t = torch.randn((64, *ladder.shape), generator=generator(1)), torch.full((64,), 0.5)
    condition = None
    if ladder.classes:
        condition = ClassCondition(torch.arange(64) % ladder.classes)

    def median(call: Callable) -> float:
        taken = []
        for _ in range(15):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
        return float(np.median(taken))

    with torch.no_grad():
        expert = median(lambda: ladder.experts[0](x, t, condition))
        print(f"\nOne expert on 64 images: {1000 * expert:.1f} ms. Routers, as a part of that:")
        for name, (router, *_) in routers.items():
            taken = median(lambda router=router: router.log_posterior(x, t, condition))
            print(f"- {name}: {taken / expert:.3f}")


if __name__ == "__main__":
    main()
