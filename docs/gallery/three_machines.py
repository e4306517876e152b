"""Where are three noisy machines before 64 microphones?

A recording with many microphones is turned into covariances of narrow bands, and all bands are localised together.
Nobody says how many sources there are.
"""

# %%
# The sample is one second of sound at 64 microphones. With files of your own it would be
# `risfast.io.read("machines.wav", positions_m="microphones.csv", frequency_hz=(800, 4000))`.
from risfast import Localizer, datasets

sample = datasets.three_machines()
print(sample.recording)

# %%
# The classical localizer needs no training and takes any array.
localizer = Localizer.classical(sample.recording.setup)
found = localizer.localize(sample.recording)[0]
for (x, y, z), confidence in zip(found.xyz_m.tolist(), found.confidence.tolist(), strict=True):
    print(f"x {x:5.2f} m, y {y:5.2f} m, z {z:5.2f} m, confidence {confidence:.2f}")

# %%
# Directions with ranges on the left; the same from above, with the microphones, on the right.
figure = found.plot(sample.recording.setup)
figure.savefig("three_machines.png", dpi=80)
