"""FID and KID through torchmetrics are what their definitions give."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from fedkd.evaluation.classifier import ReferenceClassifier
from fedkd.evaluation.fidelity import ClassifierFeatures, FidelityError, fidelity


def pictures(seed: int, count: int, low: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(low, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def classifier() -> ReferenceClassifier:
    torch.manual_seed(0)
    model = ReferenceClassifier({"digit": ["one", "two"]}, width=8)
    model(torch.zeros(1, 3, 32, 32))
    return model.eval()


def test_fid_and_kid_equal_an_independent_computation(classifier: ReferenceClassifier) -> None:
    real, drawn = pictures(0, 60), pictures(1, 60, low=80)
    found = fidelity(real, drawn, classifier, 32)
    a, b = (classifier.features(images, 32).astype(np.float64) for images in (real, drawn))
    root = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    fid = mean + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    assert found["fid"] == pytest.approx(fid, rel=1e-3)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n = len(a)
    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1)) for x in (a, b))
    assert found["kid"] == pytest.approx(within - 2 * kernel(a, b).mean(), rel=1e-3)


def test_pictures_do_not_differ_from_themselves_and_batches_do_not_matter(classifier: ReferenceClassifier) -> None:
    same = pictures(2, 40)
    assert fidelity(same, same, classifier, 32)["fid"] == pytest.approx(0, abs=1e-3)
    other = pictures(3, 40, low=60)
    whole, split = (fidelity(same, other, classifier, 32, batch=size) for size in (64, 7))
    assert whole["fid"] == pytest.approx(split["fid"], rel=1e-4) and whole["kid"] == pytest.approx(
        split["kid"], rel=1e-4
    )


def test_the_random_state_of_others_is_left_alone(classifier: ReferenceClassifier) -> None:
    before = torch.random.get_rng_state()
    fidelity(pictures(0, 5), pictures(1, 4), classifier, 32)
    assert torch.equal(before, torch.random.get_rng_state())


def test_too_few_pictures_are_refused_by_count(classifier: ReferenceClassifier) -> None:
    with pytest.raises(FidelityError, match="1 real and 5 drawn"):
        fidelity(pictures(0, 1), pictures(1, 5), classifier, 32)


def test_the_features_are_those_before_the_heads(classifier: ReferenceClassifier) -> None:
    module = ClassifierFeatures(classifier)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, module.num_features)
