"""What is before a reconfigurable surface?

A base station sees the transmitters only through a surface that applies a known phase code in every snapshot. From the
snapshots, the codes and the channel the shipped model says where the transmitters are.
"""

# %%
from risfast import Localizer, datasets
from risfast.evaluate import match

sample = datasets.surface_measurement(n_sources=4, seed=1)
print(sample.recording)

# %%
# `analyse` gives the sources and how sure they are; `localize` the sources alone.
result = Localizer.from_pretrained().analyse(sample.recording)
found = result.sources[0]
for source, spread in zip(found, result.position_covariance[0], strict=True):
    print(f"range {source.range:.2f} m, standard deviation {float(spread[2, 2].sqrt()):.2f} m")

# %%
# Beside the truth: a source counts as found within 5 degrees, 5 degrees and 1 m.
score = match(found.position, sample.position)
print(f"{score.hits} of {score.n_true} found")
figure = found.plot(sample.recording.setup)
directions, above = figure.axes
directions.plot(*sample.position[:, :2].rad2deg().T, "o", color="black", mfc="none", markersize=12)
figure.savefig("behind_a_surface.png", dpi=80)
