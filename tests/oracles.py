"""Brute force in float64 numpy, written from the formulas: what every operator is held to.

Nothing here imports risfast or torch. Positions are [N, 3] metres, angles are radians, points are [..., 3] in the order
azimuth, elevation, range; A stands for steering vectors [..., N], one row a grid point. Matrices carry a batch axis.
"""

from __future__ import annotations

import cmath
import math

import numpy as np

WAVEFRONTS = ("spherical", "fresnel", "planar")
REFERENCE_RANGES_M = (0.55, 0.85, 1.3, 2.0, 3.5, 6.0, 9.5)


def direction(azimuth, elevation):
    """u = (sin az cos el, sin el, cos az cos el), shape (..., 3)."""
    azimuth, elevation = np.broadcast_arrays(np.asarray(azimuth, float), np.asarray(elevation, float))
    return np.stack(
        [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)], axis=-1
    )


def box(azimuth, elevation, range_m):
    """Every point of a box grid, shape (G_az, G_el, G_r, 3)."""
    axes = (np.asarray(axis, float) for axis in (azimuth, elevation, range_m))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def phase(positions, wavelength, points, wavefront="spherical"):
    """k (r - d_n) of each element at each point, shape (..., N), radians."""
    positions, points = np.asarray(positions, float), np.asarray(points, float)
    k = 2 * math.pi / wavelength
    u = direction(points[..., 0], points[..., 1])
    r = points[..., 2]
    projection = np.einsum("...c,nc->...n", u, positions)
    if wavefront == "planar":
        return k * projection
    if wavefront == "fresnel":
        return k * (projection - np.sum(positions**2, axis=-1) / (2 * r[..., None]))
    if wavefront != "spherical":
        raise ValueError(wavefront)
    far = np.isinf(r)
    r = np.where(far, 1.0, r)
    source = r[..., None] * u  # [..., 3] metres
    distance = np.sqrt(np.sum((source[..., None, :] - positions) ** 2, axis=-1))
    return k * np.where(far[..., None], projection, r[..., None] - distance)


def steering(positions, wavelength, points, wavefront="spherical"):
    """a_n = exp(j k (r - d_n)), shape (..., N), complex128."""
    return np.exp(1j * phase(positions, wavelength, points, wavefront))


def steering_by_loop(positions, wavelength, azimuth, elevation, r, wavefront="spherical"):
    """The same for one point with Python's own arithmetic: the check on the vectorised oracle."""
    k = 2 * math.pi / wavelength
    ux = math.sin(azimuth) * math.cos(elevation)
    uy = math.sin(elevation)
    uz = math.cos(azimuth) * math.cos(elevation)
    result = []
    for x, y, z in np.asarray(positions, float).tolist():
        projection = ux * x + uy * y + uz * z
        if wavefront == "planar":
            path = projection
        elif wavefront == "fresnel":
            path = projection - (x * x + y * y + z * z) / (2 * r)
        else:
            path = r - math.dist((r * ux, r * uy, r * uz), (x, y, z))
        result.append(cmath.exp(1j * k * path))
    return np.array(result)


def quadratic_by_loop(a, Q):
    """a^H Q a as two Python loops over one steering vector."""
    total = 0j
    for n in range(len(a)):
        for m in range(len(a)):
            total += a[n].conjugate() * Q[n, m] * a[m]
    return total


def loaded(R, loading):
    """R + delta I with delta = loading * trace(R) / N, for R [B, N, N]."""
    R = np.asarray(R, np.complex128)
    n = R.shape[-1]
    delta = loading * np.trace(R, axis1=-2, axis2=-1).real / n
    return R + delta[:, None, None] * np.eye(n)


def capon(R, A, loading=1e-2):
    """N / (a^H (R + delta I)^-1 a), shape (B, ...) for A (..., N)."""
    n = A.shape[-1]
    a = A.reshape(-1, n)
    volumes = []
    for matrix in loaded(R, loading):
        solved = np.linalg.solve(matrix, a.T).T  # (R + delta I)^-1 a  [G, N]
        q = np.einsum("gn,gn->g", a.conj(), solved).real
        volumes.append(n / q)
    return np.reshape(volumes, (len(R), *A.shape[:-1]))


