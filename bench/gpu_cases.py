"""Every configuration of a kernel that is shipped, as the compilers are given it: names and constants, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

POINTERS = {"float32": "*fp32", "float64": "*fp64"}
# What a constant stands for: "products" is the default precision of the target, a dtype its Triton type, and a name
# that begins with an underscore is looked up in the module of the kernel.
PRODUCTS = {"PRECISION": "products"}


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration.

    Attributes
    ----------
    name : str
    module, kernel : str
        ``risfast.kernels.<module>.<kernel>``.
    pointer : str
        Triton's type of the pointers that ``types`` does not name.
    chosen : tuple
        The function of the module that pins the tile, and its arguments; names of dtypes are dtypes.
    constants : dict
        Arguments that are compiled in, without those of the tile.
    types : dict
        Triton's types of arguments that are neither such pointers nor int32.
    runs_on : {"matrix", "ieee", "fused", "other"}
        What the arithmetic is held to: matrix units; products in IEEE float32, which run on AMD's matrix units and as
        fused operations on NVIDIA; fused operations without matrix units; nothing in particular.
    """

    name: str
    module: str
    kernel: str
    pointer: str
    chosen: tuple[str | int, ...]
    constants: dict[str, object] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    runs_on: str = "other"

    @property
    def computes_in_double(self) -> bool:
        """Whether it may: float64 throughout, or coordinates of candidates."""
        return self.pointer == "*fp64" or self.module in ("forms", "descent")


def _lag() -> Iterator[Case]:
    for dtype, pointer in POINTERS.items():
        accumulator = {"ACC": dtype}
        products = "ieee" if dtype == "float32" else "matrix"
        for matrix, entries in POINTERS.items():
            types = {"q_ptr": entries, "order_ptr": "*i32"}
            chosen = ("coefficients_configuration",)
            name = f"coefficients {dtype} from {matrix}"
            yield Case(name, "lag", "lag_coefficients_kernel", pointer, chosen, accumulator, types, "fused")
        chosen = ("rows_configuration",)
        yield Case(f"rows {dtype}", "lag", "lag_rows_kernel", pointer, chosen, accumulator, runs_on=products)
        for n_h in (1, 12, 16, 32) if dtype == "float64" else (1, 12, 16, 32, 64):
            for form, volume in (("reciprocal", False), ("complement", False), ("linear", True)):
                if n_h != 12 and form != "reciprocal":
                    continue
                constants = {"N_H": n_h, "SCENES": "_MOST_SCENES", "MIRROR_AZ": True, "IMAGES": 2}
                constants |= {"EPILOGUE": form, "VOLUME": volume}
                chosen, types = ("lag_configuration", n_h, dtype), {"plane_ptr": "*i32"}
                name = f"evaluate {n_h} {form} {dtype}"
                mix = "other" if n_h == 1 else "fused"  # one column has no polynomial
                yield Case(name, "lag_evaluate", "lag_evaluate_kernel", pointer, chosen, constants, types, mix)


def _dense() -> Iterator[Case]:
    for columns, batch, wavefront, form, volume, triangular in (
        (10, 1, "spherical", "complement", False, False),
        (10, 256, "spherical", "complement", False, False),
        (10, 256, "fresnel", "linear", True, False),
        (16, 256, "planar", "reciprocal", False, False),
        (144, 256, "spherical", "reciprocal", False, True),
        (144, 256, "fresnel", "linear", True, False),
    ):
        constants = PRODUCTS | {"WAVEFRONT": wavefront, "TRIANGULAR": triangular, "EPILOGUE": form, "VOLUME": volume}
        name = f"dense {columns} columns, batch {batch}, {wavefront} {form}"
        chosen = ("dense_configuration", columns, batch)
        yield Case(name, "dense", "dense_analysis_kernel", "*fp32", chosen, constants, {"plane_ptr": "*i32"}, "matrix")


