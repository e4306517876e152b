"""Lists of sources: taking some of them, putting them together, and what they say of themselves."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError, fields

import numpy as np
import oracles
import pytest
import torch

from risfast.errors import ShapeError
from risfast.sources import Source, Sources

NAMES = [field.name for field in fields(Sources)]


def some(count=5, seed=0):
    rng = np.random.default_rng(seed)
    values = [rng.uniform(-1.5, 1.5, count), rng.uniform(-1.5, 1.5, count), rng.uniform(0.5, 9, count)]
    values += [rng.uniform(0.1, 5, count), rng.uniform(0, 1, count), rng.uniform(1, 20, count)]
    return Sources(*(torch.tensor(v) for v in values), at_edge=torch.tensor(rng.random(count) > 0.5))


def same(sources, expected, index):
    """Whether every field of ``sources`` is that of ``expected`` at a numpy index."""
    for name in NAMES:
        np.testing.assert_array_equal(getattr(sources, name).numpy(), getattr(expected, name).numpy()[index])


@pytest.mark.parametrize("index", [0, 3, -1, np.int64(2), np.int32(-2), torch.tensor(1)])
def test_a_number_takes_one_source_in_plain_numbers(index):
    sources = some()
    one = sources[index]
    assert isinstance(one, Source)
    assert one._fields == tuple(NAMES)
    assert [type(v) for v in one] == [float] * 6 + [bool]
    assert list(one) == [getattr(sources, name).numpy()[int(index)] for name in NAMES]


@pytest.mark.parametrize("index", [5, -6, np.int64(99)])
def test_a_number_beyond_the_end_is_an_index_error(index):
    with pytest.raises(IndexError):
        some()[index]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(None), range(5)),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(9, None), []),
        ([4, 0], [4, 0]),
        ((1, -1), [1, 4]),
        ([], []),
        ([True, False, False, True, False], [0, 3]),
        (torch.tensor([2, 2]), [2, 2]),
        (torch.tensor([False] * 4 + [True]), [4]),
        (torch.zeros(5, dtype=torch.bool), []),
        (torch.zeros(0, dtype=torch.long), []),
        (np.array([3, 1]), [3, 1]),
        (np.array([False, True, True, False, False]), [1, 2]),
    ],
)
def test_slices_lists_and_masks_take_some(index, expected):
    sources = some()
    taken = sources[index]
    assert isinstance(taken, Sources)
    assert len(taken) == len(expected)
    same(taken, sources, np.array(list(expected), dtype=int))


def test_iterating_gives_one_after_the_other():
    sources = some()
    assert list(sources) == [sources[i] for i in range(5)]
    assert [s.range for s in sources] == sources.range.tolist()
    assert sorted(sources, key=lambda s: s.power)[0].power == float(sources.power.min())
    assert list(Sources.empty()) == []


def test_stacking_is_one_after_the_other():
    first, second = some(3, 1), some(2, 2)
    both = Sources.stack([first, Sources.empty(), second])
    assert len(both) == 5
    same(both[:3], first, np.arange(3))
    same(both[3:], second, np.arange(2))
    assert list(Sources.stack(list(map(lambda i: both[[i]], range(5))))) == list(both)
    assert len(Sources.stack([])) == 0
    assert len(Sources.stack([Sources.empty()])) == 0


def test_an_empty_list_is_false_and_has_its_shapes():
    none = Sources.empty()
    assert not none
    assert len(none) == 0
    assert none.position.shape == none.xyz_m.shape == (0, 3)
    assert none.at_edge.dtype == torch.bool
    assert {getattr(none, name).dtype for name in NAMES[:-1]} == {torch.float64}
    assert repr(none) == "Sources(0)"
    with pytest.raises(IndexError):
        none[0]


def test_replacing_leaves_the_rest_and_the_original():
    sources = some()
    before = sources.range.clone()
    changed = sources.replace(range=sources.range * 2)
    np.testing.assert_array_equal(changed.range, 2 * before.numpy())
    assert torch.equal(sources.range, before)
    for name in NAMES:
        assert name == "range" or getattr(changed, name) is getattr(sources, name)
    with pytest.raises(TypeError, match="distance"):
        sources.replace(distance=before)
    with pytest.raises(FrozenInstanceError):
        sources.range = before


def test_places_in_space_are_those_of_the_formula():
    sources = some(20)
    by_hand = oracles.direction(sources.azimuth, sources.elevation) * sources.range.numpy()[:, None]
    np.testing.assert_allclose(sources.xyz_m, by_hand, rtol=1e-12, atol=1e-12)
    for source, (x, y, z) in zip(sources, by_hand, strict=True):
        assert x == pytest.approx(source.range * math.sin(source.azimuth) * math.cos(source.elevation))
        assert y == pytest.approx(source.range * math.sin(source.elevation))
        assert z == pytest.approx(source.range * math.cos(source.azimuth) * math.cos(source.elevation))
    np.testing.assert_array_equal(sources.position[:, 2], sources.range)


def test_places_of_unknown_and_infinite_range():
    position = torch.tensor([[0.3, 0.2, math.nan], [0.3, -0.2, math.inf], [0.0, 0.0, 2.0]], dtype=torch.float64)
    unknown, far, near = Sources.at(position, torch.ones(3, dtype=torch.float64)).xyz_m
    assert unknown.isnan().all()
    assert far.tolist() == [math.inf, -math.inf, math.inf]
    assert near.tolist() == [0.0, 0.0, 2.0]


def test_what_is_not_given_is_not_known():
    sources = Sources.at(torch.tensor([[0.1, 0.2, 3.0]]), torch.tensor([2.0]))
    assert sources.confidence.isnan().all()
    assert sources.prominence_db.isnan().all()
    assert not sources.at_edge.any()
    assert Sources.at(torch.tensor([[0.1, 0.2, 3.0]]), torch.tensor([2.0]), torch.tensor([0.5])).confidence == 0.5


def test_the_text_says_what_is_known_and_nothing_else():
    position = torch.tensor([[math.radians(10), math.radians(-5), 2.5], [0.0, 0.0, math.nan]], dtype=torch.float64)
    plain = Sources.at(position, torch.tensor([100.0, 0.0], dtype=torch.float64))
    first, second = repr(plain).splitlines()[1:]
    assert first.strip() == "10.00 deg, -5.00 deg, 2.5 m, 20.0 dB"
    assert "range not determined" in second
    assert "nan" not in repr(plain)
    told = plain.replace(
        confidence=torch.tensor([0.75, math.nan]),
        prominence_db=torch.tensor([math.nan, 12.0]),
        at_edge=torch.tensor([False, True]),
    )
    first, second = repr(told).splitlines()[1:]
    assert first.endswith("confidence 0.75")
    assert second.endswith("prominence 12.0 dB, at the edge of the region")
    assert repr(told).startswith("Sources(2)\n")
    assert "inf m" in repr(plain.replace(range=torch.full((2,), math.inf)))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "azimuth"])
def test_a_field_of_another_length_is_named(name):
    with pytest.raises(ShapeError, match=rf"{name} must have shape \(5,\)"):
        some().replace(**{name: torch.zeros(4)})


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_fields_are_lists_of_numbers(shape):
    with pytest.raises(ShapeError, match="azimuth must have shape"):
        Sources(*[torch.zeros(shape)] * 5)


def test_they_survive_pickle():
    sources = some()
    assert list(pickle.loads(pickle.dumps(sources))) == list(sources)
