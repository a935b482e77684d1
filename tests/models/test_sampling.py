"""Random choices by image: torchvision's without seeds, the image's own with them."""

import pytest
import torch
from scenes import K, scene
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from detectors.models import TWO_STAGE, build_detector
from detectors.models.samplers import ImageDraws, ImageSampler, seed_images

LABELS = [  # two images with more of everything than is sampled, one of negatives, one of few
    torch.tensor([1.0] * 30 + [0.0] * 60 + [-1.0] * 10),
    torch.tensor([2, 0, -1] * 40),
    torch.zeros(50),
    torch.tensor([1, 1, 0, -1]),
]


def rows(masks):
    return [m.nonzero().flatten().tolist() for m in masks]


def seeded(seeds, labels, number=0):
    sampler = ImageSampler(16, 0.25)
    sampler.draws.seed(number, seeds)
    return list(zip(*map(rows, sampler(labels)), strict=True))


def test_without_seeds_it_is_torchvisions():
    """The same masks, and the global generator is left in the same state."""
    results = []
    for sampler in (BalancedPositiveNegativeSampler(16, 0.25), ImageSampler(16, 0.25)):
        torch.manual_seed(5)
        results.append([sampler(LABELS) for _ in range(3)] + [torch.get_rng_state()])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_an_images_draw_depends_on_its_seed_alone():
    state = torch.get_rng_state()
    whole = seeded([11, 12, 13, 14], LABELS)
    assert whole[:2] + whole[2:] == seeded([11, 12], LABELS[:2]) + seeded([13, 14], LABELS[2:])
    assert seeded([14, 13, 12, 11], LABELS[::-1]) == whole[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert [(len(p), len(n)) for p, n in whole] == [(4, 12), (4, 12), (0, 16), (2, 1)]
    assert seeded([21], LABELS[:1]) != whole[:1]
    assert seeded([11], LABELS[:1], number=1) != whole[:1]  # another sampler draws other rows
    assert seeded([11 + 2**32], LABELS[:1]) != whole[:1]  # all bits of the seed count


def test_every_row_is_drawn_as_often():
    """4 of 30 positives and 12 of 60 negatives, by 2000 seeds: within 5 standard deviations."""
    count = torch.zeros(100)
    for seed in range(2000):
        ((positive, negative),) = seeded([seed], LABELS[:1])
        count[positive + negative] += 1
    for part, chance in ((count[:30], 4 / 30), (count[30:90], 12 / 60)):
        spread = (2000 * chance * (1 - chance)) ** 0.5
        assert ((part - 2000 * chance).abs() < 5 * spread).all()
    assert (count[90:] == 0).all()


def test_seeds_serve_one_forward():
    sampler = ImageSampler(16, 0.25)
    sampler.draws.seed(0, [1, 2, 3, 4])
    first = sampler(LABELS)
    torch.manual_seed(9)
    second = sampler(LABELS)
    torch.manual_seed(9)
    assert rows(second[1]) == rows(BalancedPositiveNegativeSampler(16, 0.25)(LABELS)[1])
    assert rows(second[1]) != rows(first[1])


def test_seeds_that_do_not_fit_the_batch_are_named():
    sampler = ImageSampler(16, 0.25)
    sampler.draws.seed(0, [1, 2])
    with pytest.raises(ValueError, match="seeds of images: got 2, wanted 4, one an image"):
        sampler(LABELS)


@pytest.mark.parametrize(("name", "samplers"), [("faster_rcnn", 2), ("cascade_rcnn", 4)])
def test_a_detector_draws_nothing_from_elsewhere(name, samplers):
    """A training forward repeats with its seeds, leaves the global generator, and uses them up."""
    torch.manual_seed(0)
    model = build_detector(name, K, preset="slim", image_size=[64, 96]).train()
    assert name in TWO_STAGE
    assert sum(isinstance(m, ImageSampler) for m in model.modules()) == samplers
    assert sum(isinstance(m, ImageDraws) for m in model.modules()) == samplers + 1
    images, targets = scene([4, 2])

    def losses(seeds):
        if seeds is not None:
            seed_images(model, seeds)
        with torch.no_grad():
            return list(model(images, targets).values())

    state = torch.get_rng_state()
    first, again, other = losses([3, 4]), losses([3, 4]), losses([5, 6])
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again and first != other
    assert losses(None) != other
    assert not torch.equal(torch.get_rng_state(), state)


def test_evaluation_leaves_the_seeds_to_training():
    torch.manual_seed(0)
    model = build_detector("faster_rcnn", K, preset="slim", image_size=[64, 96])
    images, targets = scene([4])
    values = []
    for evaluated in (False, True):
        seed_images(model, [7])
        with torch.no_grad():
            if evaluated:
                model.eval()(images)
            values.append(list(model.train()(images, targets).values()))
    assert values[0] == values[1]


def test_an_images_size_is_its_own():
    """Of three sizes all are drawn, whatever the batch the image is in."""
    model = build_detector("retinanet", K, preset="slim", image_size=[48, 64, 96]).train()
    images, _ = scene([1] * 2)

    def sizes(seeds):
        seed_images(model, seeds)
        return [min(s) for s in model.transform(images[:1] * len(seeds))[0].image_sizes]

    seeds = list(range(30))
    together = sizes(seeds)
    assert together == [sizes([seed])[0] for seed in seeds]
    assert set(together) == {48, 64, 96}
    with pytest.raises(ValueError, match="seeds of images: got 1, wanted 2"):
        seed_images(model, [1])
        model.transform(images)
