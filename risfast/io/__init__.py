"""Measurements from files, and results into files.

:func:`read` (also ``risfast.simulate.read``) reads every format into a :class:`Recording`, :func:`from_samples` takes
samples that are in memory; the writers are
:func:`write_recording`, :func:`write_results` and :func:`write_spectrum`. Files that describe a problem are read and
written by :func:`read_setup` and :func:`write_setup`, those of options by
:func:`read_options` and :func:`write_options`.
"""

from risfast.io.assemble import SPEED_OF_LIGHT_M_S, SPEED_OF_SOUND_M_S
from risfast.io.export import RESULT_SUFFIXES, source_rows, write_recording, write_results, write_spectrum
from risfast.io.options_file import read_options, write_options
from risfast.io.positions import read_positions
from risfast.io.reading import FIELDS, FORMATS, read
from risfast.io.recording import Flagged, Provenance, Recording, Snapshots
from risfast.io.results import Results, SceneDetails, read_results
from risfast.io.samples import from_samples
from risfast.io.setup_file import read_setup, write_setup
from risfast.io.welch import narrowband_covariance

__all__ = [
    "FIELDS",
    "FORMATS",
    "RESULT_SUFFIXES",
    "SPEED_OF_LIGHT_M_S",
    "SPEED_OF_SOUND_M_S",
    "Flagged",
    "Provenance",
    "Recording",
    "Results",
    "SceneDetails",
    "Snapshots",
    "from_samples",
    "narrowband_covariance",
    "read",
    "read_options",
    "read_positions",
    "read_results",
    "read_setup",
    "source_rows",
    "write_options",
    "write_recording",
    "write_results",
    "write_setup",
    "write_spectrum",
]
