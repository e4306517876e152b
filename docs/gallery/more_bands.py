"""Do more bands help where the array is sparse?

Elements more than half a wavelength apart see some directions twice: grating lobes. They are elsewhere in every
band, so the geometric mean of the maps of several bands keeps only what all of them show.
"""

# %%
# 16 microphones 6 cm apart: half a wavelength at 2.9 kHz, and the sound is at 5 to 7 kHz.
import numpy as np
import torch

from risfast import Region, SensorArray, Setup, datasets
from risfast.io import from_samples
from risfast.ops import band_spectrum, mvdr_spectrum
from risfast.report.plots import COLOURS, new_figure

microphones = np.stack([0.06 * (np.arange(16) - 7.5), np.zeros(16), np.zeros(16)], 1)
samples = datasets.sound_at(microphones, [[0.6, 0.0, 1.2]])
recording = from_samples(samples, 16000, microphones, frequency_hz=(5000.0, 7000.0), most_bands=12)
region = Region((-1.5, 1.5), (0.0, 0.0), (0.4, 4.0))
setup = Setup(recording.array, region, sampling="direct", wavelengths_m=recording.wavelengths_m)
grid = setup.search_grid()

# %%
# The highest band alone, and all twelve together.
first = recording.wavelengths_m.index(min(recording.wavelengths_m))
highest = SensorArray(microphones, min(setup.wavelengths_m))
one = mvdr_spectrum(recording.covariance[0, first], highest, grid).power[:, 0]
together = band_spectrum(recording.covariance, setup, grid).power[0, :, 0]
figure = new_figure(7.0, 3.6)
axes = figure.subplots()
azimuth = grid.azimuth_rad.rad2deg()
for colour, style, name, power in ((COLOURS[1], "--", "one band", one), (COLOURS[0], "-", "12 bands", together)):
    level = 10 * (power / power.max()).log10()
    others = level[(azimuth - torch.tensor(np.degrees(np.arctan2(0.6, 1.2)))).abs() > 10]
    print(f"{name}: the highest false peak is at {float(others.max()):.1f} dB, the source at 0 dB")
    axes.plot(azimuth, level, style, color=colour, label=name)
axes.set(xlabel="azimuth (deg)", ylabel="power re maximum (dB)", ylim=(-15, 1))
axes.legend(frameon=False, loc="lower left")
axes.grid(color="#dddddd", linewidth=0.6)
figure.savefig("more_bands.png", dpi=80)