def _interpolate() -> Iterator[Case]:
    for form, volume in (("reciprocal", False), ("complement", False), ("linear", True)):
        constants = PRODUCTS | {"EPILOGUE": form, "VOLUME": volume}
        chosen, types = ("interpolate_configuration",), {"plane_ptr": "*i32"}
        name = f"interpolate {form}"
        yield Case(name, "interpolate", "interpolate_kernel", "*fp32", chosen, constants, types, "matrix")


def _inverse() -> Iterator[Case]:
    for dtype, pointer in POINTERS.items():
        constants = {"ACC": dtype, "PRECISION": "ieee"}
        products = "ieee" if dtype == "float32" else "matrix"
        for clear in (True, False):
            name = f"{'factor' if clear else 'factor of an inverse'} {dtype}"
            chosen, types = ("inverse_configuration", dtype), {"info_ptr": "*i32"}
            cleared = constants | {"CLEAR": clear}
            yield Case(name, "inverse", "inverse_factor_kernel", pointer, chosen, cleared, types, products)
        chosen = ("product_configuration",)
        yield Case(f"product {dtype}", "inverse", "gram_kernel", pointer, chosen, constants, runs_on=products)


def _lowrank() -> Iterator[Case]:
    for columns, wavefront, form, volume in (
        (10, "spherical", "reciprocal", False),
        (16, "fresnel", "complement", False),
        (16, "planar", "linear", True),
        (10, "spherical", "reciprocal", True),
        (32, "spherical", "reciprocal", False),
        (32, "fresnel", "linear", True),
    ):
        constants = {"WAVEFRONT": wavefront, "EPILOGUE": form, "VOLUME": volume}
        constants["PRECISION"] = "ieee" if columns > 16 else "products"  # as kernels/lowrank.py says
        name = f"residual {columns} columns, {wavefront} {form} {'volume' if volume else 'map'}"
        chosen, types = ("residual_configuration", columns), {"plane_ptr": "*i32"}
        mix = "ieee" if columns > 16 else "matrix"
        yield Case(name, "lowrank", "residual_kernel", "*fp32", chosen, constants, types, mix)


_SOURCES = {
    "weights": {"WINNER": False},
    "weights of a map": {"WINNER": True},
}
_INDICES = {"plane_ptr": "*i32", "order_ptr": "*i32"}


def _synthesis() -> Iterator[Case]:
    for wavefront, kind in (
        ("spherical", "weights"),
        ("spherical", "weights of a map"),
        ("fresnel", "weights of a map"),
        ("planar", "weights"),
    ):
        constants = _SOURCES[kind] | PRODUCTS | {"WAVEFRONT": wavefront}
        name, chosen = f"synthesis, {wavefront}, {kind}", ("synthesis_configuration",)
        yield Case(name, "synthesis", "synthesis_kernel", "*fp32", chosen, constants, _INDICES, "matrix")
    yield Case("sum of parts", "synthesis", "sum_parts_kernel", "*fp32", ("sum_configuration",))
    for kind, source in _SOURCES.items():
        name, chosen = f"adjoint interpolation, {kind}", ("interpolate_adjoint_configuration",)
        kernel = "interpolate_adjoint_kernel"
        yield Case(name, "interpolate_adjoint", kernel, "*fp32", chosen, source | PRODUCTS, _INDICES, "matrix")
        for dtype, pointer in POINTERS.items():
            constants = source | {"ACC": dtype, "MIRROR_AZ": True}
            name, chosen = f"weight rows {dtype}, {kind}", ("weight_rows_configuration",)
            mix = "ieee" if dtype == "float32" else "matrix"
            yield Case(name, "lag_adjoint", "weight_rows_kernel", pointer, chosen, constants, _INDICES, mix)
    for dtype, pointer in POINTERS.items():
        constants = {"ACC": dtype}
        mix = "ieee" if dtype == "float32" else "matrix"
        yield Case(
            f"lags {dtype}", "lag_adjoint", "lags_kernel", pointer, ("lags_configuration",), constants, runs_on=mix
        )
        name, chosen = f"toeplitz {dtype}", ("toeplitz_configuration",)
        yield Case(name, "lag_adjoint", "toeplitz_kernel", pointer, chosen, constants, _INDICES, "fused")


