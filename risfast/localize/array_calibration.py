"""Complex gains, and on request positions, of the elements of an array, from recordings of a few sources each.

    x_l ~ CN(0, R_i),      R_i = sum_k p_ik b_ik b_ik^H + sigma_i^2 I,      b_ik = diag(g) a(place_ik)

All recordings i share the gains g and the positions of the elements; powers, noise and, where they are not told, the
places of the sources are each recording's own. The likelihood of all is climbed by Fisher scoring, each recording's own
parameters eliminated by a Schur complement, so that the cost is linear in the number of recordings.

(The calibration of the confidence of a model is another thing: :mod:`risfast.localize.confidence`.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import SensorArray, direction_cosines
from risfast.localize.likelihood import Box, scaled_inverse
from risfast.localize.localizer import Localizer, direct_measurement
from risfast.models import Measurement
from risfast.setup import Setup
from risfast.sources import Sources
from risfast.steering import steering_phase, steering_phase_gradient

# Standard deviations of a weak prior about what the setup says, which holds what the data do not determine: of log
# amplitudes and phases (nepers, radians), and of positions in radians of phase, a tenth of a wavelength.
_GAIN_PRIOR, _POSITION_PRIOR = 3.0, 0.6
# A combination of parameters that is known no better than this at each element (nepers, radians) is undetermined.
_UNDETERMINED = 0.5
_NAMED = 0.9  # of a pattern that lies among those, squared: it is said by its name
_FLAT = 1e-9  # of a pattern that others hold already
_ROUNDS, _STEPS = 12, 60
_CONVERGED = 1e-3  # of the log-likelihood
_SETTLED = 0.05  # of their deviations, that gains change by in a round
_DAMPING_START, _DAMPING_LEAST, _DAMPING_MOST = 1e-3, 1e-9, 1e6
_LONGEST = 1.0  # step of a gain, a log power, a log noise, or of a position in radians of phase
_STRONG = 0.25  # of the strongest source of a recording: weaker ones may come from the gains that are sought
_LEAST_POWER = 1e-4  # of the power of an element
_LEAST_GAIN = 1e-3  # of the others, that an element begins with
_LEAST_LEFT = 0.02  # of the degrees of freedom, for a mismatch to be told
_BEYOND = 3.0  # standard deviations of what noise leaves, for it to be more


class ArrayCalibration(NamedTuple):
    """What a calibration found, and how well it is determined.

    Attributes
    ----------
    setup : Setup
        The same problem with gains, and with other positions where these were asked for.
    gains : complex128 tensor, shape (N,)
        Of the elements; the mean of their log amplitudes and of their phases are those of the setup before.
    amplitude_deviation : float64 tensor, shape (N,)
        Cramér-Rao bound of the standard deviation of each log amplitude, in nepers: relative errors of amplitude.
    phase_deviation_rad : float64 tensor, shape (N,)
        The same of each phase.
    position_deviation_m : float64 tensor, shape (N, 3), or None
        The same of each position; None where positions were not asked for.
    sources : list of Sources
        Of each recording: as they were told, or as they were found.
    mismatch : float
        Relative amplitude of what the calibrated array still does not explain of its sources (reflections, coupling,
        gains that change); 0 where noise explains all, NaN where there are too few recordings to tell.
    notes : tuple of str
        What the recordings do not determine, and how it was fixed.

    Notes
    -----
    Deviations are those of what is determined: what the notes name was held, and has none.
    """

    setup: Setup
    gains: Tensor
    amplitude_deviation: Tensor
    phase_deviation_rad: Tensor
    position_deviation_m: Tensor | None
    sources: list[Sources]
    mismatch: float
    notes: tuple[str, ...]


@torch.no_grad()
def calibrate(
    covariances: Any,
    setup: Setup,
    snapshots: float | Sequence[float],
    *,
    sources: Any = None,
    positions: bool = False,
    n_sources: int | None = None,
) -> ArrayCalibration:
    """Calibrate an array that is sampled directly.

    Parameters
    ----------
    covariances : sequence of complex tensors, each of shape (N, N) or (F, N, N); or one of a dimension more
        Sample covariance of each recording, in each of the F bands of the setup; the gains are those of all bands.
    setup : Setup
        Array, bands, wavefront; the gains that it has are where the search begins.
    snapshots : float or sequence of I floats
        L, that each covariance is the mean of; not whole where snapshots overlap.
    sources : real tensor, shape (I, 3), or sequence of I Sources or tensors, shape (K, 3), optional
        Azimuth and elevation in radians and range in metres (may be infinite) of the sources of each of the I
        recordings. By default they are searched for.
    positions : bool
        Whether the positions of the elements are sought too.
    n_sources : int, optional
        How many sources each recording has, where they are searched for; by default those that the localizer finds
        within 6 dB of the strongest.

    Returns
    -------
    ArrayCalibration

    Raises
    ------
    ShapeError, TypeError, ValueError
        An array that is not sampled directly, or of a single element; covariances of another shape, not finite or not
        Hermitian; numbers of snapshots or sources that do not belong to them; a recording without a source.

    Notes
    -----
    With known places the search begins from the gains that bring all steering vectors nearest to the signal subspaces
    of their recordings, the principal eigenvector of a matrix; with unknown ones, localisation and likelihood take
    turns: A. J. Weiss and B. Friedlander, "Eigenstructure methods for direction finding with sensor gain and phase
    uncertainties", Circuits, Systems and Signal Processing 9(3), 1990. What is not determined (a common factor always;
    of far sources at unknown places a linear phase along the aperture, which turns all of them; positions along a
    direction that no source has a component in) stays as the setup has it, and the notes say what that is.
    """
    n = setup.array.n_elements
    if setup.sampling != "direct":
        raise ValueError("setup must be of an array that is sampled directly: sampling='direct'")
    if n < 2:
        raise ValueError("setup has an array of a single element, whose gain is the common factor: not determined")
    lengths = _lengths(snapshots, len(covariances))
    matrices = _checked(covariances, lengths, setup)
    problem = _Problem(setup, matrices, lengths, with_positions=positions, sought=sources is None)
    if sources is None:
        fit = _alternate(problem, n_sources)
    else:
        places = _places(sources, len(matrices))
        fit = problem.climb(problem.start(_closest_gains(problem, places), places))
    shared = fit.shared - problem.common(fit.shared)
    gains = problem.gains(shared)
    known = _determined(problem.information(fit), n)
    deviation = known.deviation.unflatten(0, (-1, n))
    return ArrayCalibration(
        setup.replace(array=problem.array_of(shared), wavelengths_m=setup.wavelengths_m, gains=tuple(gains.tolist())),
        gains,
        deviation[0],
        deviation[1],
        deviation[2:].mT / setup.array.wavenumber if positions else None,
        [
            Sources.at(torch.cat([own.place[:, :2], 1 / own.place[:, 2:]], 1), own.log_power.exp().mean(0))
            for own in fit.own
        ],
        _mismatch(problem, fit, known.rank),
        _notes(problem, known.open),
    )


def _lengths(snapshots: float | Sequence[float], recordings: int) -> list[float]:
    lengths = [snapshots] * recordings if isinstance(snapshots, int | float) else list(snapshots)
    right = all(isinstance(value, int | float) and value >= 1 and not isinstance(value, bool) for value in lengths)
    if not recordings:
        raise ValueError("covariances must hold at least one recording, got none")
    if len(lengths) != recordings or not right:
        raise ValueError(
            f"snapshots must be a number of at least 1, or one for each of {recordings} recordings, got {snapshots!r}"
        )
    return lengths


def _checked(covariances: Any, lengths: list[float], setup: Setup) -> list[Tensor]:
    """Covariances [F, N, N] of each recording, complex128."""
    n, bands = setup.array.n_elements, setup.n_bands
    found = []
    for number, (given, length) in enumerate(zip(covariances, lengths, strict=True)):
        matrix = torch.as_tensor(given)
        matrix = matrix[None] if matrix.ndim == 2 else matrix
        if matrix.shape != (bands, n, n):
            raise ShapeError(
                f"covariances[{number}] must have shape ({n}, {n}) or ({bands}, {n}, {n}), got {tuple(matrix.shape)}"
            )
        try:
            _measurement(matrix, setup, length)
        except (TypeError, ValueError) as error:
            raise type(error)(f"covariances[{number}]: {error}") from error
        found.append(matrix.to("cpu", torch.complex128))
    return found


def _measurement(matrix: Tensor, setup: Setup, length: float) -> Measurement:
    """Of one covariance [F, N, N]."""
    return direct_measurement(matrix if setup.n_bands > 1 else matrix[0], setup, None, None, length)


def _places(sources: Any, recordings: int) -> list[Tensor]:
    """(azimuth, elevation, 1/range) [K, 3] of the sources of each recording."""
    if len(sources) != recordings:
        raise ValueError(f"sources must be given for each of {recordings} recordings, got {len(sources)}")
    found = []
    for number, given in enumerate(sources):
        position = torch.as_tensor(given.position if isinstance(given, Sources) else given).double().cpu()
        position = position[None] if position.ndim == 1 else position
        if position.ndim != 2 or position.shape[1] != 3 or not len(position):
            raise ShapeError(f"sources[{number}] must have shape (3,) or (K, 3), got {tuple(position.shape)}")
        azimuth, elevation, far = position.unbind(1)
        angles = bool(((azimuth.abs() <= 2 * math.pi + 1e-9) & (elevation.abs() <= math.pi / 2 + 1e-9)).all())
        if not angles or not bool((far > 0).all()):
            raise ValueError(
                f"sources[{number}] must be azimuth and elevation in radians and a range above 0 m, got "
                f"{position.tolist()}"
            )
        found.append(torch.cat([position[:, :2], 1 / position[:, 2:]], 1))
    return found


@dataclass(frozen=True)
class _Own:
    """What belongs to one recording alone."""

    place: Tensor  # (K, 3) Azimuth, elevation, 1/range
    log_power: Tensor  # (F, K)
    log_noise: Tensor  # (F,)


@dataclass(frozen=True)
class _State:
    """All parameters."""

    shared: Tensor  # (S,) Of all elements the log amplitudes, then the phases, then x, y, z in radians of phase
    own: list[_Own]


class _Terms(NamedTuple):
    """Slopes and Fisher information of a log-likelihood by S shared parameters and by Q others."""

    slope: Tensor  # (S,)
    own_slope: Tensor  # (Q,)
    information: Tensor  # (S, S)
    cross: Tensor  # (S, Q)
    own_information: Tensor  # (Q, Q)


class _Reduced(NamedTuple):
    """The same of one recording where its own parameters follow the shared ones."""

    slope: Tensor  # (S,)
    information: Tensor  # (S, S)
    own_slope: Tensor  # (Q,) Zero of what is held
    own_inverse: Tensor  # (Q, Q)
    cross: Tensor  # (S, Q)


class _Problem:
    """The likelihood of all recordings."""

    def __init__(
        self, setup: Setup, matrices: list[Tensor], lengths: list[float], *, with_positions: bool, sought: bool
    ) -> None:
        self.setup, self.matrices, self.lengths = setup, matrices, lengths
        self.with_positions, self.sought = with_positions, sought
        self.n, self.kinds = setup.array.n_elements, 5 if with_positions else 2
        self.given = torch.tensor(setup.gains or (1.0,) * self.n, dtype=torch.complex128)
        self.wavenumbers = [2 * math.pi / wavelength for wavelength in setup.wavelengths_m]
        prior = [_GAIN_PRIOR] * 2 + [_POSITION_PRIOR] * (self.kinds - 2)
        self.prior = torch.tensor(prior, dtype=torch.float64).pow(-2).repeat_interleave(self.n)
        none = torch.zeros(1, dtype=torch.float64)
        box = Box.of(setup, none, none)
        self.low, self.high, self.longest = box.low, box.high, box.longest

    def gains(self, shared: Tensor) -> Tensor:
        """Of the elements, [N]."""
        return self.given * torch.polar(shared[: self.n].exp(), shared[self.n : 2 * self.n])

    def array_of(self, shared: Tensor) -> SensorArray:
        """The array with positions that belong to the parameters."""
        array = self.setup.array
        if not self.with_positions:
            return array
        moved = shared[2 * self.n :].view(3, -1).mT / array.wavenumber
        return SensorArray(array.positions_m + moved, array.wavelength_m)

    def common(self, shared: Tensor) -> Tensor:
        """The factor that all gains have in common, as parameters."""
        means = shared.unflatten(0, (-1, self.n)).mean(1, keepdim=True)
        means[2:] = 0
        return means.expand(-1, self.n).flatten()

    def unit(self, place: Tensor) -> tuple[_Own, list[Tensor]]:
        """Sources of unit power at places, and the responses to them with the gains of the setup."""
        bands = len(self.wavenumbers)
        own = _Own(place, place.new_zeros(bands, len(place)), place.new_zeros(bands))
        return own, self.responses(place.new_zeros(self.kinds * self.n), own)

    def start(self, relative: Tensor, places: list[Tensor]) -> _State:
        """Gains over those of the setup, and places, with powers and noise by moments."""
        phase = (relative * relative.sum().conj()).angle()
        shared = torch.cat([relative.abs().log(), phase, phase.new_zeros((self.kinds - 2) * self.n)])
        shared = shared - self.common(shared)
        return _State(shared, [self._own(number, shared, place) for number, place in enumerate(places)])

    def _own(self, number: int, shared: Tensor, place: Tensor) -> _Own:
        """Powers by least squares, and the noise that K sources leave."""
        power, noise = [], []
        for matrix, response in zip(self.matrices[number], self.responses(shared, self.unit(place)[0]), strict=True):
            _, _, floor = _signal_subspace(matrix, len(place))
            inverse = torch.linalg.pinv(response)
            strength = (inverse @ matrix @ inverse.mH).diagonal().real - floor * inverse.abs().square().sum(1)
            power.append(strength.clamp_min(_LEAST_POWER * float(matrix.diagonal().real.mean())).log())
            noise.append(floor.log())
        return _Own(place, torch.stack(power), torch.stack(noise))

    def responses(self, shared: Tensor, own: _Own) -> list[Tensor]:
        """Of the elements to the sources, times root powers, [N, K] in each band."""
        azimuth, elevation, inverse = own.place.unbind(1)
        positions, direction = self.array_of(shared).positions_m, direction_cosines(azimuth, elevation)
        path = steering_phase(positions, direction, 1 / inverse, 1.0, self.setup.wavefront)
        roots = (own.log_power / 2).exp()[:, :, None].expand(-1, -1, self.n)
        return [
            self.gains(shared)[:, None] * torch.polar(root, wavenumber * path).mT
            for root, wavenumber in zip(roots, self.wavenumbers, strict=True)
        ]

    def objective(self, state: _State) -> float:
        """Log-likelihood and prior."""
        total = -float((self.prior * state.shared.square()).sum()) / 2
        for number, own in enumerate(state.own):
            responses = self.responses(state.shared, own)
            for matrix, response, noise in zip(self.matrices[number], responses, own.log_noise.exp(), strict=True):
                factor = torch.linalg.cholesky(_covariance(response, noise))
                explained = torch.cholesky_solve(matrix, factor).diagonal().real.sum()
                logdet = 2 * factor.diagonal().real.log().sum()
                total -= self.lengths[number] * float(logdet + explained)
        return total

    def terms(self, number: int, shared: Tensor, own: _Own) -> _Terms:
        """Of one recording; its own parameters are azimuths, elevations, 1/ranges, log powers and log noises."""
        positions = self.array_of(shared).positions_m
        azimuth, elevation, inverse = own.place.unbind(1)
        way = (azimuth, elevation, 1 / inverse)
        by_place = steering_phase_gradient(positions, *way, 1.0, self.setup.wavefront)[1].permute(1, 2, 0)  # [3, N, K]
        by_position = self._by_position(positions, way)
        k, bands, s = len(azimuth), len(self.wavenumbers), self.kinds * self.n
        q = 3 * k + bands * k + bands
        sums = _Terms(*(torch.zeros(shape, dtype=torch.float64) for shape in (s, q, (s, s), (s, q), (q, q))))
        for band, response in enumerate(self.responses(shared, own)):
            wavenumber = self.wavenumbers[band]
            turns = [d * (1j * wavenumber / self.setup.array.wavenumber) for d in by_position]
            by_element = torch.stack([response, 1j * response, *(turn * response for turn in turns)])
            by_source = 1j * wavenumber * by_place * response
            part = _band_terms(self.matrices[number][band], response, own.log_noise[band].exp(), by_element, by_source)
            mine = [*range(3 * k), *range(3 * k + band * k, 3 * k + (band + 1) * k), 3 * k + bands * k + band]
            length = self.lengths[number]
            sums.slope.add_(part.slope, alpha=length)
            sums.information.add_(part.information, alpha=length)
            sums.own_slope[mine] += length * part.own_slope
            sums.cross[:, mine] += length * part.cross
            sums.own_information[torch.tensor(mine)[:, None], mine] += length * part.own_information
        return sums

    def _by_position(self, positions: Tensor, way: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """Derivatives [N, K] of the path along x, y and z of each element."""
        if not self.with_positions:
            return []
        with torch.enable_grad():
            at = positions.clone().requires_grad_()
            path = steering_phase(at, direction_cosines(*way[:2]), way[2], 1.0, self.setup.wavefront)
            # An element's path depends on its own position alone.
            slopes = [torch.autograd.grad(row.sum(), at, retain_graph=True)[0] for row in path]
        return list(torch.stack(slopes, 1).unbind(-1))

    def reduced(self, number: int, state: _State, damping: float, *, bounded: bool = True) -> _Reduced:
        """One recording; places that are known, or at a bound that the slope points out of, are held."""
        own = state.own[number]
        terms = self.terms(number, state.shared, own)
        k = len(own.place)
        slope = terms.own_slope[: 3 * k].view(3, k).mT
        held = ((own.place >= self.high) & (slope > 0)) | ((own.place <= self.low) & (slope < 0))
        held = (held & bounded) | (self.high <= self.low) | (not self.sought)
        free = torch.cat([~held.mT.flatten(), torch.ones(len(terms.own_slope) - 3 * k, dtype=torch.bool)])
        inner = torch.where(free[:, None] & free, terms.own_information, 0.0)
        inner = inner + torch.diag(torch.where(free, damping * inner.diagonal(), 1.0))
        inverse = scaled_inverse(inner[None], definite=True)[0][0]
        own_slope, cross = torch.where(free, terms.own_slope, 0.0), torch.where(free, terms.cross, 0.0)
        between = cross @ inverse
        return _Reduced(
            terms.slope - between @ own_slope, terms.information - between @ cross.mT, own_slope, inverse, cross
        )

    def climb(self, state: _State) -> _State:
        """The maximum from a start on, by damped Fisher scoring."""
        damping, value = _DAMPING_START, self.objective(state)
        for _ in range(_STEPS):
            parts = [self.reduced(number, state, damping) for number in range(len(state.own))]
            slope = torch.stack([part.slope for part in parts]).sum(0) - self.prior * state.shared
            system = torch.stack([part.information for part in parts]).sum(0) + torch.diag(self.prior)
            better = None
            while better is None and damping <= _DAMPING_MOST:
                step = torch.linalg.solve(system + torch.diag(damping * system.diagonal()), slope)
                step = step / (step.abs().max() / _LONGEST).clamp_min(1.0)
                trial = _State(state.shared + step, list(map(self._followed, state.own, parts, [step] * len(parts))))
                reached = self.objective(trial)
                if reached > value:
                    better = trial
                else:
                    damping *= 10
            if better is None:
                return state
            gain, state, value = reached - value, better, reached
            damping = max(damping / 5, _DAMPING_LEAST)
            if gain < _CONVERGED:
                return state
        return state

    def _followed(self, own: _Own, part: _Reduced, shared_step: Tensor) -> _Own:
        """A recording's own parameters after a step of the shared ones, places within the region."""
        step = part.own_inverse @ (part.own_slope - part.cross.mT @ shared_step)
        bands, k = own.log_power.shape
        place, power, noise = step.split([3 * k, bands * k, bands])
        place = torch.maximum(torch.minimum(place.view(3, k).mT, self.longest), -self.longest)
        inside = torch.maximum(torch.minimum(own.place + place, self.high), self.low)
        return _Own(
            torch.where(place == 0, own.place, inside),
            own.log_power + power.view(bands, k).clamp(-_LONGEST, _LONGEST),
            own.log_noise + noise.clamp(-_LONGEST, _LONGEST),
        )

    def information(self, state: _State) -> Tensor:
        """Fisher information [S, S] of the shared parameters beside all others, without the prior."""
        parts = [self.reduced(number, state, 0.0, bounded=False).information for number in range(len(state.own))]
        whole = torch.stack(parts).sum(0)
        return (whole + whole.mT) / 2


