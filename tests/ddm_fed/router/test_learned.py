"""Learned routers against the exact posterior of sites whose images are Gaussian mixtures."""

import math

import pytest
import torch

from ddm_fed.embedding import dct_basis
from ddm_fed.flows import NO_CLASS, ClassCondition
from ddm_fed.mixture import GaussianMixtures
from ddm_fed.records.architecture import DitArchitecture, DitSize
from ddm_fed.router import (
    ClassifierRouter,
    CoefficientNetwork,
    HeadsRouter,
    HybridRouter,
    ImageTransformer,
    MixtureRouter,
    PooledReference,
    PriorRouter,
    train_classifier,
    train_head,
)

SHAPE = (1, 4, 4)
D, SITES, CLASSES = 6, 3, 2
BASIS = dct_basis(SHAPE, D)
CENTRE = -0.25
OFFSET = CENTRE * BASIS.sum(1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def a_world(seed=0, *, per_class=True):
    """Mixtures of three unequal sites, two components (classes) each, in six coefficients."""
    g = generator(seed)
    weights = torch.tensor([[30.0, 10.0], [5.0, 20.0], [8.0, 2.0]], dtype=torch.float64)
    means = torch.randn((SITES, CLASSES, D), generator=g, dtype=torch.float64)
    roots = torch.randn((SITES, CLASSES, D, D), generator=g, dtype=torch.float64) * 0.3
    values, axes = torch.linalg.eigh(roots @ roots.mT + 0.05 * torch.eye(D, dtype=torch.float64))
    mixtures = GaussianMixtures(weights, means, values, axes)
    exact = MixtureRouter(mixtures, BASIS, centre=CENTRE, cells_are_classes=per_class)
    return mixtures, exact


def coefficients(mixtures, site, count, g):
    """Draws of one site by torch's own distribution, `(n, D)`, and their components."""
    label = torch.multinomial(mixtures.weights[site], count, replacement=True, generator=g)
    scaled = torch.randn((count, D), generator=g, dtype=torch.float64)
    scaled = scaled * mixtures.variances[site, label].sqrt()
    y = torch.einsum("nij,nj->ni", mixtures.axes[site, label], scaled)
    return (y + mixtures.means[site, label] + OFFSET).float(), label


def density(mixtures, site, label):
    """One component of one site as a torch distribution of (y_t at time t)."""

    def log_prob(y_t, t):
        out = torch.empty(len(y_t), dtype=torch.float64)
        for row in range(len(y_t)):
            s = float(t[row])
            axes, values = mixtures.axes[site, label], mixtures.variances[site, label]
            covariance = (1 - s) ** 2 * axes @ values.diag() @ axes.T
            covariance += s**2 * torch.eye(D, dtype=torch.float64)
            mean = (1 - s) * (mixtures.means[site, label] + OFFSET)
            law = torch.distributions.MultivariateNormal(mean, covariance)
            out[row] = law.log_prob(y_t[row].double())
        return out

    return log_prob


def brute_site(mixtures, site, y_t, t, label=None):
    """log p_t(y | site, class) by brute force, `(B,)`."""
    labels = range(CLASSES) if label is None else [label]
    mass = mixtures.weights[site]
    logs = [mass[j].log() + density(mixtures, site, j)(y_t, t) for j in labels]
    return torch.stack(logs).logsumexp(0) - mass[list(labels)].sum().log()


def brute_reference(mixtures, y_t, t, label=None):
    mass = mixtures.weights.sum(1) if label is None else mixtures.weights[:, label]
    logs = [mass[k].log() + brute_site(mixtures, k, y_t, t, label) for k in range(SITES)]
    return torch.stack(logs).logsumexp(0) - mass.sum().log()


def some_states(seed, count=12):
    g = generator(seed)
    x_t = torch.randn((count, *SHAPE), generator=g)
    return x_t, torch.rand(count, generator=g)


@pytest.mark.parametrize("label", [None, 0, 1])
def test_exact_heads_compose_by_bayes_to_the_exact_posterior(label):
    mixtures, exact = a_world()
    x_t, t = some_states(1)
    condition = None if label is None else ClassCondition(torch.full((len(x_t),), label))

    def head(site):
        def score(y_t, t, condition):
            ratio = brute_site(mixtures, site, y_t, t, label)
            return (ratio - brute_reference(mixtures, y_t, t, label))[:, None]

        return score

    prior = PriorRouter(mixtures.weights)
    router = HeadsRouter([head(k) for k in range(SITES)], BASIS, prior)
    found = router.log_posterior(x_t, t, condition)
    # the only difference: coefficients are taken in float32
    torch.testing.assert_close(found, exact.log_posterior(x_t, t, condition), rtol=0, atol=2e-5)


@pytest.mark.parametrize("label", [None, 0, 1])
def test_density_of_the_reference_is_that_of_the_pool(label):
    mixtures, _ = a_world()
    x_t, t = some_states(2)
    y_t = x_t.flatten(1).double() @ BASIS.T
    reference = PooledReference(mixtures, OFFSET, cells_are_classes=True)
    labels = None if label is None else torch.full((len(t),), label)
    torch.testing.assert_close(
        reference.log_density(y_t, t.double(), labels),
        brute_reference(mixtures, y_t, t.double(), label),
        rtol=0,
        atol=1e-10,
    )


def test_draws_of_the_reference_have_the_moments_of_the_pool():
    mixtures, _ = a_world()
    reference = PooledReference(mixtures, OFFSET, cells_are_classes=True)
    labels = torch.tensor([NO_CLASS, 0, 1]).repeat_interleave(40_000)
    drawn = reference.sample(len(labels), generator(3), labels).double().split(40_000)
    for label, found in zip((None, 0, 1), drawn, strict=True):
        kept = [0, 1] if label is None else [label]
        mass = mixtures.weights[:, kept] / mixtures.weights[:, kept].sum()
        means = mixtures.means[:, kept] + OFFSET
        mean = (mass[..., None] * means).sum((0, 1))
        covariance = torch.zeros(D, D, dtype=torch.float64)
        for k in range(SITES):
            for column, j in enumerate(kept):
                axes, values = mixtures.axes[k, j], mixtures.variances[k, j]
                off = means[k, column] - mean
                covariance += mass[k, column] * (axes @ values.diag() @ axes.T + off.outer(off))
        torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.03)
        torch.testing.assert_close(found.T.cov(), covariance, rtol=0, atol=0.06)


