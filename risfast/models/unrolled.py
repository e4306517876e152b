"""The default backbone: a few steps of the sparse covariance fit with learned corrections.

Untrained it is the classical iteration; every learned part starts at zero. Sums over snapshots are all that it sees of
them, so it is invariant to their order and takes any number of them, any codes and any channel.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from risfast.errors import ShapeError
from risfast.models.atoms import AtomAxes, AtomGrid, RangeCells
from risfast.models.base import CovarianceEstimate, Measurement, SourceMap
from risfast.models.decode import MapDetection, PowerDetection, sources_of_map, sources_of_power
from risfast.setup import Setup
from risfast.sources import Sources
from risfast.steering import steering_phase

_JITTER = 2e-2  # of the mean of the diagonal


class Statistics(NamedTuple):
    """Numerators and denominators of the step."""

    numerator: Tensor  # (B, G_az, G_el, G_r) n and d
    denominator: Tensor  # (B, G_az, G_el, G_r) n and d
    noise_numerator: Tensor  # (B,) sum_l |R_l^-1 y_l|^2 and sum_l tr R_l^-1
    noise_denominator: Tensor  # (B,) sum_l |R_l^-1 y_l|^2 and sum_l tr R_l^-1


def _seen(phi: Tensor, matrix: Tensor) -> Tensor:
    """Phi_l X Phi_l^H [B, L, M, M] of Phi [B, L, M, N] and X [B, N, N]."""
    # As the conjugate of conj(Phi_l X) Phi_l^T, in place: a batch of products would first copy all of Phi^H.
    left = (phi.flatten(1, 2) @ matrix).view_as(phi)
    return (left.conj_physical_() @ phi.mT).conj_physical_()


def _spread(phi: Tensor, matrix: Tensor, atoms: AtomGrid) -> Tensor:
    """sum_l Phi_l^H G_l Phi_l [B, N, N], the adjoint of :func:`_seen`, for the analysis; G [B, L, M, M], Hermitian."""
    return atoms.products(phi.flatten(1, 2), (matrix @ phi).flatten(1, 2))


def matched(phi: Tensor, u: Tensor) -> Tensor:
    """Every snapshot's vector seen from the surface, Phi_l^H u_l."""
    # As a row from the left: a batch of products with a column is many times slower.
    return (u.conj()[:, :, None] @ phi)[:, :, 0].conj_physical()


def _factor(r: Tensor) -> Tensor:
    """Cholesky factors of R_l [B, L, M, M]; what the rounding of the atom maps made indefinite is loaded first."""
    # The maps hold 60 dB of the strongest direction of the whole grid: where noise lies further below the sources than
    # that, R_l can have a negative eigenvalue, which then says how much loading it takes.
    factor, info = torch.linalg.cholesky_ex(r)
    failed = info > 0
    if not bool(failed.any()):
        return factor
    broken = r[failed]
    finite = broken.isfinite().all(-1).all(-1)
    # What is not finite (from outside) shows as NaN in the result; eigvalsh would raise.
    least = torch.linalg.eigvalsh(torch.where(finite[:, None, None], broken, 0.0))[:, 0]
    mean = broken.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    broken.diagonal(dim1=-2, dim2=-1).add_(torch.maximum(_JITTER * mean, -2 * least)[:, None])
    again = torch.linalg.cholesky_ex(broken)
    factor = factor.clone()
    factor[failed] = again.L.masked_fill((~finite | (again.info > 0))[:, None, None], torch.nan)
    return factor


