"""What the base station sees: codes, channels, the sensing operator Phi_l = H diag(c_l), symbols, noise, impairments.

Everything random takes its numbers from a :class:`Draws` (``risfast.data.SceneRandom`` is one), a batch of scenes at a
time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from risfast.codes import CODE_KINDS, make_codes, quantize_turns
from risfast.draws import Draws, Stream
from risfast.errors import ShapeError
from risfast.geometry import PlanarArray
from risfast.impairments import Impairments, impair_codes, impaired_steering
from risfast.steering import steering_vectors

__all__ = [
    "CODE_KINDS",
    "Draws",
    "Impairments",
    "SensingOperator",
    "Stream",
    "add_noise",
    "check_measurements",
    "impair_codes",
    "impaired_steering",
    "make_codes",
    "quantize_turns",
    "rician_channel",
    "source_symbols",
]


def rician_channel(
    array: PlanarArray,
    n_antennas: int,
    factor: Tensor | float,
    draws: Draws,
    *,
    departure_azimuth_rad: float = math.radians(60.0),
    departure_elevation_rad: float = math.radians(30.0),
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Rician channel from the surface to a base station with a half-wavelength line of antennas.

    H = sqrt(K / (K + 1)) b a^H + sqrt(1 / (K + 1)) W with b the base station's and a the surface's planar steering
    vector in directions drawn per scene, and W_mn ~ CN(0, 1): E|H_mn|^2 = 1 for every K.

    Parameters
    ----------
    array : PlanarArray
        The surface, N elements.
    n_antennas : int
        M.
    factor : float or real tensor, shape (B,)
        Rician factor K >= 0, linear: power of the line of sight over that of the rest.
    draws : Draws
        Random numbers of B scenes.
    departure_azimuth_rad, departure_elevation_rad : float
        The base station stands uniformly within +- these angles of the surface's broadside; the arrival angle is
        uniform within +-departure_azimuth_rad of its own.
    dtype : torch.complex64 or torch.complex128
        Of the result; it is computed in complex128.

    Returns
    -------
    complex tensor, shape (B, M, N)

    Raises
    ------
    ValueError
        ``n_antennas`` < 1 or a negative factor.
    """
    if n_antennas < 1:
        raise ValueError(f"n_antennas must be at least 1, got {n_antennas}")
    k = torch.as_tensor(factor, dtype=torch.float64, device=draws.device).expand(draws.batch)[:, None, None]
    if not bool((k >= 0).all()):
        raise ValueError("factor (the Rician factor) must be >= 0 and not NaN")
    angles = 2 * draws.uniform(Stream.LINE_OF_SIGHT, (3,)) - 1
    azimuth, elevation = angles[:, 0] * departure_azimuth_rad, angles[:, 1] * departure_elevation_rad
    surface = steering_vectors(
        array, azimuth, elevation, torch.ones_like(azimuth), wavefront="planar", dtype=torch.complex128
    )
    antenna = torch.arange(n_antennas, device=draws.device, dtype=torch.float64)
    phase = math.pi * antenna * (angles[:, 2:] * departure_azimuth_rad).sin()
    line_of_sight = torch.polar(torch.ones_like(phase), phase)[:, :, None] * surface.conj()[:, None, :]
    scattered = draws.complex_normal(Stream.SCATTERING, (n_antennas, array.n_elements))
    return ((k / (k + 1)).sqrt() * line_of_sight + (1 / (k + 1)).sqrt() * scattered).to(dtype)


