"""A transformer over snapshots: the formulation of earlier systems, kept as the baseline to beat."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from risfast.covariance import covariance_from_factor, effective_covariance
from risfast.detect import DetectionOptions, Sources, detect_sources
from risfast.errors import ShapeError
from risfast.geometry import SearchGrid
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.setup import Setup

_SNR_FEATURES = 8  # cosines and sines of an SNR, at octaves
_SNR_PERIOD_DB = 100.0  # the longest of their periods: wider than any SNR that is met
_SNR_LIMIT_DB = 40.0
_MARGIN = 1.05  # a bounded output reaches its bounds only at infinity: they are put a little beyond the field of view


@dataclass(frozen=True)
class TransformerOptions:
    """Size of the network and reach of its heads; the defaults make about 340 thousand parameters.

    Attributes
    ----------
    n_antennas : int
        M; the width of the network's inputs is bound to it.
    width, n_heads, n_layers, hidden : int
        Of the self-attention: features of a token (divisible by ``n_heads``), heads, layers, features within the
        feed-forward part.
    n_columns : int
        Columns of each of the two factors; F has twice as many.
    column_width : int
        Features from which a column is made.
    max_sources : int
        Positions that are predicted.

    Raises
    ------
    ValueError
        A value is out of its range, or ``width`` no multiple of ``n_heads``.
    """

    n_antennas: int = 16
    width: int = 96
    n_heads: int = 4
    n_layers: int = 2
    hidden: int = 224
    n_columns: int = 5
    column_width: int = 64
    max_sources: int = 5

    def __post_init__(self) -> None:
        """Check every value."""
        for name, value in vars(self).items():
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.width % self.n_heads:
            raise ValueError(f"width must be a multiple of n_heads = {self.n_heads}, got {self.width}")


@dataclass(frozen=True)
class TransformerEstimate(CovarianceEstimate):
    """A covariance, and the positions that the auxiliary heads predict."""

    # (B, max_sources, 3) Azimuth, elevation (radians), range (metres), in no order; they say nothing of how many
    # sources there are
    positions: Tensor | None = None


class _Block(nn.Module):
    """Self-attention and a feed-forward part, both residual, normalised first."""

    def __init__(self, width: int, n_heads: int, hidden: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.before_forward = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """From and to (B, T, width)."""
        split = self.query_key_value(self.before_attention(tokens)).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.mix(seen.transpose(1, 2).flatten(-2))
        return tokens + self.feed_forward(self.before_forward(tokens))


class _SnrEmbedding(nn.Module):
    """A vector for the SNR of each scene, and one that stands for an SNR that is not known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unknown = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.layers = nn.Sequential(nn.Linear(_SNR_FEATURES, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, mean_power: Tensor, noise_power: Tensor | None) -> Tensor:
        """(B, width) from mean |y|^2 and sigma^2, (B,) both."""
        known = noise_power is not None
        sigma2 = noise_power if noise_power is not None else torch.ones_like(mean_power)
        tiny = torch.finfo(mean_power.dtype).tiny
        # mean |y|^2 / sigma^2 - 1 estimates the SNR; as the difference of powers it may come out negative
        signal = (mean_power - sigma2).clamp_min(tiny)
        snr_db = 10 * (signal.log10() - sigma2.clamp_min(tiny).log10())
        octave = 2.0 ** torch.arange(_SNR_FEATURES // 2, dtype=snr_db.dtype, device=snr_db.device)
        angle = snr_db.clamp(-_SNR_LIMIT_DB, _SNR_LIMIT_DB)[:, None] * octave * (2 * math.pi / _SNR_PERIOD_DB)
        embedded = self.layers(torch.cat([angle.cos(), angle.sin()], -1))
        # both take part, so that every parameter has a gradient in every step, as distributed training wants
        return known * embedded + (not known) * self.unknown


class TransformerBackbone(nn.Module):
    """Joint snapshot tokens (y_l, c_l), channel tokens and an SNR embedding; self-attention; a pooled head of factors.

    F = [A_ang, sqrt(lambda) A_rng], two factors from heads of their own with a learned balance lambda; the norm of a
    column stays below sqrt(N) (and sqrt(lambda N), lambda < 1).

    Parameters
    ----------
    setup : Setup
        N elements.
    options : TransformerOptions or None
        Size of the network.

    Notes
    -----
    A. Vaswani et al., "Attention is all you need", NeurIPS 2017, normalised first and without positions: the order of
    the snapshots does not matter, and L may be any. y is scaled to unit mean power in each scene, so the scale of the
    measurements does not matter either.

    The network has to learn the quadratic map from y to a covariance for every channel and code, and does not:
    it memorises its training scenes. It is here to be compared with.
    """

    def __init__(self, setup: Setup, options: TransformerOptions | None = None) -> None:
        super().__init__()
        self.setup, self.array = setup, setup.array
        self._options = options or TransformerOptions()
        o, n = self._options, setup.array.n_elements
        self.embed_snapshot = nn.Linear(2 * (o.n_antennas + n), o.width)
        self.embed_channel = nn.Linear(2 * n, o.width)
        self.antenna = nn.Parameter(0.1 * torch.randn(o.n_antennas, o.width))
        self.embed_snr = _SnrEmbedding(o.width)
        self.blocks = nn.ModuleList(_Block(o.width, o.n_heads, o.hidden) for _ in range(o.n_layers))
        self.final = nn.LayerNorm(o.width)
        self.angle_head = self._factor_head()
        self.range_head = self._factor_head()
        self.balance = nn.Parameter(torch.zeros(()))  # lambda = sigmoid(balance)
        self.position_head = nn.Sequential(
            nn.Linear(o.width, o.width), nn.GELU(), nn.Linear(o.width, 3 * o.max_sources)
        )

    def _factor_head(self) -> nn.Module:
        o = self._options
        widen, split = nn.Linear(o.width, o.n_columns * o.column_width), (o.n_columns, o.column_width)
        column = nn.Linear(o.column_width, 2 * self.array.n_elements)
        return nn.Sequential(widen, nn.GELU(), nn.Unflatten(-1, split), column)

    def options(self) -> dict[str, Any]:
        """What the network was made with, as plain values."""
        return asdict(self._options)

    def forward(self, measurement: Measurement) -> TransformerEstimate:
        """Estimate the covariance that the surface receives.

        Parameters
        ----------
        measurement : Measurement
            B scenes of any number of snapshots; M and N as the network was made for.

        Returns
        -------
        TransformerEstimate
            ``factor`` (B, N, 2 n_columns) in the precision of the weights; ``noise_power`` as given.

        Raises
        ------
        ShapeError
            M or N is not the network's, or the measurements have no batch axis.
        """
        self._check(measurement)
        pooled = self.final(self._tokens(measurement)).mean(1)  # [B, width]
        by_angle, by_range = self._columns(self.angle_head, pooled), self._columns(self.range_head, pooled)
        factor = torch.cat([by_angle, self.balance.sigmoid().sqrt() * by_range], -1)
        positions = self._positions(self.position_head(pooled))
        return TransformerEstimate(factor, noise_power=measurement.noise_power, positions=positions)

    def _check(self, measurement: Measurement) -> None:
        m, n = self._options.n_antennas, self.array.n_elements
        shapes = {name: tuple(getattr(measurement, name).shape) for name in ("y", "codes", "channel")}
        if any(len(shape) != 3 for shape in shapes.values()):
            raise ShapeError(f"measurements must have a batch axis, (B, L, M), (B, L, N) and (B, M, N), got {shapes}")
        if shapes["channel"][1:] != (m, n):
            raise ShapeError(
                f"this network was made for M = {m} antennas and N = {n} elements, got a channel of shape "
                f"{shapes['channel']}; make one for that array with TransformerOptions(n_antennas=M)"
            )
        if shapes["y"][1] == 0:
            raise ShapeError(f"y must hold at least one snapshot, got shape {shapes['y']}")

    def _tokens(self, measurement: Measurement) -> Tensor:
        """What comes out of self-attention, (B, 1 + M + L, width)."""
        real = self.antenna.dtype
        y = measurement.y
        power = (y.real.square() + y.imag.square()).mean((1, 2))  # [B]
        scale = torch.where(power > 0, power, torch.ones_like(power)).rsqrt()
        snapshots = torch.cat([_parts(y * scale[:, None, None]), _parts(measurement.codes)], -1)
        noise = None if measurement.noise_power is None else measurement.noise_power.to(real)
        snr = self.embed_snr(power.to(real), noise)[:, None]
        antennas = self.embed_channel(_parts(measurement.channel).to(real)) + self.antenna
        tokens = torch.cat([snr, antennas, self.embed_snapshot(snapshots.to(real))], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def _columns(self, head: nn.Module, pooled: Tensor) -> Tensor:
        """Columns (B, N, n_columns) of norm below sqrt(N)."""
        n = self.array.n_elements
        value = head(pooled).to(self.antenna.dtype)  # [B, n_columns, 2 N], at full precision from here
        value = value * (1 + value.square().sum(-1, keepdim=True) / n).rsqrt()
        return torch.complex(value[..., :n], value[..., n:]).mT

    def _positions(self, raw: Tensor) -> Tensor:
        o = self._options
        x = _MARGIN * raw.to(self.antenna.dtype).unflatten(-1, (o.max_sources, 3)).tanh()
        region = self.setup.region
        near, far = map(math.log, region.range_m)
        ends = enumerate((region.azimuth_rad, region.elevation_rad, (near, far)))
        azimuth, elevation, log_range = ((low + high) / 2 + (high - low) / 2 * x[..., i] for i, (low, high) in ends)
        return torch.stack([azimuth, elevation, log_range.exp()], -1)

    def sources(
        self,
        estimate: CovarianceEstimate,
        *,
        grid: SearchGrid | None = None,
        sample: Tensor | None = None,
        beta: float = 0.0,
        snr_db: Tensor | float | None = None,
        loading: float = 1e-2,
        options: DetectionOptions | None = None,
    ) -> list[Sources]:
        """Find the sources in the Capon spectrum of an estimate.

        Parameters
        ----------
        estimate : CovarianceEstimate
            Of B scenes.
        grid : SearchGrid or None
            Coarse grid; that of the setup by default.
        sample, beta, snr_db
            See :func:`risfast.covariance.effective_covariance`.
        loading, options
            See :func:`risfast.detect.detect_sources`.

        Returns
        -------
        list of Sources
            One a scene.
        """
        with torch.no_grad():
            own = covariance_from_factor(estimate.factor)
            covariance = effective_covariance(own, sample=sample, beta=beta, snr_db=snr_db)
            return detect_sources(covariance, self.setup, grid, loading=loading, options=options)


def _parts(x: Tensor) -> Tensor:
    """Real and imaginary parts side by side: (..., D) complex to (..., 2 D) real."""
    return torch.cat([x.real, x.imag], -1)