class _StatisticsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, power: Tensor, noise: Tensor, y: Tensor, phi: Tensor, atoms: AtomGrid
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r = _seen(phi, atoms.synthesis(power))
        r.diagonal(dim1=-2, dim2=-1).add_(noise[:, None, None])
        inverse = torch.cholesky_inverse(_factor(r))
        u = inverse @ y[..., None]  # [B, L, M, 1]
        v = matched(phi, u[..., 0])  # [B, L, N]
        b = power.shape[0]
        both = atoms.analysis(torch.cat([v.mT @ v.conj(), _spread(phi, inverse, atoms)]))
        ctx.save_for_backward(phi, inverse, u, v)
        ctx.atoms = atoms
        traces = inverse.diagonal(dim1=-2, dim2=-1).real.sum((1, 2))
        return both[:b], both[b:], u.abs().square().sum((1, 2, 3)), traces

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_n, grad_d, grad_u, grad_trace = grads
        phi, inverse, u, v = ctx.saved_tensors
        b = phi.shape[0]
        both = ctx.atoms.synthesis(torch.cat([grad_n, grad_d]))
        grad_s, grad_q = both[:b], both[b:]
        # dR^-1 = -R^-1 dR R^-1 in both: u = R^-1 y enters n through v v^H, R^-1 itself enters d.
        pulled = v @ grad_s.mT
        q = (pulled[:, :, None] @ phi.mT).mT + grad_u[:, None, None, None] * u
        t = inverse @ q
        seen = _seen(phi, grad_q)
        seen.diagonal(dim1=-2, dim2=-1).add_(grad_trace[:, None, None])
        outer = u @ t.mH
        grad_r = -(outer + outer.mH) - inverse @ seen @ inverse
        grad_noise = grad_r.diagonal(dim1=-2, dim2=-1).real.sum((1, 2))
        grad_power = ctx.atoms.analysis(_spread(phi, grad_r, ctx.atoms))
        return grad_power, grad_noise, None, None, None


def statistics(power: Tensor, noise: Tensor, y: Tensor, phi: Tensor, atoms: AtomGrid) -> Statistics:
    """Numerators and denominators of a step of the fit, differentiable in the powers and the noise.

    power (B, G_az, G_el, G_r), noise (B,), y (B, L, M), phi (B, L, M, N)
    """
    # The step is that of sparse Bayesian learning by majorise-minimise (square root of the fixed-point ratio), which
    # never lowers the likelihood. Cost a scene and pass: three maps of the atom grid and 13 L M N^2 flops.
    return Statistics(*_StatisticsFunction.apply(power, noise, y, phi, atoms))


# In units of the received power a source has p between 1e-4 and 1; below this an atom is off.
_LOWEST_LOG_POWER = -18.0
# A step multiplies a power by at most e^8 either way: numerators of dark atoms may round below zero.
_LARGEST_LOG_RATIO = 8.0
# Least noise in units of the received power: what keeps the Cholesky factors of float32 regular.
_LEAST_NOISE = 1e-4
_NOISE_START = 0.3
_LARGEST_CORRECTION = 3.0
_LARGEST_OFFSET = 0.75  # cells
_EXPECTED_SOURCES = 3.0
_FEATURES = 4
_CONTEXT = 2


@dataclass(frozen=True)
class UnrolledOptions:
    """Size of the backbone.

    Parameters
    ----------
    steps : int
        Steps T of the fit.
    width, head_width : int
        Channels of the convolutions of a step, and of the head.
    range_cells : int
        Cells of range an atom is divided into by the head.
    columns : int
        K_f: atoms that make up the factor.
    corrections : bool
        Learned parts; without them the backbone is the classical fit, and its sources are the peaks of the powers.
    axes : AtomAxes or None
        The atoms; None follows from the setup (:meth:`risfast.models.atoms.AtomAxes.of`).

    Raises
    ------
    ValueError
        A count below 1.
    """

    steps: int = 6
    width: int = 16
    head_width: int = 24
    range_cells: int = 8
    columns: int = 48
    corrections: bool = True
    axes: AtomAxes | None = None

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("steps", "width", "head_width", "range_cells", "columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UnrolledOptions:
        """From what :meth:`to_dict` gives, or part of it.

        Parameters
        ----------
        values : dict of str to value
            Fields by name, ``axes`` as a dict of the fields of :class:`risfast.models.atoms.AtomAxes`. Those that are
            not named keep their default.

        Returns
        -------
        UnrolledOptions
        """
        values = dict(values)
        if values.get("axes") is not None:
            axes: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values["axes"].items()}
            values["axes"] = AtomAxes(**axes)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class _Scaled(NamedTuple):
    """A measurement in its own units: mean |y|^2 = 1 and N mean |Phi|^2 = 1."""

    y: Tensor  # [B, L, M]
    phi: Tensor  # [B, L, M, N], mirror basis
    noise: Tensor | None  # [B]
    unit: Tensor  # [B], power of an atom that is 1 here
    noise_unit: Tensor  # [B]