def check_measurements(y: Tensor | None, codes: Tensor, channel: Tensor) -> None:
    """Check that measurements (.., L, M), codes (.., L, N) and channel (.., M, N) belong together.

    Parameters
    ----------
    y : complex tensor, shape (..., L, M), or None
        None checks the codes and the channel alone.
    codes : complex tensor, shape (..., L, N)
        The code of each snapshot.
    channel : complex tensor, shape (..., M, N)
        H; batch dimensions broadcast.

    Raises
    ------
    ShapeError
        Sizes disagree; a transposed argument is recognised and named.
    TypeError, ValueError
        Not complex, different dtypes or devices, or NaN or infinite values.
    """
    given = {"y": y, "codes": codes, "channel": channel}
    tensors = {name: t for name, t in given.items() if t is not None}
    for name, t in tensors.items():
        if not t.is_complex():
            raise TypeError(
                f"{name} must be complex64 or complex128, got {t.dtype}; convert it with .to(torch.complex64)"
            )
        if t.ndim < 2:
            raise ShapeError(f"{name} must have at least two dimensions, got shape {tuple(t.shape)}")
    for name, t in tensors.items():
        if t.dtype != codes.dtype or t.device != codes.device:
            raise ValueError(
                f"{name} is {t.dtype} on {t.device} but codes is {codes.dtype} on {codes.device}; use one for all"
            )
    (n_snapshots, n), (m, n_channel) = codes.shape[-2:], channel.shape[-2:]
    if n_channel != n:
        mend = ""
        if channel.shape[-2] == n:
            mend = "; channel looks transposed, pass channel.mT"
        elif codes.shape[-2] == n_channel:
            mend = "; codes looks transposed, pass codes.mT"
        raise ShapeError(
            f"codes (.., L, N) and channel (.., M, N) must share N, got {tuple(codes.shape)} and "
            f"{tuple(channel.shape)}{mend}"
        )
    if y is not None and y.shape[-2:] != (n_snapshots, m):
        mend = "; y looks transposed, pass y.mT" if y.shape[-2:] == (m, n_snapshots) else ""
        raise ShapeError(
            f"y must have shape (.., L, M) = (.., {n_snapshots}, {m}) as codes and channel say, "
            f"got {tuple(y.shape)}{mend}"
        )
    try:
        torch.broadcast_shapes(*(t.shape[:-2] for t in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ShapeError(f"the batch dimensions must agree or broadcast, got {shapes}") from None
    for name, t in tensors.items():
        if not bool(torch.isfinite(t).all()):
            raise ValueError(f"{name} must be finite; it holds NaN or infinite values")


class SensingOperator:
    """Phi_l = H diag(c_l) of every snapshot, applied without forming any of them.

    Parameters
    ----------
    codes : complex tensor, shape (..., L, N)
        Codes c_l; any modulus.
    channel : complex tensor, shape (..., M, N)
        H. Batch dimensions broadcast against those of ``codes``.

    Raises
    ------
    ShapeError, TypeError, ValueError
        See :func:`check_measurements`.
    """

    def __init__(self, codes: Tensor, channel: Tensor) -> None:
        check_measurements(None, codes, channel)
        self.codes = codes
        self.channel = channel

    def apply(self, x: Tensor) -> Tensor:
        """What the antennas see of what falls on the surface: y_l = H (c_l x_l).

        Parameters
        ----------
        x : complex tensor, shape (..., L, N)
            Field on the surface in each snapshot.

        Returns
        -------
        complex tensor, shape (..., L, M)

        Raises
        ------
        ShapeError
            L or N is not that of the codes.
        """
        if x.shape[-2:] != self.codes.shape[-2:]:
            raise ShapeError(f"x must have shape (.., L, N) = {tuple(self.codes.shape)}, got {tuple(x.shape)}")
        return (self.codes * x) @ self.channel.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoint of :meth:`apply`: x_l = conj(c_l) (H^H y_l).

        Parameters
        ----------
        y : complex tensor, shape (..., L, M)
            Something at the antennas in each snapshot.

        Returns
        -------
        complex tensor, shape (..., L, N)

        Raises
        ------
        ShapeError
            L or M is not that of the codes and the channel.
        """
        expected = (self.codes.shape[-2], self.channel.shape[-2])
        if y.shape[-2:] != expected:
            raise ShapeError(f"y must have shape (.., L, M) = (.., {expected[0]}, {expected[1]}), got {tuple(y.shape)}")
        return self.codes.conj() * (y @ self.channel.conj())

    def project(self, factor: Tensor) -> Tensor:
        """Phi_l F of a factor, for all snapshots at once.

        Parameters
        ----------
        factor : complex tensor, shape (..., N, K)
            F.

        Returns
        -------
        complex tensor, shape (..., L, M, K)

        Raises
        ------
        ShapeError
            N is not that of the codes.
        """
        if factor.shape[-2] != self.codes.shape[-1]:
            raise ShapeError(
                f"factor must have shape (.., N, K), N = {self.codes.shape[-1]}, got {tuple(factor.shape)}"
            )
        m, k = self.channel.shape[-2], factor.shape[-1]
        # [.., N, M, 1] * [.., N, 1, K]: one GEMM over N instead of a stack of L x N x K
        pairs = self.channel.mT[..., :, None] * factor[..., :, None, :]
        return (self.codes @ pairs.flatten(-2)).unflatten(-1, (m, k))

    def gram(self) -> Tensor:
        """Phi_l Phi_l^H = H diag(|c_l|^2) H^H.

        Returns
        -------
        complex tensor, shape (..., L, M, M)
            Exactly Hermitian.
        """
        m = self.channel.shape[-2]
        # sum_n |c_ln|^2 h_mn conj(h_m'n) is one GEMM over n
        pairs = self.channel.mT[..., :, None] * self.channel.mT.conj()[..., None, :]  # [.., N, M, M]
        gain = self.codes.abs().square().to(self.codes.dtype)
        gram = (gain @ pairs.flatten(-2)).unflatten(-1, (m, m))
        return (gram + gram.mH) / 2


def source_symbols(
    n_snapshots: int,
    power: Tensor,
    draws: Draws,
    *,
    correlation: float = 1.0,
    coherent: Tensor | None = None,
) -> Tensor:
    """Gaussian symbols s_l ~ CN(0, P) that change every snapshot.

    Parameters
    ----------
    n_snapshots : int
        L.
    power : real tensor, shape (B, K)
        p_k >= 0.
    draws : Draws
        Random numbers of B scenes.
    correlation : float in [0, 1]
        Magnitude of E[s_i conj(s_k)] / sqrt(p_i p_k) of two sources of the coherent group; 1 makes them copies of one
        signal with a fixed, random phase each, as multipath does.
    coherent : bool tensor, shape (B, K), or None
        Which sources belong to the coherent group of their scene; the others are independent of all.

    Returns
    -------
    complex128 tensor, shape (B, L, K)

    Raises
    ------
    ValueError
        ``correlation`` is out of its range.
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation must lie in [0, 1], got {correlation!r}")
    n_sources = power.shape[1]
    symbols = draws.complex_normal(Stream.SYMBOLS, (n_sources, n_snapshots))  # one more source shifts no other's
    if coherent is not None:
        phase = 2 * math.pi * draws.uniform(Stream.COHERENT_PHASE, (n_sources, 1))
        common = draws.complex_normal(Stream.COMMON_SYMBOL, (1, n_snapshots))
        copies = torch.polar(torch.full_like(phase, math.sqrt(correlation)), phase) * common
        symbols = torch.where(coherent[..., None], copies + math.sqrt(1 - correlation) * symbols, symbols)
    return (power.double().sqrt()[..., None] * symbols).mT


def add_noise(clean: Tensor, snr_db: Tensor | float, draws: Draws) -> tuple[Tensor, Tensor]:
    """Add n ~ CN(0, sigma^2 I) with sigma^2 = mean |clean|^2 / SNR, a mean over the snapshots and antennas.

    Parameters
    ----------
    clean : complex128 tensor, shape (B, L, M)
        What the antennas would see without noise.
    snr_db : float or real tensor, shape (B,)
        Exact for the snapshots at hand, not for their ensemble.
    draws : Draws
        Random numbers of B scenes.

    Returns
    -------
    y : complex128 tensor, shape (B, L, M)
    noise_power : float64 tensor, shape (B,)
        sigma^2; 1 where ``clean`` is zero throughout, so that a scene without sources is noise of unit power.
    """
    snr = torch.as_tensor(snr_db, dtype=torch.float64, device=clean.device)
    signal = clean.abs().square().mean((-2, -1))
    noise_power = torch.where(signal > 0, signal / 10 ** (snr / 10), torch.ones_like(signal))
    noise = draws.complex_normal(Stream.NOISE, clean.shape[1:])
    return clean + noise_power.sqrt()[:, None, None] * noise, noise_power