def gap_to_exact(router, mixtures, exact, *, conditional):
    """Mean KL divergence of the exact posterior from the router's, over draws of the pool."""
    g, total, count = generator(11), 0.0, 0
    for site, share in enumerate(mixtures.weights.sum(1) / mixtures.weights.sum()):
        n = round(1500 * float(share))
        y, label = coefficients(mixtures, site, n, g)
        t = torch.rand(n, generator=g)
        y_t = (1 - t)[:, None] * y + t[:, None] * torch.randn((n, D), generator=g)
        x_t = (y_t.double() @ BASIS).float().reshape(n, *SHAPE)
        condition = ClassCondition(label) if conditional else None
        true = exact.log_posterior(x_t, t, condition)
        found = router.log_posterior(x_t, t, condition)
        total += float((true.exp() * (true - found)).sum())
        count += n
    return total / count


def trained_heads(mixtures, steps):
    reference = PooledReference(mixtures, OFFSET, cells_are_classes=True)
    heads = []
    for site in range(SITES):
        g = generator(20 + site)
        network = CoefficientNetwork(D, 1, CLASSES, width=48, depth=2)
        train_head(
            network,
            coefficients(mixtures, site, 4000, g),
            reference,
            steps=steps,
            batch_size=128,
            learning_rate=4e-3,
            generator=g,
            label_dropout=0.3,
        )
        heads.append(network)
    return HeadsRouter(heads, BASIS, PriorRouter(mixtures.weights))


def trained_classifier(mixtures, steps):
    g = generator(30)
    sets = [coefficients(mixtures, site, 4000, g) for site in range(SITES)]
    network = CoefficientNetwork(D, SITES, CLASSES, width=48, depth=2)
    train_classifier(
        network,
        sets,
        mixtures.weights.sum(1),
        steps=steps,
        batch_size=128,
        learning_rate=4e-3,
        generator=g,
        label_dropout=0.3,
    )
    return ClassifierRouter(network, BASIS, PriorRouter(mixtures.weights))


def a_transformer(classes=CLASSES, sites=SITES, **changed):
    return ImageTransformer(
        SHAPE, DitArchitecture(DitSize(2, 32, 2), patch=2, **changed), sites, classes
    )


def trained_transformer(mixtures, steps):
    """It reads whole images; what is not in P is equal at all sites, so the answer is the same."""
    g, sets = generator(30), []
    for site in range(SITES):
        y, label = coefficients(mixtures, site, 4000, g)
        sets.append(((y.double() @ BASIS).float().reshape(-1, *SHAPE), label))
    network = a_transformer()
    train_classifier(
        network,
        sets,
        mixtures.weights.sum(1),
        steps=steps,
        batch_size=128,
        learning_rate=4e-3,
        generator=g,
        label_dropout=0.3,
    )
    return ClassifierRouter(network, None, PriorRouter(mixtures.weights))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "steps"),
    [(trained_heads, 400), (trained_classifier, 400), (trained_transformer, 600)],
)
def test_learned_router_approaches_the_exact_posterior_as_training_grows(trained, steps):
    mixtures, exact = a_world()
    little, much = trained(mixtures, 30), trained(mixtures, steps)
    for conditional in (False, True):
        first = gap_to_exact(little, mixtures, exact, conditional=conditional)
        last = gap_to_exact(much, mixtures, exact, conditional=conditional)
        blind = gap_to_exact(
            PriorRouter(mixtures.weights), mixtures, exact, conditional=conditional
        )
        assert last < 0.5 * first
        assert last < 0.1 * blind


