"""Where is the transmitter, seen by a circle of five antennas?

Five antennas on a circle look round the whole horizon. The transmitters are so far away that only their bearings count:
the waves are planar.
"""

# %%
# Two transmitters at 62 and 170 degrees, 400 snapshots.
from risfast import Localizer, datasets
from risfast.ops import mvdr_spectrum

sample = datasets.five_element_circle(bearings_deg=(62.0, 170.0))
setup = sample.recording.setup

# %%
# How many there are is part of the answer.
result = Localizer.classical(setup).analyse(sample.recording)
found = result.sources[0]
for bearing, spread in zip(found.azimuth.rad2deg(), result.position_covariance[0], strict=True):
    print(
        f"bearing {float(bearing):.1f} degrees, standard deviation {float(spread[0, 0].sqrt().rad2deg()):.2f} degrees"
    )

# %%
# The Capon spectrum as on a compass, with the bearings that were found.
grid = setup.search_grid()
snapshots = sample.recording.snapshots.read()
covariance = snapshots.mT @ snapshots.conj() / len(snapshots)
spectrum = mvdr_spectrum(covariance, setup.array, grid, wavefront=setup.wavefront)
figure = spectrum.plot(grid, found)
figure.savefig("transmitter.png", dpi=80)
