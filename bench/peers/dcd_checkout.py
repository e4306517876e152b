"""The public code of DCD-MUSIC and NF-SubspaceNet, used from a checkout that the user names.

Nothing of it comes with risfast. Its top-level package is called ``src``; it is imported here so that neither that name
nor its folder stays behind in the interpreter, and so that what it does to random numbers and to torch at import is
undone. Importing it runs its code: name a folder that you trust.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import math
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError

__all__ = [
    "CLONE",
    "SPACING_WAVELENGTHS",
    "Checkout",
    "calm",
    "load_checkout",
    "second_order_wavefront",
    "system_model",
]

CLONE = "git clone https://github.com/aradgast/DCD-MUSIC"
SPACING_WAVELENGTHS = 0.5  # of their narrow-band array
_PACKAGE = "src"
_WANTED = {
    "src.system_model": ("SystemModel", "SystemModelParams"),
    "src.models_pack.subspacenet": ("SubspaceNet",),
    "src.models_pack.dcd_music": ("DCDMUSIC",),
    "src.criterions": ("RMSPELoss", "CartesianLoss"),
}
_AGREEMENT = 1e-6  # of steering vectors of modulus 1; both sides compute in float64
_LOCK = threading.Lock()  # sys.modules and sys.path are the interpreter's


@dataclass(frozen=True)
class Checkout:
    """Classes of a checkout."""

    folder: Path  # Where it lies
    fingerprint: str  # SHA-256 over the names and contents of its Python files
    # ``SystemModel``, ``SystemModelParams``, ``SubspaceNet``, ``DCDMUSIC``, ``RMSPELoss``, ``CartesianLoss``
    classes: dict[str, Any]


def load_checkout(folder: Path | str) -> Checkout:
    """Import what is needed of a checkout, in isolation, and check that its conventions are those expected.

    Parameters
    ----------
    folder : Path or str
        The folder that holds ``src``. Its code is run.

    Returns
    -------
    Checkout

    Raises
    ------
    FileFormatError
        The folder is missing or holds something else, its code cannot be imported, or its steering vectors are not
        those of the publication.
    RuntimeError
        It imports a package that is not installed.

    Notes
    -----
    A. Gast, L. Le Magoarou, N. Shlezinger, "DCD-MUSIC: Deep-learning-aided cascaded differentiable MUSIC algorithm for
    near-field localization of multiple sources", 2024; D. H. Shmuel, J. P. Merkofer, G. Revach, R. J. G. van Sloun,
    N. Shlezinger, "SubspaceNet: Deep learning-aided subspace methods for DoA estimation", 2023. Their array stands on
    integers from 0 in units of half a wavelength, and a source at angle theta and range r reaches element n with the
    phase -2 pi (n d sin theta - (n d cos theta)^2 / (2 r)), lengths in wavelengths: the conjugate of the spherical
    wavefront of :func:`risfast.steering.steering_vectors` to second order, about the first element.
    """
    folder = Path(folder).expanduser().resolve()
    mend = f"get one with `{CLONE}` and name its folder"
    if not folder.is_dir():
        raise FileFormatError(f"{folder}: no such folder; a checkout of DCD-MUSIC is needed, {mend}")
    missing = [name for name in _WANTED if not (folder / (name.replace(".", "/") + ".py")).is_file()]
    if missing:
        lacking = ", ".join(name.replace(".", "/") + ".py" for name in missing)
        raise FileFormatError(f"{folder}: not a checkout of DCD-MUSIC, it lacks {lacking}; {mend}")
    with calm(), _isolated(folder):
        classes = _imported(folder)
    checkout = Checkout(folder, _fingerprint(folder), classes)
    _check_conventions(checkout)
    return checkout


def _imported(folder: Path) -> dict[str, Any]:
    classes = {}
    for name, wanted in _WANTED.items():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == _PACKAGE:
                raise FileFormatError(f"{folder}: {name} imports {error.name}, which the checkout lacks") from error
            raise RuntimeError(
                f"the checkout {folder} needs {error.name}, which is not installed: pip install it"
            ) from error
        except (ImportError, SyntaxError, AttributeError) as error:
            raise FileFormatError(f"{folder}: {name} cannot be imported: {error}") from error
        if not Path(str(module.__file__)).resolve().is_relative_to(folder):
            raise FileFormatError(f"{folder}: {name} was found elsewhere, in {module.__file__}")
        for wanted_name in wanted:
            if not hasattr(module, wanted_name):
                raise FileFormatError(f"{folder}: {name} has no {wanted_name}; this is another version of the code")
            classes[wanted_name] = getattr(module, wanted_name)
    return classes


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((folder / _PACKAGE).rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def _isolated(folder: Path) -> Iterator[None]:
    """Imports of ``src`` come from ``folder``; afterwards the interpreter knows nothing of it."""

    def take() -> dict[str, Any]:
        names = [name for name in sys.modules if name == _PACKAGE or name.startswith(_PACKAGE + ".")]
        return {name: sys.modules.pop(name) for name in names}

    with _LOCK:
        others, path, bytecode = take(), list(sys.path), sys.dont_write_bytecode
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True  # the checkout stays as the user left it
        importlib.invalidate_caches()
        try:
            yield
        finally:
            take()
            sys.modules.update(others)
            sys.path[:] = path
            for entry in [e for e in sys.path_importer_cache if Path(e).is_relative_to(folder)]:
                del sys.path_importer_cache[entry]
            sys.dont_write_bytecode = bytecode


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Run code of others: nothing printed or warned, random numbers and the settings of torch as before."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numbers, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that others may seed
    settings = _settings()
    try:
        with (
            torch.random.fork_rng(devices=cuda),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(legacy)  # noqa: NPY002
        _restore(settings)


def _settings() -> dict[str, Any]:
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
    }


def _restore(settings: dict[str, Any]) -> None:
    if torch.get_default_device() != settings["device"]:
        # the device of an interpreter that never set one is the CPU, and None takes what was set away
        torch.set_default_device(None if settings["device"].type == "cpu" else settings["device"])
    if torch.get_num_threads() != settings["threads"]:
        torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(settings["dtype"])
    torch.set_grad_enabled(settings["grad"])
    enabled, warn_only = settings["deterministic"]
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = settings["cudnn"]


def system_model(checkout: Checkout, n_elements: int, n_snapshots: int, *, centred: bool) -> Any:
    """Their system model of a near-field linear array, in wavelengths."""
    parameters = checkout.classes["SystemModelParams"]()
    for name, value in {"N": n_elements, "M": None, "T": n_snapshots, "field_type": "Near"}.items():
        parameters.set_parameter(name, value)
    model = checkout.classes["SystemModel"](parameters)
    if centred:
        model.array = model.array - (n_elements - 1) / 2
    return model


def second_order_wavefront(positions: Tensor, angle: Tensor, distance: Tensor) -> Tensor:
    """Steering vectors of a linear array with the phase of a spherical wavefront to second order.

    positions (N,), angle, distance (P,) -> (N, P)
    """
    x = positions.double()[:, None]
    phase = x * angle.double().sin() - (x * angle.double().cos()).square() / (2 * distance.double())
    return torch.polar(torch.ones_like(phase), 2 * math.pi * phase)


def _check_conventions(checkout: Checkout) -> None:
    """Their steering vectors against the formula, about the centre of 12 elements."""
    angle = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    distance = torch.linspace(2.0, 30.0, 9, dtype=torch.float64)
    positions = (torch.arange(12, dtype=torch.float64) - 5.5) * SPACING_WAVELENGTHS
    ours = second_order_wavefront(positions, angle, distance).conj().resolve_conj().numpy()
    with calm():
        model = system_model(checkout, 12, 64, centred=True)
        theirs = np.asarray(model.steering_vec(angle.numpy(), distance=distance.numpy(), nominal=True))
    if theirs.shape != ours.shape:
        raise FileFormatError(f"{checkout.folder}: steering vectors of shape {theirs.shape}, expected {ours.shape}")
    apart = float(np.abs(theirs - ours).max())
    if not (math.isfinite(apart) and apart < _AGREEMENT):
        raise FileFormatError(
            f"{checkout.folder}: its steering vectors differ by {apart:.2g} from those of its publication; this is "
            "another version of the code"
        )