def _covariance(response: Tensor, noise: Tensor) -> Tensor:
    """R [N, N]."""
    return response @ response.mH + noise * torch.eye(len(response), dtype=response.dtype)


def _band_terms(matrix: Tensor, response: Tensor, noise: Tensor, by_element: Tensor, by_source: Tensor) -> _Terms:
    """Of one snapshot in one band.

    matrix (N, N), response (N, K), by_element (C, N, K), by_source (3, N, K)
    """
    # Slepian-Bangs: the information is tr(R^-1 dR R^-1 dR'). A parameter of element n changes only row and column n:
    # dR = e_n m^H + m e_n^H with row n of (dB) B^H for m^H.
    n = len(response)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_covariance(response, noise)))
    gap = inverse @ matrix @ inverse - inverse
    rows = by_element @ response.mH  # [C, N, N]
    white = rows @ inverse
    slope = 2 * (rows * gap.mT).sum(2).real
    first = white[:, :, None, :] * white.permute(2, 0, 1)[None]
    second = (white @ rows.mH[:, None]).permute(1, 2, 0, 3) * inverse.mT[:, None]
    information = 2 * (first + second).real
    halves = torch.cat([by_source.permute(0, 2, 1).flatten(0, 1), response.mT / 2])  # [4 K, N]
    changes = halves[:, :, None] * response.mT.repeat(4, 1).conj()[:, None]
    changes = torch.cat([changes + changes.mH, noise * torch.eye(n, dtype=response.dtype)[None]])  # [4 K + 1, N, N]
    by_white = inverse @ changes
    own_slope = (gap.mT * changes).sum((1, 2)).real
    own_information = torch.einsum("aij,bji->ab", by_white, by_white).real
    cross = 2 * torch.einsum("cnm,amn->cna", rows, by_white @ inverse).real
    return _Terms(
        slope.flatten(), own_slope, information.flatten(0, 1).flatten(1), cross.flatten(0, 1), own_information
    )


