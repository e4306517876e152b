"""The quadratic form of steering vectors that is under every map: made once, evaluated and searched many times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import checks, spectra
from risfast.ops.devices import PRECISIONS, checks_values, serves_kernels
from risfast.ops.plan import DEFAULT_BYTE_BUDGET, METHODS, MINIMUM_BYTE_BUDGET, require_lag
from risfast.steering import WAVEFRONTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from risfast.sources import Sources


class Spectrum(NamedTuple):
    """The maximum of a spectrum over its range planes.

    Attributes
    ----------
    power : float32 or float64 tensor, shape (B, G_az, G_el)
        Linear power.
    plane : int32 tensor, shape (B, G_az, G_el)
        Index into ``grid.range_m`` of the winning plane, the lowest on a tie.
    """

    power: Tensor
    plane: Tensor

    def plot(self, grid: SearchGrid, sources: Sources | None = None, *, scene: int = 0) -> Figure:
        """The map of one scene in dB: over azimuth and elevation, as on a compass, or along the one angle there is.

        Parameters
        ----------
        grid : SearchGrid
            That the spectrum was computed on.
        sources : Sources, optional
            Marked with their ranges.
        scene : int
            Of the batch, from 0.

        Returns
        -------
        matplotlib.figure.Figure
            ``savefig`` writes it; a notebook shows it.
        """
        from risfast.report.views import spectrum_picture  # noqa: PLC0415 - matplotlib, and of what stands above

        power = self.power if self.power.ndim == 3 else self.power[None]
        return spectrum_picture(power, grid, sources, scene)


def byte_budget_of(wavefront: str, method: str, byte_budget: int | None, precision: str) -> int:
    """Check the options that every operator takes, and say how many bytes it may work in."""
    checks.check_option(wavefront, "wavefront", WAVEFRONTS)
    checks.check_option(method, "method", METHODS)
    checks.check_option(precision, "precision", PRECISIONS)
    budget = DEFAULT_BYTE_BUDGET if byte_budget is None else byte_budget
    if not isinstance(budget, int) or budget < MINIMUM_BYTE_BUDGET:
        raise ValueError(f"byte_budget must be an integer of at least {MINIMUM_BYTE_BUDGET} bytes, got {byte_budget!r}")
    return budget


def axes_of(grid: SearchGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth, elevation and range of a grid."""
    return grid.azimuth_rad, grid.elevation_rad, grid.range_m


def evaluated(
    op: Any,
    given: Any,
    name: str,
    before: tuple[Any, ...],
    after: tuple[Any, ...],
    array: PlanarArray,
    grid: SearchGrid,
    wavefront: str,
    method: str,
    reduce: str,
    byte_budget: int | None,
    precision: str,
) -> Any:
    """Check what all spectra take, and call the op, whose own arguments stand ``before`` and ``after`` ``volume``."""
    checks.check_array(array)
    checks.check_grid(grid)
    checks.check_option(reduce, "reduce", ("max", "none"))
    budget = byte_budget_of(wavefront, method, byte_budget, precision)
    if method == "lag":
        require_lag(array.lattice, wavefront)
    matrix = checks.complex_tensor(given, name)
    checks.check_matrix(matrix, name, array.n_elements, square=name == "R")
    batched, volume = matrix.ndim == 3, reduce == "none"
    geometry = (array.positions_m, *axes_of(grid), array.wavenumber, wavefront, method, budget, precision)
    power, plane = op(matrix if batched else matrix[None], *before, volume, *after, *geometry)
    if not batched:
        power, plane = power[0], plane if volume else plane[0]
    return power if volume else Spectrum(power, plane)


