"""The floors on paper of every shipped kernel: what its tiles compute and move, and how long that takes an H200.

The reference system: N = 144 elements in 12 x 12, grid 361 x 181 x 7, K = 10 columns, complex64, B = 256. Work is that
of one scene and counts what the tiles compute, padding included, but not integer and address arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Of an H200, flops and bytes a second. Products in tf32x3 are three in tf32; those in float64 run on its matrix units.
RATES = {"float32": 67e12, "tf32x3": 495e12 / 3, "float64 products": 67e12, "float64": 33.5e12}
BANDWIDTH = 4.8e12
STEERING = 45  # float32 operations an element of a steering vector: phase, sine, cosine
_STEERING_DOUBLE = 70  # the same in float64, with longer polynomials

N, N_H, N_V, R = 144, 12, 12, 7
G_AZ, G_EL = 361, 181
HALF_AZ, HALF_EL = 181, 91
DIRECTIONS = G_AZ * G_EL
POINTS = DIRECTIONS * R
NODES_AZ, NODES_EL = 60, 36  # full rank
FEW_AZ, FEW_EL = 44, 28  # low rank
CANDIDATES = 20
MAP = 8 * DIRECTIONS  # bytes of power and plane


def _up(size: int, block: int) -> int:
    """Size that is computed, in whole blocks."""
    return math.ceil(size / block) * block


@dataclass(frozen=True)
class Floor:
    """One launch, a scene.

    Attributes
    ----------
    step : str
    arithmetic : str
        How the flops are counted.
    flops : dict
        By what they run on, a key of ``RATES``.
    bytes : float
        Read from and written to memory once; what is read again comes from the caches.
    remark : str
    """

    step: str
    arithmetic: str
    flops: dict[str, float]
    bytes: float
    remark: str = ""

    @property
    def compute_us(self) -> float:
        """Time of the arithmetic, one kind after the other."""
        return 1e6 * sum(count / RATES[kind] for kind, count in self.flops.items())

    @property
    def memory_us(self) -> float:
        """Time of the bytes."""
        return 1e6 * self.bytes / BANDWIDTH

    @property
    def floor_us(self) -> float:
        """The larger of both."""
        return max(self.compute_us, self.memory_us)


def _lag(dtype: str) -> list[Floor]:
    """In float64 the rows are products on matrix units, and the map and what is read have twice the size."""
    double = dtype == "float64"
    suffix, size = (", float64", 8.0) if double else ("", 4.0)
    lags = 2 * N_V - 1
    coefficients = 8.0 * _up(R, 8) * N_H * 16 * (N_V * N_V + lags)
    rows = 2.0 * _up(2 * G_EL, 32) * R * N_H * _up(2 * lags, 16)
    evaluation = 2.0 * 2 * (N_H - 1) * 192 * HALF_EL * 2 * R
    made = 2 * size * R * N_H * lags
    written = size * 2 * G_EL * R * N_H
    return [
        Floor(
            f"lag coefficients{suffix}",
            "8 planes x 12 columns x 16 lags, 8 flops for each of 144 pairs of rows and each of 23 vertical lags",
            {dtype: coefficients},
            size * N * N + made,
        ),
        Floor(
            f"lag rows{suffix}",
            "[384 x 48] x [48 x 84], " + ("products" if double else "fused operations"),
            {"float64 products" if double else dtype: rows},
            made + written,
        ),
        Floor(
            f"lag evaluation and map{suffix}",
            "11 lags x 2 fused operations for 192 half-azimuths x 91 half-elevations x 2 images x 7 planes",
            {dtype: evaluation},
            written + (size + 4) * DIRECTIONS,
        ),
    ]


def _dense() -> list[Floor]:
    triangular = sum(min(N, first + 32) for first in range(0, N, 32))  # elements read by the blocks of 32 columns
    nodes = NODES_AZ * NODES_EL * R
    few = FEW_AZ * FEW_EL * R
    few_columns = 16
    residual = 2 * 8 * N * few_columns
    return [
        Floor(
            "dense, K = 10 (16 computed), spherical",
            "8 N 16 flops a point, steering shared by two scenes",
            {"tf32x3": 8.0 * N * few_columns * POINTS, "float32": STEERING * N / 2 * POINTS},
            8.0 * N * 10 + MAP,
        ),
        Floor(
            "dense on 60 x 36 nodes, triangular, K = 144",
            f"8 x 32 x {triangular} flops a node and plane, {triangular} steering elements",
            {"tf32x3": 8.0 * 32 * triangular * nodes, "float32": float(STEERING * triangular * nodes)},
            4.0 * N * N + 4.0 * nodes,
        ),
        Floor(
            "residual, K = 10 (16 computed), spherical",
            "16 N 16 flops a point, steering made twice",
            {"tf32x3": float(residual) * POINTS, "float32": 2.0 * STEERING * N * POINTS},
            16.0 * N * 10 + MAP,
        ),
        Floor(
            "residual on 44 x 28 nodes",
            "the same for 8624 nodes",
            {"tf32x3": float(residual) * few, "float32": 2.0 * STEERING * N * few},
            16.0 * N * 10 + 4.0 * few,
        ),
    ]


def _interpolation(step: str, n_az: int, n_el: int) -> Floor:
    """Elevation takes the place of azimuth, so that azimuth is stored fastest."""
    tiles = math.ceil(G_EL / 64) * math.ceil(G_AZ / 32)
    inner, outer = _up(n_el, 16), _up(n_az, 16)
    flops = 2.0 * 64 * outer * (inner + 32) * tiles * R
    text = f"{tiles} tiles of 64 x 32, 2 x 64 x {outer} x ({inner} + 32) flops a tile and plane"
    return Floor(step, text, {"tf32x3": flops}, 4.0 * n_az * n_el * R + MAP)


def _inverse() -> list[Floor]:
    blocks = N // 16
    products = sum(j + (blocks - 1 - j) * j + j * (j + 1) // 2 for j in range(blocks))
    off_diagonal = blocks * (blocks - 1)
    cube = 8.0 * 16**3
    side = math.ceil(N / 32)
    gram = 8.0 * 32 * 32 * sum((block + 1) * (N - 32 * block) for block in range(side))
    upper = 8.0 * N * N  # bytes of a triangle in complex128
    latency = "144 pivots and 9 barriers, one after the other, take longer"
    return [
        Floor(
            "inverse factor, float64",
            f"{products} + {off_diagonal} products of 16 x 16 x 16 complex blocks",
            {"float64 products": (products + off_diagonal) * cube},
            4.0 * N * N * 2 + 2 * upper,
            latency,
        ),
        Floor(
            "inverse factor, float32",
            f"{products} + 3 x {off_diagonal} products of 16 x 16 x 16 complex blocks, IEEE",
            {"float32": (products + 3 * off_diagonal) * cube},
            4.0 * N * N * 2 + upper,
            latency,
        ),
        Floor(
            "product W W^H, float64",
            "15 tiles of 32 x 32 complex, sums from the tile's own column on",
            {"float64 products": gram},
            upper + 2 * upper,
        ),
        Floor(
            "product W W^H, float32",
            "the same in IEEE, fused operations",
            {"float32": gram},
            (upper + 2 * upper) / 2,
        ),
    ]


def _adjoints() -> list[Floor]:
    tiles = 15
    weights = 8.0 * DIRECTIONS  # a number and its plane in each direction
    nodes = NODES_AZ * NODES_EL * R
    half = 2.0 * 32 * 32 * _up(G_AZ, 16)
    interpolation = R * 2 * math.ceil(G_EL / 32) * (half + 2.0 * 64 * 32 * 32)
    return [
        Floor(
            "dense synthesis, weights of a map",
            "15 tiles of 32 x 32 complex, 8 flops an entry and direction; 64 steering elements a tile and direction",
            {"tf32x3": 8.0 * 32 * 32 * tiles * DIRECTIONS, "float32": 64.0 * STEERING * tiles * DIRECTIONS},
            weights + 4.0 * N * N,
        ),
        Floor("sum of parts", "one part at B = 256", {"float32": 2.0 * N * N}, 4.0 * N * N + 8.0 * N * N),
        Floor(
            "adjoint interpolation, weights of a map",
            "2 node blocks x 6 elevation blocks, [32 x 368] x [368 x 32] and [64 x 32] x [32 x 32], 7 planes",
            {"tf32x3": interpolation},
            weights + 4.0 * nodes,
        ),
    ]


def _lag_adjoint(dtype: str) -> list[Floor]:
    double = dtype == "float64"
    suffix, size = (", float64", 8.0) if double else ("", 4.0)
    products, how = ("float64 products", "products") if double else (dtype, "fused operations")
    lags = 2 * N_V - 1
    weights = (size + 4) * DIRECTIONS  # a number and its plane in each direction
    written = size * 2 * G_EL * R * N_H
    made = 2 * size * R * N_H * lags
    return [
        Floor(
            f"weight rows{suffix}, weights of a map",
            f"2 products of 192 half-azimuths and 16 lags at 181 elevations and 7 planes, {how}",
            {products: 2.0 * 2 * 192 * 16 * G_EL * R},
            weights + written,
        ),
        Floor(
            f"lags{suffix}",
            f"[84 x 368] x [368 x 64], {how}",
            {products: 2.0 * R * N_H * _up(2 * G_EL, 16) * _up(2 * lags, 32)},
            written + made,
        ),
        Floor(
            f"toeplitz{suffix}",
            "15 tiles of 32 x 32, 14 flops an entry and plane",
            {dtype: 14.0 * 32 * 32 * 15 * R},
            made + 2 * size * N * N,
        ),
    ]


def _forms(step: str, points: int, double: bool, remark: str = "") -> Floor:
    elements = sum(min(N, first + 16) for first in range(0, N, 16))  # read by the blocks of 16 columns
    products = 8.0 * 16 * elements * points
    steering = (_STEERING_DOUBLE if double else STEERING) * elements * float(points)
    flops = {"float64 products": products, "float64": steering} if double else {"tf32x3": products, "float32": steering}
    text = f"{points} points, 8 x 16 x {elements} flops and {elements} steering elements each"
    return Floor(step, text, flops, 16.0 * N * N + 32.0 * points, remark)


def _detection() -> list[Floor]:
    survivors, slots = 190, 64
    refined = CANDIDATES * (19 + 2)
    newton = 1400.0 + 2 * 19 * 9
    iterations = 10
    grid, nodes = 41, 7
    tile = 2.0 * 16 * 16 * nodes + 2 * (2.0 * 32 * 16 * 16 + 2 * 2.0 * 32 * 32 * 16)
    alone = "one program a scene; its rounds, one after the other, take longer"
    return [
        Floor("maxima, window (7, 7, 3)", "2 comparisons a point", {"float32": 2.0 * POINTS}, 4.0 * POINTS),
        Floor(
            "ranks",
            "about 190 survivors, 4 operations a pair",
            {"float32": 4.0 * survivors**2},
            8.0 * survivors + 28.0 * slots,
        ),
        Floor(
            "suppression, 64 candidates to 20",
            "128 lanes, 15 operations in each of 20 rounds",
            {"float32": 128.0 * 15 * 20},
            16.0 * slots + 8.0 * 20,
            alone,
        ),
        _forms("forms of a walk: 8 steps of 21 points and the start", CANDIDATES + 8 * refined, False),
        _forms("forms on 7 x 7 x 7 nodes of 20 boxes", CANDIDATES * nodes**3, False),
        _forms("forms of two steps below the grid, float64", CANDIDATES + 2 * refined, True),
        Floor(
            "fine grid 41 x 41 x 41 of 20 boxes",
            "41 azimuths, 16 x 16 x 7 sums, products of 32 x 16 x 16 and 32 x 32 x 16",
            {"tf32x3": tile * grid * CANDIDATES},
            4.0 * CANDIDATES * nodes**3,
        ),
        Floor(
            "stencil, newton, choose of 10 iterations",
            "about 1700 flops in float64 a candidate and iteration",
            {"float64": newton * CANDIDATES * iterations},
            CANDIDATES * iterations * (456.0 * 2 + 248 + 48 + 420 + 32),
            "30 launches",
        ),
    ]


FLOORS: tuple[Floor, ...] = (
    *_lag("float32"),
    *_lag("float64"),
    *_dense(),
    _interpolation("interpolation from 60 x 36 nodes", NODES_AZ, NODES_EL),
    _interpolation("interpolation from 44 x 28 nodes", FEW_AZ, FEW_EL),
    *_inverse(),
    *_adjoints(),
    *_lag_adjoint("float32"),
    *_lag_adjoint("float64"),
    *_detection(),
)


def _amount(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """In the largest unit that it fills."""
    for size, unit in units:
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _time(us: float) -> str:
    return f"{us:.0f}" if us >= 10 else f"{us:.2g}"


def floor_table() -> list[str]:
    """The table of ``kernels/README.md``."""
    lines = ["| step | arithmetic | flops | bytes | floor |", "| --- | --- | --- | --- | --- |"]
    for floor in FLOORS:
        flops = ", ".join(
            f"{_amount(count, ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')))} {kind}" for kind, count in floor.flops.items()
        )
        moved = _amount(floor.bytes, ((1e6, "MB"), (1e3, "KB")))
        bound = "flops" if floor.compute_us >= floor.memory_us else "bytes"
        remark = f"; {floor.remark}" if floor.remark else ""
        lines.append(
            f"| {floor.step} | {floor.arithmetic} | {flops} | {moved} | {_time(floor.floor_us)} us ({bound}){remark} |"
        )
    return lines
