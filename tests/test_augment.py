"""The augmentation as a whole: what is drawn against the table, and to whom it happens."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.experiments.augment import NNUNET, AugmentationTable, Draws, apply, draw

NEVER = AugmentationTable(
    **{
        f.name: 0.0
        for f in dataclasses.fields(AugmentationTable)
        if f.name.endswith("_probability")
    }
)
TRANSFORMS = [
    "rotation",
    "scaling",
    "noise",
    "blur",
    "brightness",
    "contrast",
    "low_resolution",
    "inverted_gamma",
    "gamma",
    "mirror",
]
INTENSITIES = TRANSFORMS[2:-1]


def always(*names):
    """A policy in which these transforms happen to every image, and to every channel."""
    wanted = [f"{name}_probability" for name in names]
    wanted += [
        f"{name}_channel_probability" for name in names if name in ("blur", "low_resolution")
    ]
    return dataclasses.replace(NEVER, **dict.fromkeys(wanted, 1.0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def heads(images=6, channels=3, size=24, seed=0, dtype=torch.float32):
    """Discs of tissue on a background of exact zeros, with labels inside."""
    axis = torch.arange(size) - (size - 1) / 2
    disc = axis[:, None] ** 2 + axis[None] ** 2 < (0.4 * size) ** 2
    tissue = 0.2 + torch.rand(images, channels, size, size, generator=seeded(seed), dtype=dtype)
    labels = torch.randint(4, (images, size, size), generator=seeded(seed))
    return tissue * disc, labels * disc


@pytest.fixture(scope="module")
def many() -> Draws:
    return draw(NNUNET, 20_000, 4, seeded(1))


def test_the_numbers_are_those_of_the_table():
    assert dataclasses.asdict(NNUNET) == {
        "rotation_probability": 0.2,
        "rotation_deg": (-180, 180),
        "scaling_probability": 0.2,
        "scale": (0.7, 1.4),
        "noise_probability": 0.1,
        "noise_sigma": (0, 0.1),
        "blur_probability": 0.2,
        "blur_channel_probability": 0.5,
        "blur_sigma_px": (0.5, 1),
        "brightness_probability": 0.15,
        "brightness": (0.75, 1.25),
        "contrast_probability": 0.15,
        "contrast": (0.75, 1.25),
        "low_resolution_probability": 0.25,
        "low_resolution_channel_probability": 0.5,
        "low_resolution": (0.5, 1),
        "inverted_gamma_probability": 0.1,
        "gamma_probability": 0.3,
        "gamma": (0.7, 1.5),
        "mirror_probability": 0.5,
    }


def assert_share(happens, probability):
    """The share is within four standard errors of the probability."""
    error = math.sqrt(probability * (1 - probability) / happens.numel())
    assert happens.double().mean().item() == pytest.approx(probability, abs=4 * error)


def assert_uniform(values, low, high):
    assert low <= values.min() < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < values.max() <= high
    for quarter in (0.25, 0.5, 0.75):
        assert_share(values < low + quarter * (high - low), quarter)


def assert_around_one(values, low, high):
    assert_share(values < 1, 0.5)
    assert_uniform(values[values < 1], low, 1)
    assert_uniform(values[values > 1], 1, high)


def test_spatial_draws(many):
    rotated, scaled = many.drawn("rotation_rad_N"), many.drawn("scale_N")
    assert_share(rotated, 0.2)
    assert_share(scaled, 0.2)
    assert_share(rotated & scaled, 0.04)
    assert_uniform(many.rotation_rad_N[rotated], -math.pi, math.pi)
    assert_uniform(many.scale_N[scaled], 0.7, 1.4)
    assert_share(many.mirror_N2[:, 0], 0.5)
    assert_share(many.mirror_N2[:, 1], 0.5)
    assert_share(many.mirror_N2.all(dim=1), 0.25)


def test_noise_draws(many):
    noisy = many.drawn("noise_sigma_N")
    assert_share(noisy, 0.1)
    assert_uniform(many.noise_sigma_N[noisy], 0, 0.1)
    seeds = many.noise_seed_N[noisy]
    assert seeds.dtype == torch.int64
    assert len(seeds.unique()) == len(seeds)
    assert (many.noise_seed_N[~noisy] == 0).all()


def test_blur_draws(many):
    blurred = many.drawn("blur_sigma_px_NC2")
    assert torch.equal(blurred[..., 0], blurred[..., 1])
    # Of the images with a blur drawn, 1 in 16 has no channel drawn.
    assert_share(blurred[..., 0].any(dim=1), 0.2 * 15 / 16)
    assert_share(blurred[:, 0, 0], 0.2 * 0.5)
    assert_uniform(many.blur_sigma_px_NC2[blurred], 0.5, 1)
    differ = many.blur_sigma_px_NC2[..., 0] != many.blur_sigma_px_NC2[..., 1]
    assert (differ == blurred[..., 0]).float().mean() > 0.999


@pytest.mark.parametrize(
    ("name", "probability", "bounds"),
    [
        ("brightness_NC", 0.15, (0.75, 1.25)),
        ("contrast_NC", 0.15, (0.75, 1.25)),
        ("inverted_gamma_NC", 0.1, (0.7, 1.5)),
        ("gamma_NC", 0.3, (0.7, 1.5)),
    ],
)
def test_draws_around_one_differ_between_channels(many, name, probability, bounds):
    drawn, values = many.drawn(name), getattr(many, name)
    assert_share(drawn.any(dim=1), probability)
    assert (drawn.all(dim=1) == drawn.any(dim=1)).float().mean() > 0.999
    assert_around_one(values[drawn], *bounds)
    assert (values[:, 0] != values[:, 1])[drawn.any(dim=1)].float().mean() > 0.999


def test_low_resolution_draws(many):
    lowered = many.drawn("low_resolution_NC")
    assert_share(lowered.any(dim=1), 0.25 * 15 / 16)
    assert_share(lowered[:, 0], 0.25 * 0.5)
    assert_uniform(many.low_resolution_NC[lowered], 0.5, 1)


def test_the_transforms_are_drawn_independently(many):
    happens = []
    for field in dataclasses.fields(Draws):
        if field.name not in ("noise_seed_N", "mirror_N2"):
            happens.append(many.drawn(field.name).view(len(many), -1).any(dim=1).float())
    correlation = torch.corrcoef(torch.stack([*happens, *many.mirror_N2.T.float()]))
    assert (correlation - torch.eye(len(correlation))).abs().max() < 4 / math.sqrt(len(many))


def test_same_generator_same_draws_and_no_other_randomness():
    before = torch.get_rng_state()
    images, labels = heads()
    results = [apply(images, labels, draw(NNUNET, 6, 3, seeded(5))) for _ in range(2)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(torch.get_rng_state(), before)
    draws = [draw(NNUNET, 6, 3, seeded(seed)).rotation_rad_N for seed in range(9)]
    assert len({tuple(angles.tolist()) for angles in draws}) > 1


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    names=st.sets(st.sampled_from(TRANSFORMS), min_size=1),
    channels=st.integers(1, 4),
)
def test_an_image_alone_becomes_what_it_becomes_in_its_batch(seed, names, channels):
    half = {f"{name}_probability": 0.5 for name in names}
    draws = draw(dataclasses.replace(always(*names), **half), 5, channels, seeded(seed))
    images, labels = heads(5, channels, seed=seed)
    together, labels_together = apply(images, labels, draws)
    for a, b in [(i, i + 1) for i in range(5)] + [(1, 4)]:
        alone, labels_alone = apply(images[a:b], labels[a:b], draws[a:b])
        torch.testing.assert_close(alone, together[a:b], rtol=1e-5, atol=1e-6)
        assert torch.equal(labels_alone, labels_together[a:b])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_what_was_not_drawn_leaves_the_bits_alone(seed):
    images, labels = heads(8, seed=seed)
    images[0, 0, 0, 0] = 1e-6  # below the foreground's threshold, and not to be cleared for nothing
    draws = draw(NNUNET, 8, 3, seeded(seed))
    kept = images.clone(), labels.clone()
    changed, changed_labels = apply(images, labels, draws)
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    for i in range(8):
        told = set(draws.describe(i))
        assert torch.equal(changed[i], images[i]) == (told == set())
        if told.isdisjoint({"rotation_rad", "scale", "mirror"}):
            assert torch.equal(changed_labels[i], labels[i])
        if told and told <= {"blur_sigma_px", "low_resolution"} and i > 0:
            untouched = [
                c
                for c in range(3)
                if not draws.drawn("blur_sigma_px_NC2")[i, c].any()
                and not draws.drawn("low_resolution_NC")[i, c]
            ]
            assert torch.equal(changed[i, untouched], images[i, untouched])


@pytest.mark.parametrize("name", INTENSITIES)
def test_intensities_change_inside_the_head_and_never_the_labels(name):
    images, labels = heads()
    changed, changed_labels = apply(images, labels, draw(always(name), 6, 3, seeded()))
    outside = images.sum(dim=1, keepdim=True).expand_as(images) == 0
    assert (changed[outside] == 0).all()
    for before, after in zip(images.flatten(0, 1), changed.flatten(0, 1), strict=True):
        assert not torch.equal(before, after)
    assert torch.equal(changed_labels, labels)


@pytest.mark.parametrize("name", ["rotation", "scaling"])
def test_labels_move_with_the_image(name):
    # Where an image shows its own labels, the changed image shows the changed labels.
    labels = torch.zeros(20, 24, 24, dtype=torch.long)
    labels[:, 6:16, 9:20] = 1
    images = labels.unsqueeze(1).float()
    changed, changed_labels = apply(images, labels, draw(always(name), 20, 1, seeded()))
    assert ((changed[:, 0] > 0.5) == (changed_labels == 1)).float().mean() > 0.99
    assert not torch.equal(changed_labels, labels)


def test_mirror_reverses_images_and_labels_as_drawn():
    images, labels = heads(12)
    draws = draw(NNUNET, 12, 3, seeded(3))
    draws = dataclasses.replace(draw(NEVER, 12, 3, seeded()), mirror_N2=draws.mirror_N2)
    changed, changed_labels = apply(images, labels, draws)
    for i, (rows, columns) in enumerate(draws.mirror_N2.tolist()):
        axes = [axis for axis, happens in ((-2, rows), (-1, columns)) if happens]
        assert torch.equal(changed[i], images[i].flip(axes))
        assert torch.equal(changed_labels[i], labels[i].flip(axes))


def test_the_order_is_that_of_the_table():
    # Tissue everywhere: then one transform after the other gives what all give at once.
    images, labels = 1 + torch.rand(2, 3, 16, 16, generator=seeded()), torch.zeros(2, 16, 16)
    draws = draw(always(*INTENSITIES, "mirror"), 2, 3, seeded())
    together, _ = apply(images, labels, draws)
    in_turn = images
    for name in [*INTENSITIES, "mirror"]:
        fields = [f.name for f in dataclasses.fields(Draws) if f.name.startswith(f"{name}_")]
        step = {field: getattr(draws, field) for field in fields}
        alone = dataclasses.replace(draw(NEVER, 2, 3, seeded()), **step)
        in_turn, _ = apply(in_turn, labels, alone)
    assert torch.equal(together, in_turn)


def test_the_head_is_moved_before_its_intensities_are_changed():
    images, labels = heads(20)
    spatial = draw(always("rotation", "scaling"), 20, 3, seeded())
    noisy = draw(always("noise"), 20, 3, seeded())
    moved, _ = apply(images, labels, spatial)
    both = dataclasses.replace(
        spatial, noise_sigma_N=noisy.noise_sigma_N, noise_seed_N=noisy.noise_seed_N
    )
    assert torch.equal(apply(images, labels, both)[0], apply(moved, labels, noisy)[0])


def test_describe_tells_what_was_drawn():
    draws = draw(always("rotation", "noise", "blur", "gamma"), 3, 2, seeded())
    told = draws.describe(1)
    assert set(told) == {"rotation_rad", "noise_sigma", "noise_seed", "blur_sigma_px", "gamma"}
    assert told["rotation_rad"] == draws.rotation_rad_N[1].item()
    assert told["gamma"] == draws.gamma_NC[1].tolist()
    assert torch.tensor(told["blur_sigma_px"]).shape == (2, 2)
    assert draws[1:2].describe(0) == told
    assert draw(NEVER, 3, 2, seeded()).describe(0) == {}


def test_follows_dtypes_and_layout():
    images, labels = heads(dtype=torch.float64)
    images = images.to(memory_format=torch.channels_last)
    draws = draw(always(*TRANSFORMS), 6, 3, seeded())
    changed, changed_labels = apply(images, labels.int(), draws)
    assert changed.dtype == torch.float64
    assert changed_labels.dtype == torch.int32
    plain, _ = apply(images.contiguous(), labels, draws)
    torch.testing.assert_close(changed, plain)


def test_autocast_does_not_coarsen_it():
    images, labels = heads()
    draws = draw(always(*TRANSFORMS), 6, 3, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        changed, _ = apply(images, labels, draws)
    assert torch.equal(changed, apply(images, labels, draws)[0])