class _Convolution(nn.Conv3d):
    """A convolution over the map whose time does not jump for a single scene."""

    # For a batch of one and a small map torch leaves oneDNN for a kernel of its own, which is five times slower here.

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] to [B, C', ...]."""
        usual = len(input) > 1 or input.device.type != "cpu" or torch.is_grad_enabled()
        if usual or not torch.backends.mkldnn.is_available():
            return super().forward(input)
        assert not isinstance(self.padding, str)  # numbers throughout
        return torch.mkldnn_convolution(  # it has no gradient
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class _Correction(nn.Module):
    """Learned logarithmic correction of a step: two convolutions over the map, then one output, zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _Convolution(_FEATURES, width, 3, padding=1)
        self.context = nn.Linear(_CONTEXT, width, bias=False)
        self.second = _Convolution(width, width, 3, padding=1)
        self.last = _Convolution(width, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """[B, G_az, G_el, G_r] from [B, C, G_az, G_el, G_r] and [B, 2]."""
        hidden = self.first(features) + self.context(context)[:, :, None, None, None]
        hidden = self.second(nn.functional.silu(hidden))
        raw = self.last(nn.functional.silu(hidden))[:, 0]
        return _LARGEST_CORRECTION * torch.tanh(raw / _LARGEST_CORRECTION)


class _Head(nn.Module):
    """From the last map: powers and off-grid offsets of the atoms, and the expected number of sources in each cell."""

    def __init__(self, width: int, cells: int, n_cells: int) -> None:
        super().__init__()
        self.first = _Convolution(_FEATURES, width, 3, padding=1)
        self.context = nn.Linear(_CONTEXT, width, bias=False)
        self.second = _Convolution(width, width, 3, padding=1)
        self.atoms = _Convolution(width, 4, 1)  # log power, and offsets along the three axes
        self.cells = _Convolution(width, cells + 2, 1)  # log intensities, and offsets in direction
        for last in (self.atoms, self.cells):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has one
        with torch.no_grad():
            self.cells.bias[:cells] = math.log(_EXPECTED_SOURCES / n_cells)  # type: ignore[index]
        self.n_cells = cells

    def forward(self, features: Tensor, context: Tensor) -> tuple[Tensor, Tensor, SourceMap]:
        """Correction of log p, offsets [B, 3, ...] in spacings, and the map of sources."""
        hidden = self.first(features) + self.context(context)[:, :, None, None, None]
        hidden = nn.functional.silu(self.second(nn.functional.silu(hidden)))
        atoms, cells = self.atoms(hidden), self.cells(hidden)
        # No cell holds more than one source: an unbounded exponential would let one odd scene outweigh a batch.
        intensity = nn.functional.logsigmoid(cells[:, : self.n_cells]).permute(0, 2, 3, 4, 1).flatten(3)
        direction = _LARGEST_OFFSET * torch.tanh(cells[:, self.n_cells :]).permute(0, 2, 3, 4, 1)
        correction = _LARGEST_CORRECTION * torch.tanh(atoms[:, 0] / _LARGEST_CORRECTION)
        return correction, _LARGEST_OFFSET * torch.tanh(atoms[:, 1:]), SourceMap(intensity, direction)


class UnrolledBackbone(nn.Module):
    """Unrolled sparse covariance fit.

    Each step multiplies the powers by (n / d)^alpha exp(correction), with n and d of
    :func:`risfast.models.unrolled.statistics` and a correction that small 3D convolutions draw from log p, log n/d, the
    first map and log d. The factor is A diag(sqrt p) of the strongest atoms, moved off the grid.

    Parameters
    ----------
    setup : Setup
        Array of N elements, region and wavefront.
    options : UnrolledOptions, optional
    """

    positions: Tensor
    of_azimuth: Tensor
    of_elevation: Tensor
    inverse_range: Tensor

    def __init__(self, setup: Setup, options: UnrolledOptions | None = None) -> None:
        super().__init__()
        self.setup, self.settings = setup, options or UnrolledOptions()
        o = self.settings
        self.atoms = AtomGrid(setup, o.axes)
        axes = self.atoms.axes
        self.exponents = nn.Parameter(torch.full((o.steps,), 0.5), requires_grad=o.corrections)
        self.noise_exponents = nn.Parameter(torch.full((o.steps,), 0.5), requires_grad=o.corrections)
        if o.corrections:
            self.corrections = nn.ModuleList(_Correction(o.width) for _ in range(o.steps))
            self.range_cells = RangeCells(axes, o.range_cells)
            self.head = _Head(o.head_width, o.range_cells, math.prod(axes.shape) * o.range_cells)
        self.register_buffer("positions", setup.array.positions_m.float(), persistent=False)
        of_azimuth, of_elevation = axes.coordinates
        self.register_buffer("of_azimuth", of_azimuth.float(), persistent=False)
        self.register_buffer("of_elevation", of_elevation.float(), persistent=False)
        self.register_buffer("inverse_range", axes.inverse_range.float(), persistent=False)

    def options(self) -> dict[str, Any]:
        """What rebuilds this backbone, as plain values."""
        return replace(self.settings, axes=self.atoms.axes).to_dict()

    def forward(self, measurement: Measurement) -> CovarianceEstimate:
        """Estimate covariance, noise and sources.

        Parameters
        ----------
        measurement : Measurement
            Of an array of N elements; everything is computed in single precision.

        Returns
        -------
        CovarianceEstimate

        Raises
        ------
        ShapeError
            The measurement is of another number of elements.
        """
        scaled = self._scaled(measurement)
        context_l = math.log2(scaled.y.shape[1] / 32)
        log_p, noise, first = self._start(scaled)
        for t in range(self.settings.steps):
            s = statistics(log_p.exp(), noise, scaled.y, scaled.phi, self.atoms)
            least = math.exp(-_LARGEST_LOG_RATIO)
            ratio = (s.numerator / s.denominator).clamp(least, 1 / least).log()
            level = s.denominator.clamp_min(1e-12).log()
            context = torch.stack([noise.log() / 2, torch.full_like(noise, context_l)], 1)
            update = self.exponents[t] * ratio
            if self.settings.corrections:
                update = update + self.corrections[t](self._features(log_p, ratio, first, level, scaled), context)
            log_p = (log_p + update).clamp_min(_LOWEST_LOG_POWER)
            if scaled.noise is None:
                factor = (s.noise_numerator / s.noise_denominator).log() * self.noise_exponents[t]
                noise = (noise * factor.exp()).clamp(_LEAST_NOISE, 1.0)
        offsets, sources = None, None
        if self.settings.corrections:
            correction, offsets, sources = self.head(self._features(log_p, ratio, first, level, scaled), context)
            log_p = log_p + correction
        factor = self._factor(log_p.exp(), offsets) * scaled.unit.sqrt()[:, None, None]
        power = log_p.exp() * scaled.unit[:, None, None, None]
        return CovarianceEstimate(factor, power, noise * scaled.noise_unit, sources)

    def sources(self, estimate: CovarianceEstimate, **detection: Any) -> list[Sources]:
        """The sources that the backbone itself reports, without being told how many.

        Parameters
        ----------
        estimate : CovarianceEstimate
            Of this backbone.
        **detection
            Fields of :class:`risfast.models.decode.MapDetection`; of :class:`risfast.models.decode.PowerDetection`
            for a backbone without learned parts.

        Returns
        -------
        list of Sources, one a scene
        """
        assert estimate.power is not None  # an estimate of this backbone has it
        if estimate.sources is None:
            return sources_of_power(estimate.power, self.atoms.axes, self.setup.tolerance, PowerDetection(**detection))
        return sources_of_map(
            estimate.sources, estimate.power, self.range_cells, self.setup.tolerance, MapDetection(**detection)
        )

    def _scaled(self, measurement: Measurement) -> _Scaled:
        measurement = measurement.one_by_one()
        y = measurement.y.to(torch.complex64)
        codes, channel = measurement.codes.to(torch.complex64), measurement.channel.to(torch.complex64)
        n = channel.shape[-1]
        if n != self.positions.shape[0]:
            raise ShapeError(
                f"channel must have N = {self.positions.shape[0]} columns, one for each element of the backbone's "
                f"array, got {tuple(channel.shape)}"
            )
        phi = channel[:, None] * codes[:, :, None]
        power = torch.view_as_real(y).square().sum(-1).mean((1, 2)).clamp_min(torch.finfo(torch.float32).tiny)
        gain = torch.view_as_real(phi).square().sum(-1).mean((1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny) * n
        noise = None
        if measurement.noise_power is not None:
            noise = (measurement.noise_power.float() / power).clamp(_LEAST_NOISE, 1.0)
        phi = self.atoms.transform(phi * gain.rsqrt()[:, None, None, None]).contiguous()
        return _Scaled(y * power.rsqrt()[:, None, None], phi, noise, power / gain, power)

    def _start(self, scaled: _Scaled) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithmic powers, noise, and the first map: the matched filter |Phi^H y|^2 over its own gain."""
        b, snapshots, m = scaled.y.shape
        v = matched(scaled.phi, scaled.y)
        gram = scaled.phi.flatten(1, 2)
        both = self.atoms.analysis(torch.cat([v.mT @ v.conj(), self.atoms.products(gram, gram)]))
        n, d = both[:b], both[b:]
        d = d.clamp_min(1e-6 * snapshots * m)
        first = (n / d).clamp_min(1e-6 * m).log()
        noise = scaled.noise if scaled.noise is not None else torch.full_like(scaled.unit, _NOISE_START)
        log_p = first - d.log()
        # Scaled so that the powers explain what is received beyond the noise.
        explained = (log_p.exp() * d).sum((1, 2, 3)) / (snapshots * m)
        wanted = (1 - noise).clamp_min(0.05)
        log_p = log_p + (wanted / explained).log()[:, None, None, None]
        first = first - first.mean((1, 2, 3), keepdim=True)
        return log_p.clamp_min(_LOWEST_LOG_POWER), noise, first

    def _features(self, log_p: Tensor, ratio: Tensor, first: Tensor, level: Tensor, scaled: _Scaled) -> Tensor:
        """[B, 4, G_az, G_el, G_r] of order one."""
        scale = math.log(scaled.y.shape[1] * scaled.y.shape[2])
        stacked = torch.stack([(log_p + 8) / 4, ratio / 2, first / 2, (level - scale) / 2], 1)
        return stacked.contiguous(memory_format=torch.channels_last_3d)

    def _factor(self, power: Tensor, offsets: Tensor | None) -> Tensor:
        """F [B, N, K_f] of the strongest atoms."""
        n_az, n_el, n_r = self.atoms.shape
        strongest = power.flatten(1).topk(min(self.settings.columns, n_az * n_el * n_r), dim=1)
        index = strongest.indices
        axes = self.atoms.axes
        coordinates = [
            self.of_azimuth[index // (n_el * n_r)],
            self.of_elevation[index // n_r % n_el],
            self.inverse_range[index % n_r],
        ]
        if offsets is not None:
            moved = offsets.flatten(2).gather(2, index[:, None].expand(-1, 3, -1))
            coordinates = [
                c + step * moved[:, i] for i, (c, step) in enumerate(zip(coordinates, axes.spacing, strict=True))
            ]
        of_azimuth, sin_el, inverse = coordinates
        cos_el = (1 - sin_el.square()).clamp_min(0).sqrt()
        if axes.by_sine:
            sin_az, cos_az = of_azimuth, (1 - of_azimuth.square()).clamp_min(0).sqrt()
        else:
            sin_az, cos_az = of_azimuth.sin(), of_azimuth.cos()
        direction = torch.stack([sin_az * cos_el, sin_el, cos_az * cos_el], -1)
        r = 1 / inverse.clamp_min(0.5 / axes.range_m[1])
        phase = steering_phase(self.positions, direction, r, self.setup.array.wavenumber, self.setup.wavefront)
        amplitude = strongest.values.sqrt()[..., None]
        return torch.complex(amplitude * phase.cos(), amplitude * phase.sin()).mT
