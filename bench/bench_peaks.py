"""3D maxima and suppression on the reference grid, beside scipy, scikit-image and max_pool3d on the same volume.

No time is reported for a contestant whose maxima are not exactly ours.
"""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from risfast.geometry import SearchGrid
from risfast.ops.peaks import local_maxima_3d, nms_3d
from risfast.ops.peaks_reference import local_maxima_3d_reference

WINDOW = (7, 7, 3)
PEAKS = 64
KEPT = 20
SEPARATION = (math.radians(5.0), math.radians(5.0), 1.0)


def reference_volume(seed=0):
    """A float32 volume [1, 361, 181, 7] that is as hilly as a Capon spectrum of the reference surface.

    A 12 x 12 aperture at half a wavelength cannot change faster than exp(+-j 11 pi u) along a direction cosine u: the
    ripple is a random sum of such waves, which turn in phase from one range plane to the next. Five lobes stand on it.
    """
    grid = SearchGrid.reference()
    azimuth, elevation, r = (axis.numpy() for axis in (grid.azimuth_rad, grid.elevation_rad, grid.range_m))
    u_x = np.sin(azimuth)[:, None] * np.cos(elevation)[None]
    u_y = np.broadcast_to(np.sin(elevation)[None], u_x.shape)
    generator = np.random.default_rng(seed)
    ripple = np.zeros(grid.shape)
    for _ in range(60):
        lag_x, lag_y = generator.integers(-11, 12, 2) * math.pi
        phase = generator.uniform(0, 2 * math.pi) + generator.uniform(-2, 2) / r
        ripple += np.cos((lag_x * u_x + lag_y * u_y)[..., None] + phase)
    volume = 1.0 + 0.05 * ripple / np.sqrt(60.0)
    for _ in range(5):
        az, el, inverse = generator.uniform(-0.9, 0.9), generator.uniform(-0.45, 0.45), generator.uniform(0.1, 1.8)
        angle = (azimuth[:, None, None] - az) ** 2 + (elevation[None, :, None] - el) ** 2
        volume += 20 * np.exp(-angle / 0.03**2 - ((1 / r - inverse) / 0.3) ** 2)
    return torch.from_numpy(volume.astype(np.float32))[None]


def _best_of(kept_mask, scene):
    """The best PEAKS points of a mask: index [k, 3] and value [k], by descending value."""
    flat = np.flatnonzero(kept_mask)
    value = scene.reshape(-1)[flat]
    order = np.argsort(-value, kind="stable")[:PEAKS]
    return np.stack(np.unravel_index(flat[order], scene.shape), -1), value[order]


def maxima_risfast(volume):
    found = local_maxima_3d(volume, window=WINDOW, k=PEAKS)
    return found.index[0].numpy(), found.value[0].numpy()


def maxima_scipy(volume):
    scene = volume[0].numpy()
    return _best_of(ndimage.maximum_filter(scene, size=WINDOW, mode="nearest") == scene, scene)


def maxima_skimage(volume):
    feature = pytest.importorskip("skimage.feature")
    scene = volume[0].numpy()
    index = feature.peak_local_max(
        scene, footprint=np.ones(WINDOW, bool), exclude_border=False, num_peaks=PEAKS, threshold_abs=-np.inf
    )
    return index, scene[tuple(index.T)]


