"""Evaluation measures against plain loops, closed forms, scipy, torchmetrics and simulation."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from ddm_fed.embedding.public_weights import import_torchvision
from ddm_fed.errors import DataError
from ddm_fed.evaluation import (
    classifier_features,
    epochs_for,
    frechet_distance,
    inception_features,
    kernel_distance,
    kernel_distance_of_subsets,
    measure_fidelity,
    measure_memorization,
    nearest,
    proportion,
    site_share_interval,
    train_classifier_on,
    two_sample_test,
    usefulness,
    weights_digest,
)
from ddm_fed.evaluation.inception import InceptionV3, enlarged

pytestmark = pytest.mark.slow


def rng(seed=0):
    return np.random.default_rng(seed)


def torch_rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def torchvision():
    """What both oracles import; PyPI's does not load beside a torch without CUDA by itself."""
    import_torchvision()


@pytest.fixture(scope="module")
def digits():
    bundled = load_digits()
    images = torch.from_numpy(bundled.images / 8 - 1).float()[:, None]
    return images, torch.from_numpy(bundled.target)


# intervals


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (3, 11), (500, 1000), (1, 1)])
def test_interval_ends_where_the_count_is_two_deviations_from_its_mean(hits, count):
    # what Wilson's interval is by definition: |hits - np| = z sqrt(np (1 - p))
    found = proportion(hits, count)
    for end in {found.low, found.high} - {0.0, 1.0}:
        deviation = np.sqrt(count * end * (1 - end))
        assert abs(hits - count * end) == pytest.approx(stats.norm.ppf(0.975) * deviation)
    assert 0 <= found.low < found.high <= 1
    assert found[:1] + found[3:] == (hits / count, hits, count)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (3, 2), (-1, 4)])
def test_proportion_of_impossible_counts_is_refused(hits, count):
    with pytest.raises(ValueError, match="must"):
        proportion(hits, count)


# distances


def test_nearest_over_several_blocks_is_that_of_all_differences():
    a, b = rng(0).normal(size=(300, 3)), rng(1).normal(size=(700, 3))
    found = nearest(a, b)
    far = np.linalg.norm(a[:, None] - b[None], axis=2)
    assert (found.row == far.argmin(1)).all()
    assert found.distance == pytest.approx(far.min(1), rel=1e-9)


def test_nearest_tells_near_copies_apart_that_float32_would_not():
    b = (rng(0).normal(size=(50, 768)) + 300).astype(np.float32)  # squares of 7e7
    a = b + np.float32(1e-3) * rng(1).normal(size=b.shape).astype(np.float32)
    found = nearest(a, b)
    expected = np.linalg.norm(a.astype(np.float64) - b.astype(np.float64), axis=1)
    assert (found.row == np.arange(50)).all()
    assert found.distance == pytest.approx(expected, rel=1e-3)


def test_nearest_of_bytes_does_not_overflow():
    a, b = np.array([[0, 255]], np.uint8), np.array([[255, 0], [3, 251]], np.uint8)
    assert nearest(a, b).distance == pytest.approx([5.0])


# fidelity


def test_frechet_distance_of_diagonal_gaussians_has_its_closed_form():
    # columns whose sample moments are exact: whitened, then scaled and shifted
    x = rng(2).normal(size=(500, 4))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    mean_a, mean_b = np.arange(4.0), np.array([2.0, 0, -1, 5])
    std_a, std_b = np.array([1.0, 2, 0.5, 0]), np.array([3.0, 1, 0.5, 2])
    expected = np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum()
    assert frechet_distance(x * std_a + mean_a, x * std_b + mean_b) == pytest.approx(expected)


def test_kernel_distance_of_subsets_is_the_mean_of_plain_subsets():
    real, drawn = rng(3).normal(size=(40, 3)), rng(4).normal(size=(30, 3)) + 0.5
    found = kernel_distance_of_subsets(real, drawn, generator=rng(5), subsets=400)
    assert (found.subset_size, found.subsets) == (15, 400)
    # means of unbiased estimates: all images give the same up to the subsets' own deviation
    tolerance = 5 * found.deviation / np.sqrt(400)
    assert found.mean == pytest.approx(kernel_distance(real, drawn), abs=tolerance)
    assert found.deviation > 0