def capon_lowrank(F, A, loading=1e-2):
    """Capon of R = F F^H, for F [B, N, K]."""
    F = np.asarray(F, np.complex128)
    return capon(F @ F.conj().swapaxes(-1, -2), A, loading)


def analysis(Q, A):
    """q_g = a_g^H Q a_g, real, shape (B, ...)."""
    return np.einsum("...n,bnm,...m->b...", A.conj(), np.asarray(Q, np.complex128), A, optimize=True).real


def analysis_factored(W, A):
    """q_g = sum_k |w_k^H a_g|^2, shape (B, ...)."""
    inner = np.einsum("bnk,...n->b...k", np.asarray(W, np.complex128).conj(), A, optimize=True)
    return np.sum(np.abs(inner) ** 2, axis=-1)


def synthesis(p, A):
    """sum_g p_g a_g a_g^H, shape (B, N, N); p has shape (B, ...) for A (..., N)."""
    a = A.reshape(-1, A.shape[-1])
    weights = np.asarray(p, float).reshape(len(p), a.shape[0])
    return np.einsum("bg,gn,gm->bnm", weights, a, a.conj(), optimize=True)


def bartlett(R, A):
    """a^H R a / N^2."""
    return analysis(R, A) / A.shape[-1] ** 2


def music_null(R, A, n_sources):
    """(N - ||Us^H a||^2) / N from the noise subspace: the reciprocal of the MUSIC spectrum, in [0, 1]."""
    n = A.shape[-1]
    nulls = []
    for matrix in np.asarray(R, np.complex128):
        _, vectors = np.linalg.eigh(matrix)  # ascending eigenvalues
        noise = vectors[:, : n - n_sources]
        nulls.append(np.sum(np.abs(A.conj() @ noise) ** 2, axis=-1) / n)
    return np.stack(nulls)


def maximum_over_planes(volume):
    """The maximum over the last axis and the lowest index that reaches it."""
    return volume.max(axis=-1), volume.argmax(axis=-1)


def decibel(power):
    return 10 * np.log10(power)


def worst_db(actual, expected):
    """Largest error in dB; infinite where the actual power is not a positive finite number."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if actual.size == 0:
        return 0.0
    if not (np.all(np.isfinite(actual)) and np.all(actual > 0)):
        return math.inf
    return float(np.max(np.abs(decibel(actual) - decibel(expected))))


def rectangular(n_h, n_v, spacing_h=0.15, spacing_v=None, centre=(0.0, 0.0)):
    """Element i_h * n_v + i_v of an n_h x n_v lattice around ``centre`` in the x-y plane."""
    spacing_v = spacing_h if spacing_v is None else spacing_v
    columns = (np.arange(n_h) - (n_h - 1) / 2) * spacing_h + centre[0]
    rows = (np.arange(n_v) - (n_v - 1) / 2) * spacing_v + centre[1]
    return np.array([[x, y, 0.0] for x in columns for y in rows])


def irregular_plane(seed, n, half_width):
    """Random elements in a square of the x-y plane."""
    xy = np.random.default_rng(seed).uniform(-half_width, half_width, (n, 2))
    return np.concatenate([xy, np.zeros((n, 1))], axis=1)


def volumetric(seed, n, half_width):
    """Random elements in a cube."""
    return np.random.default_rng(seed).uniform(-half_width, half_width, (n, 3))


def complex_normal(rng, *shape):
    """Circular complex Gaussian of unit variance."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / math.sqrt(2)


def hermitian(rng, *shape):
    """Random Hermitian (indefinite) matrices of the given batch and size, e.g. hermitian(rng, 2, 15)."""
    X = complex_normal(rng, *shape, shape[-1])
    return (X + X.conj().swapaxes(-1, -2)) / 2


def source_covariance(A_sources, powers, noise):
    """sum_k p_k a_k a_k^H + sigma^2 I, for A_sources [K, N]."""
    n = A_sources.shape[-1]
    return np.einsum("k,kn,km->nm", np.asarray(powers, float), A_sources, A_sources.conj()) + noise * np.eye(n)


def wishart(rng, n, snapshots):
    """Sample covariance of white noise; singular when there are fewer snapshots than elements."""
    X = complex_normal(rng, n, snapshots)
    return X @ X.conj().T / snapshots
