"""Is my array calibrated?

Microphones are rarely alike. From recordings of sources, which may be at unknown places, `calibrate` estimates the gain
and the phase of every element, with standard deviations: what is outside of them is real.
"""

# %%
# 16 microphones, four of which are too weak or too strong, and three recordings of one source each.
import numpy as np

from risfast import SensorArray, Setup, datasets
from risfast.io import from_samples
from risfast.localize import calibrate
from risfast.report.calibration import calibration_figure

microphones = np.random.default_rng(0).uniform(-0.2, 0.2, (16, 3)) * [1, 1, 0]
gains = np.ones(16)
gains[[2, 5, 9, 14]] = [0.6, 1.5, 0.8, 1.3]
places = [[0.4, 0.1, 1.0], [-0.5, -0.2, 1.4], [0.0, 0.3, 0.8]]
recordings = [
    from_samples(datasets.sound_at(microphones, [place], gains=gains, seed=seed), 16000, microphones, frequency_hz=2000)
    for seed, place in enumerate(places)
]

# %%
setup = Setup(SensorArray(microphones, recordings[0].array.wavelength_m), sampling="direct")
found = calibrate(
    [recording.covariance[0] for recording in recordings],
    setup,
    [recording.effective_snapshots[0] for recording in recordings],
    n_sources=1,
)
level = found.gains.abs().numpy()
for element in (2, 5, 9, 14):
    print(f"element {element}: {20 * np.log10(level[element] / np.median(level)):+.1f} dB")

# %%
figure = calibration_figure(found, setup)
figure.savefig("calibrated.png", dpi=80)