def test_fidelity_states_the_counts_it_was_measured_with():
    found = measure_fidelity(
        rng(0).normal(size=(50, 3)), rng(1).normal(size=(40, 3)), generator=rng()
    )
    assert (found.real, found.drawn, found.features, found.neighbours) == (50, 40, 3, 5)


@pytest.mark.filterwarnings("ignore:Metric .* will save all:UserWarning")  # by torchmetrics
def test_distances_of_kernel_and_frechet_are_those_of_torchmetrics(torchvision):
    from torchmetrics.image import fid, kid

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1).double()

    real, drawn = (
        (torch.rand(300, 3, 2, 2, generator=torch_rng(n)) ** (n + 1) * 255).byte() for n in (0, 1)
    )
    frechet = fid.FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    kernel = kid.KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=300)
    for metric in (frechet, kernel):
        metric.update(real, real=True)
        metric.update(drawn, real=False)
    own = [images.flatten(1).numpy() for images in (real, drawn)]
    assert float(frechet.compute()) == pytest.approx(frechet_distance(*own), rel=1e-6)
    assert float(kernel.compute()[0]) == pytest.approx(kernel_distance(*own), rel=1e-6)


# features


def test_classifier_features_of_other_weights_have_another_digest(digits):
    images, labels = digits
    trained = [
        train_classifier_on(images[:40], labels[:40], 10, epochs=1, generator=torch_rng(seed))
        for seed in (0, 0, 1)
    ]
    first, same, other = (classifier_features(each) for each in trained)
    found = first(images[:7])
    assert (found.shape, found.dtype) == ((7, first.width), np.float32)
    assert first.sha256 == same.sha256 != other.sha256


def test_digest_of_weights_sees_names_shapes_and_values():
    weights = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    others = [
        weights,
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"].reshape(2, 3), "b": weights["b"]},
        {"a": weights["a"] + 1, "b": weights["b"]},
    ]
    assert weights_digest(dict(reversed(weights.items()))) == weights_digest(weights)
    assert len({weights_digest(each) for each in others}) == 4


def test_enlarged_images_are_those_of_a_plain_loop():
    image = torch.rand(1, 1, 3, 4, generator=torch_rng())[0, 0].double()
    expected = torch.zeros(7, 7, dtype=torch.float64)
    for i in range(7):
        for j in range(7):
            y, x = i * 3 / 7, j * 4 / 7
            top, left = int(y), int(x)
            below, right = min(top + 1, 2), min(left + 1, 3)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[below, left] * (1 - x + left) + image[below, right] * (x - left)
            expected[i, j] = upper * (1 - y + top) + lower * (y - top)
    assert torch.allclose(enlarged(image[None, None], 7)[0, 0], expected, atol=1e-12)


@pytest.fixture(scope="module")
def random_inception():
    """An Inception-v3 of random weights that neither vanish nor explode."""
    with torch.device("meta"):
        network = InceptionV3()
    network, generator = network.to_empty(device="cpu"), torch_rng(3)
    for name, value in network.state_dict().items():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("num_batches_tracked"):
            value.zero_()
        elif name.endswith("running_var") or value.ndim == 1:
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.normal_(0, 0.02, generator=generator)
    return network.eval()