def _maxima() -> Iterator[Case]:
    integers = dict.fromkeys(("place_ptr", "found_ptr", "bad_ptr"), "*i32")
    for dtype, pointer in POINTERS.items():
        for reach in ((3, 3, 1), (10, 10, 10)):
            constants = dict(zip(("REACH_AZ", "REACH_EL", "REACH_R"), reach, strict=True))
            name = f"maxima {tuple(2 * half + 1 for half in reach)} {dtype}"
            chosen, types = ("candidates_configuration",), integers | {"floor_bits": "i64"}
            yield Case(name, "peaks", "maxima_candidates_kernel", pointer, chosen, constants, types)
        types = integers | {"index_ptr": "*i64", "count_ptr": "*i64"}
        yield Case(f"ranks {dtype}", "peaks", "maxima_rank_kernel", pointer, ("rank_configuration",), types=types)


def _suppression() -> Iterator[Case]:
    types = {"left_ptr": "*i8", "index_ptr": "*i64", "count_ptr": "*i64", "bad_ptr": "*i32"}
    types |= dict.fromkeys(("azimuth_bits", "elevation_bits", "range_bits"), "i64")
    for dtype, pointer in POINTERS.items():
        for count, on_sphere in ((20, False), (20, True), (128, True), (1024, True), (2048, True), (2049, True)):
            name = f"suppression {count} {dtype}" + " on the sphere" * on_sphere
            chosen, constants = ("nms_configuration", count), {"ON_SPHERE": on_sphere, "enable_fp_fusion": False}
            yield Case(name, "nms", "nms_kernel", pointer, chosen, constants, types)


def _refinement() -> Iterator[Case]:
    doubles = ["point_ptr", "position_ptr", "matrix_ptr", "step_ptr", "low_ptr", "high_ptr"]
    doubles += ["stencil_ptr", "fit_ptr", "moved_ptr"]
    for dtype, pointer in POINTERS.items():
        types = dict.fromkeys(doubles, "*fp64") | {"wavelength_bits": "i64"}
        precision = {"PRECISION": "products" if dtype == "float32" else "ieee"}
        for wavefront in ("spherical", "fresnel", "planar"):
            for factored in (False, True):
                constants = precision | {"WAVEFRONT": wavefront, "FACTORED": factored, "DTYPE": dtype}
                name = f"form {wavefront} {'factored' if factored else 'full'} {dtype}"
                chosen = ("form_configuration", dtype)
                yield Case(name, "forms", "form_kernel", pointer, chosen, constants, types, "matrix")
        types = types | {"value_ptr": "*fp64", "scale": "fp32"}  # another dict: the forms keep theirs
        for kernel in ("newton", "choose"):
            chosen = ("step_configuration",)
            yield Case(f"{kernel} {dtype}", "descent", f"{kernel}_kernel", pointer, chosen, types=types)
    chosen = ("stencil_configuration",)
    yield Case("stencil", "descent", "stencil_kernel", "*fp64", chosen, types={"scale": "fp32"})
    for nodes in ((7, 7), (17, 32), (41, 41)):
        name, chosen = f"fine grid from {nodes[0]} x {nodes[1]}", ("grid_minimum_configuration", *nodes)
        types = {"key_ptr": "*i64"}
        yield Case(name, "refine", "grid_minimum_kernel", "*fp32", chosen, PRODUCTS, types, "matrix")


CASES: tuple[Case, ...] = (
    *_lag(),
    *_dense(),
    *_interpolate(),
    *_inverse(),
    *_lowrank(),
    *_synthesis(),
    *_maxima(),
    *_suppression(),
    *_refinement(),
)