def maxima_max_pool(volume):
    pooled = torch.nn.functional.max_pool3d(volume[:, None], WINDOW, stride=1, padding=[s // 2 for s in WINDOW])
    return _best_of((pooled[:, 0] == volume)[0].numpy(), volume[0].numpy())


CONTESTANTS = {
    "risfast": maxima_risfast,
    "scipy": maxima_scipy,
    "skimage": maxima_skimage,
    "max_pool3d": maxima_max_pool,
}


def suppress(points, index, value):
    """The suppression that every contestant is followed by; ``points`` is the grid, [G_az, G_el, G_r, 3]."""
    position = points[tuple(torch.from_numpy(index).T)]
    return nms_3d(position, torch.from_numpy(value), separation=SEPARATION, k=KEPT)


def report(benchmark, points, **more):
    """Points per second from the median of the run, and what identifies it."""
    benchmark.extra_info.update(more, threads=torch.get_num_threads(), points=points)
    if benchmark.stats is not None:
        benchmark.extra_info["points_per_second"] = points / benchmark.stats.stats.median


def assert_same_maxima(ours, theirs):
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.fixture(scope="module")
def volume():
    return reference_volume()


@pytest.fixture(scope="module")
def defined(volume):
    """The maxima by the definition, which every contestant has to find."""
    index, value, count = local_maxima_3d_reference(volume, WINDOW, PEAKS, None)
    assert int(count) == PEAKS
    return index[0].numpy(), value[0].numpy()


@pytest.mark.benchmark(group="3D maxima, 361 x 181 x 7")
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_maxima(benchmark, volume, defined, contestant):
    find = CONTESTANTS[contestant]
    assert_same_maxima(find(volume), defined)
    benchmark.pedantic(find, (volume,), rounds=30 if contestant != "max_pool3d" else 5, warmup_rounds=2)
    report(benchmark, volume.numel(), contestant=contestant)


@pytest.mark.benchmark(group="3D maxima and suppression, 361 x 181 x 7")
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_maxima_and_suppression(benchmark, volume, defined, contestant):
    find = CONTESTANTS[contestant]
    assert_same_maxima(find(volume), defined)
    points = SearchGrid.reference().points()
    rounds = 30 if contestant != "max_pool3d" else 5
    kept = benchmark.pedantic(lambda: suppress(points, *find(volume)), rounds=rounds, warmup_rounds=2)
    assert torch.equal(kept.index, suppress(points, *defined).index)
    report(benchmark, volume.numel(), contestant=contestant, kept=int(kept.count))


@pytest.mark.benchmark(group="3D maxima by memory layout and batch")
@pytest.mark.parametrize("layout", ["range fastest", "range slowest"])
@pytest.mark.parametrize("batch", [1, 32])
def test_maxima_of_layouts_and_batches(benchmark, volume, defined, layout, batch):
    volumes = volume.repeat(batch, 1, 1, 1)
    if layout == "range slowest":
        volumes = volumes.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    found = local_maxima_3d(volumes, window=WINDOW, k=PEAKS)
    assert_same_maxima((found.index[-1].numpy(), found.value[-1].numpy()), defined)
    benchmark.pedantic(
        local_maxima_3d, (volumes,), {"window": WINDOW, "k": PEAKS}, rounds=30 if batch == 1 else 5, warmup_rounds=2
    )
    report(benchmark, volumes.numel(), layout=layout, batch=batch)


@pytest.mark.benchmark(group="3D maxima of white noise, 361 x 181 x 7")
@pytest.mark.parametrize("contestant", ["risfast", "scipy"])
def test_maxima_of_noise(benchmark, contestant):
    noise = torch.rand(1, 361, 181, 7, generator=torch.Generator().manual_seed(0))
    find = CONTESTANTS[contestant]
    assert_same_maxima(find(noise), maxima_max_pool(noise))
    benchmark.pedantic(find, (noise,), rounds=10, warmup_rounds=1)
    report(benchmark, noise.numel(), contestant=contestant)


@pytest.mark.benchmark(group="suppression")
@pytest.mark.parametrize(("batch", "candidates"), [(1, 64), (1, 2000), (32, 64), (32, 2000)])
def test_suppression(benchmark, batch, candidates):
    generator = torch.Generator().manual_seed(0)
    position = torch.rand(batch, candidates, 3, generator=generator) * torch.tensor([2.1, 1.05, 9.5])
    score = torch.rand(batch, candidates, generator=generator)
    kept = benchmark.pedantic(
        nms_3d, (position, score), {"separation": SEPARATION, "k": KEPT}, rounds=20, warmup_rounds=2
    )
    assert int(kept.count.min()) == KEPT
    report(benchmark, batch * candidates, batch=batch, candidates=candidates)