def test_untrained_network_prefers_no_site():
    network = CoefficientNetwork(D, SITES, 0, width=16, depth=1)
    network.reset_parameters(generator(0))
    router = ClassifierRouter(network, BASIS, PriorRouter(torch.ones(SITES, 1)))
    x_t, t = some_states(4)
    expected = torch.full((len(t), SITES), -math.log(SITES), dtype=torch.float64)
    torch.testing.assert_close(router.log_posterior(x_t, t, None), expected)


VARIANTS = [{}, {"modulation": "single", "qk_norm": True}, {"positions": "rope"}]


@pytest.mark.parametrize("variant", [*VARIANTS, {"positions": "learned"}])
def test_untrained_transformer_prefers_no_site(variant):
    network = a_transformer(**variant)
    network.reset_parameters(generator(0))
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())
    router = ClassifierRouter(network, None, PriorRouter(torch.ones(SITES, 1)))
    x_t, t = some_states(4)
    expected = torch.full((len(t), SITES), -math.log(SITES), dtype=torch.float64)
    torch.testing.assert_close(router.log_posterior(x_t, t, None), expected)


def stirred(network):
    """Any weights but zeros, which open every gate."""
    g = generator(6)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=g))
    return network


@pytest.mark.parametrize("variant", [*VARIANTS, {"positions": "learned"}])
def test_transformer_reads_place_class_and_time_of_every_image_alone(variant):
    network = stirred(a_transformer(**variant))
    x_t, t = some_states(7)
    asked = ClassCondition(torch.zeros(len(t), dtype=torch.long))
    scores = network(x_t, t, asked)
    assert scores.shape == (len(t), SITES)
    torch.testing.assert_close(network(x_t[3:4], t[3:4], asked.rows(slice(3, 4))), scores[3:4])
    turned = x_t.roll(2, dims=3)  # the same patches in other places
    for other in (
        network(turned, t, asked),
        network(x_t, (t + 0.3) % 1, asked),
        network(x_t, t, ClassCondition(torch.ones(len(t), dtype=torch.long))),
        network(x_t, t, None),
    ):
        assert (other - scores).abs().amax(1).min() > 1e-4
    withheld = ClassCondition(torch.full((len(t),), NO_CLASS))
    torch.testing.assert_close(network(x_t, t, withheld), network(x_t, t, None))


def test_heads_without_a_site_are_those_of_a_federation_it_never_joined():
    mixtures, _ = a_world()
    reference = PooledReference(mixtures, OFFSET, cells_are_classes=True)
    heads = []
    for site in range(SITES):
        network = CoefficientNetwork(D, 1, CLASSES, width=16, depth=1)
        own = coefficients(mixtures, site, 200, generator(site))
        options = {"steps": 5, "batch_size": 32, "learning_rate": 1e-3}
        train_head(network, own, reference, generator=generator(40 + site), **options)
        heads.append(network)
    x_t, t = some_states(5)
    everyone = HeadsRouter(heads, BASIS, PriorRouter(mixtures.weights))
    kept = HeadsRouter(heads[:2], BASIS, PriorRouter(mixtures.weights[:2]))
    ratios = everyone.log_ratios(x_t, t, None)
    assert torch.equal(kept.log_ratios(x_t, t, None), ratios[:, :2])
    expected = (PriorRouter(mixtures.weights[:2]).log_prior(None) + ratios[:, :2]).log_softmax(1)
    assert torch.equal(kept.log_posterior(x_t, t, None), expected)


def test_hybrid_asks_each_router_about_its_times_only():
    _, exact = a_world()

    class Spy:
        reads_state = True
        asked = ()

        def log_prior(self, condition):
            return exact.log_prior(condition)

        def log_posterior(self, x_t, t, condition):
            self.asked = (*self.asked, *t.tolist())
            return exact.log_posterior(x_t, t, condition)

    high, low = Spy(), Spy()
    router = HybridRouter(high, low, switch=0.6)
    x_t, t = some_states(6, count=20)
    labels = ClassCondition(torch.arange(20) % CLASSES)
    for rows in (slice(None), t >= 0.6, t < 0.6):
        found = router.log_posterior(x_t[rows], t[rows], labels.rows(rows))
        torch.testing.assert_close(
            found, exact.log_posterior(x_t[rows], t[rows], labels.rows(rows))
        )
    assert min(high.asked) >= 0.6
    assert max(low.asked) < 0.6
    assert torch.equal(router.log_prior(None), exact.log_prior(None))


def test_site_without_images_cannot_be_told_apart():
    network = CoefficientNetwork(D, 2, 0, width=16, depth=1)
    sets = [(torch.zeros(3, D), None), (torch.zeros(0, D), None)]
    with pytest.raises(ValueError, match="every site needs images"):
        train_classifier(
            network,
            sets,
            torch.ones(2),
            steps=1,
            batch_size=2,
            learning_rate=1e-3,
            generator=generator(0),
        )