def _closest_gains(problem: _Problem, places: list[Tensor]) -> Tensor:
    """Of gains over those of the setup, what brings all steering vectors nearest to their signal subspaces."""
    total = torch.zeros(problem.n, problem.n, dtype=torch.complex128)
    for number, place in enumerate(places):
        for matrix, response in zip(problem.matrices[number], problem.unit(place)[1], strict=True):
            value, basis, floor = _signal_subspace(matrix, len(place))
            products = (response.conj()[:, :, None] * basis[:, None]).flatten(1)  # [N, K K]
            total += problem.lengths[number] * (value.mean() / floor) * products @ products.mH
    closest = torch.linalg.eigh(total).eigenvectors[:, -1]
    least = float(_LEAST_GAIN * closest.abs().median())
    return torch.polar(closest.abs().clamp_min(least), closest.angle())


def _signal_subspace(matrix: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The K largest eigenvalues, their vectors, and the mean of the others."""
    value, vector = torch.linalg.eigh(matrix)
    floor = value[: max(len(value) - k, 1)].mean().clamp_min(_LEAST_POWER * float(value.mean()))
    return value[-k:], vector[:, -k:], floor


def _alternate(problem: _Problem, n_sources: int | None) -> _State:
    """Localisation with the gains so far and the likelihood of all recordings, in turns until the gains stay."""
    setup = problem.setup.replace(gains=None)
    localizer = Localizer.classical(setup)
    relative = torch.ones(problem.n, dtype=torch.complex128)
    state: _State | None = None
    for _ in range(_ROUNDS):
        places = []
        for number, matrix in enumerate(problem.matrices):
            measured = _measurement(matrix, setup, problem.lengths[number]).with_gains(problem.given * relative)
            [found] = localizer.localize(measured, n_sources=n_sources)
            if n_sources is None and len(found):
                found = found[found.power >= _STRONG * found.power.max()]
            if not len(found):
                raise ValueError(
                    f"covariances[{number}] holds no source that the localizer finds: leave it out, or give sources"
                )
            far = found.range.nan_to_num(nan=setup.region.range_m[1])
            places.append(torch.stack([found.azimuth, found.elevation, 1 / far], 1))
        before, state = state, problem.climb(problem.start(relative, places))
        relative = problem.gains(state.shared) / problem.given
        if before is not None:
            change = (state.shared - before.shared).square().mean().sqrt()
            if float(change) < _SETTLED * float(_determined(problem.information(state), problem.n).deviation.mean()):
                break
    assert state is not None  # there is at least one round
    return state


class _Determined(NamedTuple):
    """What the recordings determine."""

    deviation: Tensor  # (S,) Of the shared parameters, within what is determined
    open: Tensor  # (S, J) Orthonormal combinations that are not
    rank: int  # S - J


def _determined(information: Tensor, n: int) -> _Determined:
    """The numerical rank of the information, and the bound in the space that it leaves."""
    value, vector = torch.linalg.eigh(information)
    known = value * n > _UNDETERMINED**-2
    variance = torch.where(known, 1 / value.clamp_min(1e-300), 0.0)
    return _Determined((vector.square() @ variance).sqrt(), vector[:, ~known], int(known.sum()))


def _mismatch(problem: _Problem, fit: _State, used: int) -> float:
    """Relative amplitude of the parts of the sources that lie outside of the model, without those by noise."""
    # What noise takes out of an eigenvector is that of large samples: M. Kaveh and A. Barabell, "The statistical
    # performance of the MUSIC and the minimum-norm algorithms", IEEE Trans. ASSP 34(2), 1986.
    n, outside, by_noise, strength, count = problem.n, 0.0, 0.0, 0.0, 0.0
    for number, own in enumerate(fit.own):
        k = len(own.place)
        used += 2 * int(problem.sought) * k
        for matrix, response in zip(problem.matrices[number], problem.responses(fit.shared, own), strict=True):
            value, basis, floor = _signal_subspace(matrix, k)
            inside = (basis.mH @ response).abs().square()  # [K, K]
            power = response.abs().square().sum(0)
            lost = (n - k) * floor * value / (problem.lengths[number] * (value - floor).clamp_min(1e-300).square())
            outside += float((power - inside.sum(0)).sum())
            by_noise += float((lost[:, None] * inside).sum())
            strength += float(power.sum())
            count += k * (n - k)
    left = 1 - used / (2 * count) if count else 0.0
    if left < _LEAST_LEFT:
        return math.nan
    excess = outside / left - by_noise
    return math.sqrt(excess / strength) if excess > _BEYOND * by_noise / math.sqrt(count * left) else 0.0


def _notes(problem: _Problem, open_space: Tensor) -> tuple[str, ...]:
    """What is not determined, in words; patterns are taken out of the space one after the other."""
    n, notes = problem.n, ["the gains are known up to one common complex factor: its logarithm stays as it was"]
    positions = problem.setup.array.positions_m - problem.setup.array.positions_m.mean(0)
    size = problem.kinds * n

    def pattern(kind: int, values: Tensor) -> Tensor:
        whole = torch.zeros(problem.kinds, n, dtype=torch.float64)
        whole[kind] = values
        return whole.flatten()

    one = torch.ones(n, dtype=torch.float64)
    basis = [torch.stack([pattern(0, one), pattern(1, one)], 1)]
    left = open_space - _onto(basis, open_space, size)
    names: list[tuple[str, Tensor]] = []
    if problem.with_positions:
        for axis in range(3):
            each = torch.zeros(size, n, dtype=torch.float64)
            each[(2 + axis) * n : (3 + axis) * n] = torch.eye(n, dtype=torch.float64)
            names.append((f"positions along {'xyz'[axis]} are not determined: no source has a component there", each))
    for axis in range(3):
        if float(positions[:, axis].abs().max()) > 0:
            ramp = pattern(1, positions[:, axis])[:, None]
            names.append(
                (
                    f"a linear phase along {'xyz'[axis]}, which would turn all sources, is not determined: the gains "
                    "have none beyond that of the setup",
                    ramp,
                )
            )
    if problem.with_positions:
        for axis in range(3):
            shift = pattern(2 + axis, one)[:, None]
            names.append((f"a common shift along {'xyz'[axis]} is not determined: the array stays", shift))
    for name, whole in names:
        columns = whole - _onto(basis, whole, size)
        scale = columns.norm(dim=0)
        if not bool((scale > _FLAT).all()):
            continue
        columns = columns / scale
        if bool(((left.mT @ columns).square().sum(0) > _NAMED).all()):
            notes.append(name)
            basis.append(columns)
            left = left - _onto(basis, left, size)
    more = int((torch.linalg.svdvals(left) > 0.5).sum()) if left.numel() else 0
    if more:
        what = "gains and positions" if problem.with_positions else "gains"
        notes.append(
            f"{more} further combinations of {what} are not determined, and are the smallest that fit: recordings of "
            "sources in other directions would tell them apart"
        )
    return tuple(notes)


def _onto(basis: list[Tensor], vectors: Tensor, size: int) -> Tensor:
    """The part of vectors within the span of all columns."""
    whole = torch.linalg.qr(torch.cat([torch.zeros(size, 0, dtype=torch.float64), *basis], 1)).Q
    return whole @ (whole.mT @ vectors)