def test_inception_of_random_weights_is_loaded_and_gives_features(random_inception, tmp_path):
    from safetensors.torch import save_file

    weights = {
        name: value
        for name, value in random_inception.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(weights, tmp_path / "inception.safetensors")
    extractor = inception_features(tmp_path / "inception.safetensors")
    grey = torch.rand(2, 1, 8, 8, generator=torch_rng()) * 2 - 1
    found = extractor(grey)
    assert (found.shape, extractor.width, extractor.name) == ((2, 2048), 2048, "inception")
    assert extractor.sha256 == weights_digest(weights)
    colour = ((grey + 1) * 127.5).round().expand(-1, 3, -1, -1)
    with torch.no_grad():
        assert np.allclose(found, random_inception(colour).numpy(), rtol=1e-4, atol=1e-5)
    assert found.std(0).max() > 0.01  # they tell images apart

    save_file(weights | {"fc.bias": torch.zeros(1000)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"for example fc\.bias"):
        inception_features(tmp_path / "other.safetensors")


def test_inception_is_that_of_torch_fidelity(random_inception, torchvision, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    state = random_inception.state_dict()
    monkeypatch.setattr(module.torch, "load", lambda path, weights_only: state)
    other = module.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="x")
    images = torch.randint(0, 256, (2, 3, 20, 28), generator=torch_rng(), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = other(images)[0], random_inception(images.float())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_inception_without_its_weights_says_where_to_get_them(tmp_path):
    with pytest.raises(DataError, match="missing") as caught:
        inception_features(tmp_path / "none.safetensors")
    assert "nothing is downloaded" in caught.value.hint


def test_inception_of_a_pickle_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(DataError, match="not a safetensors file"):
        inception_features(tmp_path / "weights.pth")


# train on synthetic, test on real


def test_usefulness_of_labels_at_random_is_chance_and_of_real_ones_is_not(digits):
    images, labels = digits
    options = {"classes": 10, "steps": 60}
    test = (images[1400:], labels[1400:])
    real = usefulness(images[:1000], labels[:1000], *test, generator=torch_rng(), **options)
    shuffled = labels[:1000][torch.randperm(1000, generator=torch_rng(1))]
    chance = usefulness(images[:1000], shuffled, *test, generator=torch_rng(), **options)
    assert real.accuracy.low > 0.7
    assert chance.accuracy.high < 0.3
    assert (real.trained_on, real.accuracy.total) == (1000, 397)


def test_usefulness_does_not_select_on_the_test_images(digits):
    images, labels = digits
    options = {"classes": 10, "steps": 40}
    train = (images[:300], labels[:300])
    one = usefulness(*train, images[400:500], labels[400:500], generator=torch_rng(), **options)
    two = usefulness(*train, images[400:900], labels[400:900], generator=torch_rng(), **options)
    right = usefulness(*train, images[500:900], labels[500:900], generator=torch_rng(), **options)
    assert one.held_out_accuracy == two.held_out_accuracy
    assert two.accuracy.hits == one.accuracy.hits + right.accuracy.hits


def test_epochs_make_about_the_steps_asked_for():
    assert [epochs_for(n, steps=2000) for n in (128, 1280, 24_000, 10**7)] == [200, 200, 11, 1]


# memorization


def test_copies_of_training_images_are_found_and_fresh_images_are_not():
    pixels = rng(6).normal(size=(900, 30))  # in so many dimensions nothing is near by chance
    trained, controls, fresh = pixels[:400], pixels[400:600], pixels[600:]
    copies = fresh.copy()
    copies[:120] = trained[:120] + 1e-3 * rng(7).normal(size=(120, 30))
    found = measure_memorization(copies, trained, controls, generator=rng(8))
    assert found.near_copies.hits == 120
    assert found.closer.low > 0.5
    assert (found.compared, found.trained, found.controls) == (200, 400, 200)
    none = measure_memorization(fresh, trained, controls, generator=rng(8))
    assert none.near_copies.hits == none.near_controls.hits == 0
    assert none.closer.low < 0.5 < none.closer.high


def test_near_copies_of_many_training_images_have_a_chance_of_as_many():
    # nine times as many training images as controls, and samples that know of neither
    copies, chance, controls = [], [], []
    for seed in range(40):
        pixels = rng(seed).normal(size=(1050, 2))
        found = measure_memorization(pixels[:50], pixels[50:950], pixels[950:], generator=rng(seed))
        copies.append(found.near_copies.value)
        controls.append(found.near_controls.value)
        chance.append(found.near_by_chance)
        assert found.near_by_chance == min(1.0, 9 * found.near_controls.value)
    # what looked like copying beside the chance of as many images as there are controls
    assert np.mean(copies) > 3 * np.mean(controls)
    assert np.mean(copies) <= np.mean(chance)


def test_memorization_is_that_of_plain_loops():
    samples, trained, controls = (rng(n).normal(size=(25, 2)) for n in (1, 2, 3))
    ratio = np.array(
        [
            min(np.linalg.norm(s - t) for t in trained)
            / min(np.linalg.norm(s - c) for c in controls)
            for s in samples
        ]
    )
    found = measure_memorization(samples, trained, controls, generator=rng())
    assert found.closer.hits == (ratio < 1).sum()
    assert found.near_copies.hits == (ratio < 1 / 3).sum()
    assert found.near_controls.hits == (1 / ratio < 1 / 3).sum()
    assert found.median_ratio == pytest.approx(np.median(ratio))


def test_memorization_with_unequal_sets_still_expects_a_half():
    hits = 0
    for seed in range(40):
        pixels = rng(seed).normal(size=(1050, 3))
        found = measure_memorization(pixels[:50], pixels[50:950], pixels[950:], generator=rng(seed))
        hits += found.closer.hits
    low, high = proportion(hits, 2000, level=1 - 2 * stats.norm.sf(5))[1:3]
    assert low < 0.5 < high


def test_memorization_of_images_in_both_sets_is_a_tie():
    same = rng(0).integers(0, 256, size=(30, 5)).astype(np.uint8)
    found = measure_memorization(same, same, same, generator=rng())
    assert (found.closer.value, found.near_copies.hits, found.median_ratio) == (0.5, 0, 1.0)


def test_memorization_without_images_is_refused():
    with pytest.raises(ValueError, match="control"):
        measure_memorization(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((0, 2)), generator=rng())


# classifier two-sample test


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_two_sample_test_tells_shifted_features_and_not_equal_ones(kind):
    real, same = rng(0).normal(size=(300, 4)), rng(1).normal(size=(200, 4))
    found = two_sample_test(real, same, generator=rng(2), kind=kind)
    assert found.accuracy.low < 0.5 < found.accuracy.high
    assert found.p_value > 0.01
    assert (found.per_side, found.accuracy.total, found.folds) == (200, 400, 5)
    other = two_sample_test(real, same + 1, generator=rng(2), kind=kind)
    assert other.accuracy.low > 0.7
    assert other.p_value < 1e-9


def test_two_sample_test_of_features_of_other_spread_takes_the_network():
    real, wide = rng(0).normal(size=(400, 2)), 4 * rng(1).normal(size=(400, 2))
    assert two_sample_test(real, wide, generator=rng(2), kind="mlp").accuracy.low > 0.7


def test_two_sample_accuracy_is_near_the_best_possible_one():
    # two Gaussians a distance d apart: the best rule is right with probability Phi(d / 2)
    real, drawn = rng(3).normal(size=(2000, 3)), rng(4).normal(size=(2000, 3))
    drawn[:, 0] += 1.5
    found = two_sample_test(real, drawn, generator=rng(5)).accuracy
    assert found.low < stats.norm.cdf(0.75) < found.high


def test_two_sample_test_of_equal_distributions_keeps_its_level():
    held = 0
    for seed in range(60):
        real, same = rng(seed).normal(size=(2, 60, 8))
        found = two_sample_test(real, same, generator=rng(seed))
        held += found.accuracy.low < 0.5 < found.accuracy.high
    assert held >= 55  # 95 % or more; without the correction for shared images about 85 %


def test_two_sample_test_of_a_handful_is_refused():
    with pytest.raises(ValueError, match="5 folds take 10 images"):
        two_sample_test(np.zeros((9, 2)), np.zeros((20, 2)), generator=rng())


# shares


def test_share_interval_of_right_shares_holds_zero_and_of_wrong_ones_does_not():
    right = site_share_interval([0.5, 0.3, 0.2], [510, 288, 202], generator=rng())
    assert right.low == 0
    assert right.error < right.chance_high < right.high
    assert right.p_value > 0.3
    wrong = site_share_interval([0.5, 0.3, 0.2], [700, 200, 100], generator=rng())
    assert wrong.low > 0.15
    assert wrong.high < 0.25
    assert wrong.p_value == pytest.approx(1 / 10_001)
    assert (wrong.samples, wrong.draws) == (1000, 10_000)


def test_share_interval_holds_the_real_distance_at_its_level():
    intended, real = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.45, 0.3, 0.17, 0.08])
    distance = 0.5 * np.abs(intended - real).sum()
    held = 0
    for counts in rng(1).multinomial(400, real, size=300):
        found = site_share_interval(intended, counts.tolist(), generator=rng(2), draws=400)
        held += found.low <= distance <= found.high
    assert proportion(held, 300, level=1 - 2 * stats.norm.sf(4)).high > 0.95


def test_share_p_value_is_the_exact_binomials():
    found = site_share_interval([0.5, 0.5], [60, 40], generator=rng(), draws=200_000)
    exact = stats.binomtest(60, 100, 0.5).pvalue
    assert found.p_value == pytest.approx(exact, rel=0.05)