def _batch(given: Any, name: str) -> Tensor:
    """R or F as a batch of matrices."""
    matrix = checks.complex_tensor(given, name)
    if matrix.ndim != 3:
        raise ShapeError(f"{name} must have shape (B, N, {'N' if name == 'R' else 'K'}), got {tuple(matrix.shape)}")
    checks.check_matrix(matrix, name, matrix.shape[1], square=name == "R")
    return matrix


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    """q = a^H Q a of steering vectors a, for B scenes, and the power that it stands for.

    It does not depend on the scale of a covariance, so that no scale leaves the range of floating point. Maps, lists
    of points and the search below the grid (:mod:`risfast.ops.refinement`) take it, so that a covariance is inverted
    once. Differentiable with respect to what it is made from.

    Attributes
    ----------
    matrix : complex tensor, shape (B, N, N) or (B, N, K)
        Hermitian Q, or with ``factored`` the factor W of Q = W W^H.
    factored : bool
        Which of the two.
    power : {"linear", "reciprocal", "complement"}
        Power is scale q, scale / q or scale / (N - q).
    scale : float64 tensor, shape (B,)
        Linear power.
    operation : str
        What it is of, as :func:`risfast.ops.plan.plan` names it: how exact it has to be.
    loading : float64 tensor without axes, or None
        Of a Capon form.
    single : bool
        Whether it was made from complex64, so that powers are float32.
    source : complex tensor or None
        R or F, from which the kernels of a GPU make their own operand.
    """

    matrix: Tensor
    factored: bool
    power: str
    scale: Tensor
    operation: str
    loading: Tensor | None
    single: bool
    source: Tensor | None = None

    @classmethod
    def capon(cls, R: Any, loading: float | Tensor = 1e-2) -> QuadraticForm:
        """Of the Capon power N / (a^H (R + delta I)^-1 a).

        Parameters
        ----------
        R : complex tensor, shape (B, N, N)
            Covariances.
        loading : float or tensor of one value
            As for :func:`risfast.ops.mvdr_spectrum`.

        Returns
        -------
        QuadraticForm

        Raises
        ------
        ShapeError, TypeError, ValueError
            As :func:`risfast.ops.mvdr_spectrum`.
        """
        covariance, delta = _batch(R, "R"), checks.as_loading(loading, minimum_open=False)
        mean = spectra.mean_trace(covariance)
        inverse = torch.ops.risfast.loaded_inverse(covariance, delta) * mean[:, None, None]
        single = covariance.dtype == torch.complex64
        return cls(inverse, False, "reciprocal", covariance.shape[-1] * mean, "mvdr", delta, single, covariance)

    @classmethod
    def capon_lowrank(cls, F: Any, loading: float | Tensor = 1e-2) -> QuadraticForm:
        """As :meth:`capon` of R = F F^H, without an N x N matrix.

        Parameters
        ----------
        F : complex tensor, shape (B, N, K)
            Factors.
        loading : float or tensor of one value
            As for :func:`risfast.ops.mvdr_spectrum_lowrank`.

        Returns
        -------
        QuadraticForm

        Raises
        ------
        ShapeError, TypeError, ValueError
            As :func:`risfast.ops.mvdr_spectrum_lowrank`.
        """
        factor, wanted = _batch(F, "F"), checks.as_loading(loading, minimum_open=True)
        if checks_values(factor.device) and not torch.compiler.is_compiling():
            checks.check_factor_values(factor, "F")
        delta = spectra.lowrank_delta(factor, wanted)
        woodbury, single = spectra.woodbury_factor(factor, delta), factor.dtype == torch.complex64
        scale = factor.shape[-2] * delta
        return cls(woodbury, True, "complement", scale, "mvdr_lowrank", wanted, single, factor)

    @classmethod
    def music(cls, R: Any, n_sources: int) -> QuadraticForm:
        """Of the MUSIC pseudospectrum N / (N - ||U^H a||^2), U the leading eigenvectors of R.

        Parameters
        ----------
        R : complex tensor, shape (B, N, N)
            Covariances.
        n_sources : int
            Dimension of the signal subspace, 1 .. N - 1.

        Returns
        -------
        QuadraticForm

        Raises
        ------
        ShapeError, TypeError, ValueError
            As :func:`risfast.ops.music_spectrum`.
        """
        covariance = _batch(R, "R")
        n = covariance.shape[-1]
        if not isinstance(n_sources, int) or not 1 <= n_sources < n:
            raise ValueError(f"n_sources must be an integer in 1 .. N - 1 = {n - 1}, got {n_sources!r}")
        basis = spectra.signal_subspace(covariance, n_sources)
        scale = covariance.new_full((covariance.shape[0],), n, dtype=torch.float64)
        return cls(basis, True, "complement", scale, "music", None, covariance.dtype == torch.complex64)

    @classmethod
    def bartlett(cls, R: Any) -> QuadraticForm:
        """Of the Bartlett power a^H R a / N^2.

        Parameters
        ----------
        R : complex tensor, shape (B, N, N)
            Covariances.

        Returns
        -------
        QuadraticForm

        Raises
        ------
        ShapeError, TypeError, ValueError
            As :func:`risfast.ops.bartlett_spectrum`.
        """
        covariance = _batch(R, "R")
        n = covariance.shape[-1]
        scale = covariance.new_full((covariance.shape[0],), n**-2.0, dtype=torch.float64)
        return cls(covariance, False, "linear", scale, "bartlett", None, covariance.dtype == torch.complex64)

    def spectrum(
        self,
        array: PlanarArray,
        grid: SearchGrid,
        *,
        wavefront: str = "spherical",
        method: str = "auto",
        reduce: str = "max",
        byte_budget: int | None = None,
        precision: str = "auto",
    ) -> Any:
        """Power on a grid.

        Parameters
        ----------
        array, grid, wavefront, method, reduce, byte_budget, precision
            As for :func:`risfast.ops.mvdr_spectrum`.

        Returns
        -------
        Spectrum or tensor
            As :func:`risfast.ops.mvdr_spectrum`.

        Raises
        ------
        ShapeError, TypeError, ValueError
            As :func:`risfast.ops.mvdr_spectrum`.
        """
        shared = (array, grid, wavefront, method, reduce, byte_budget, precision)
        if self.source is not None and serves_kernels(self.source):
            op = torch.ops.risfast.capon_lowrank if self.factored else torch.ops.risfast.capon
            return evaluated(op, self.source, "F" if self.factored else "R", (self.loading,), (), *shared)
        before = (self.scale, self.factored, self.power)
        after = (True, self.operation, self.loading, self.single)
        name = "F" if self.factored else "R"
        return evaluated(torch.ops.risfast.analysis, self.matrix, name, before, after, *shared)
