"""One to five talkers at once before a line of 32 microphones: measured impulse responses of an office, nine places.

``git clone https://github.com/polimi-ispl/rs-mnmf`` and ``python examples/loudspeakers.py rs-mnmf`` run it; the data
and their licence are those of that repository. Each loudspeaker is heard through its impulse responses, so that a scene
has the room, the microphones and the places of the real recording, and any signals.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
import torch
from scipy.io import wavfile
from scipy.optimize import linear_sum_assignment
from scipy.signal import fftconvolve, resample_poly

from risfast import Localizer
from risfast.cli.progress import ProgressBar
from risfast.io import from_samples
from risfast.report.demo_pictures import confidence_ellipse
from risfast.report.plots import COLOURS, FOUND_COLOUR, new_figure, save_figure

MICROPHONES, SPACING_M = 32, 0.03
BAND_HZ, SECONDS, NEAR_M = (800.0, 5000.0), 2.0, 0.25
VOICES = ("female/1", "female/2", "female/3", "male/1", "male/2", "male/3")
Talker = Callable[[np.random.Generator, int], np.ndarray]  # a voice, by its number, for a while


class Room(NamedTuple):
    """What was measured."""

    rate_hz: int
    responses: np.ndarray  # (9, T, 32)
    microphones_m: np.ndarray  # (32, 3), along x
    places_m: np.ndarray  # (9, 3), in front of the line, along z


class Scene(NamedTuple):
    """What was there and what was found."""

    talking: list[int]
    found_m: np.ndarray  # (K, 3); NaN where the range is not determined
    spread_m2: np.ndarray  # (K, 2, 2) Covariances in x and z
    confidence: np.ndarray  # (K,)
    error_m: np.ndarray  # (hits,)
    notes: tuple[str, ...]


def read_room(checkout: Path) -> Room:
    """Impulse responses and positions."""
    folder = checkout / "data" / "sources"
    located = scipy.io.loadmat(folder / "source_location.mat")["sourceLocation"]  # in front of the line, and along it
    read = [wavfile.read(folder / f"rir_source_{number}.wav") for number in range(1, len(located) + 1)]
    along = SPACING_M * np.arange(MICROPHONES)
    microphones = np.stack([along - along.mean(), 0 * along, 0 * along], 1)
    places = np.stack([located[:, 1] - along.mean(), 0 * located[:, 0], located[:, 0]], 1)
    return Room(read[0][0], np.stack([values / 32768 for _, values in read]), microphones, places)


def noise_talker(rate_hz: int, length: int) -> Talker:
    """Gaussian noise with a spectrum like that of speech: flat up to 500 Hz, 6 dB less with each octave above."""

    def talk(random: np.random.Generator, _voice: int) -> np.ndarray:
        frequency = np.fft.rfftfreq(length, 1 / rate_hz)
        shape = (frequency > 80) / np.sqrt(1 + (frequency / 500) ** 2)
        return np.fft.irfft(np.fft.rfft(random.standard_normal(length)) * shape, length)

    return talk


def speech_talker(checkout: Path, rate_hz: int, length: int) -> Talker:
    """A stretch of one of the repository's dry recordings of speech."""
    voices = []
    for name in VOICES:
        own_hz, values = wavfile.read(checkout / "data" / "audio" / f"{name}.wav")
        voices.append(resample_poly(values / 32768, rate_hz, own_hz))

    def talk(random: np.random.Generator, voice: int) -> np.ndarray:
        dry = voices[voice % len(voices)]
        start = random.integers(len(dry) - length + 1)
        return dry[start : start + length]

    return talk


def mixture(room: Room, talking: Sequence[int], talk: Talker, random: np.random.Generator) -> np.ndarray:
    """Samples (L, 32) of some loudspeakers at once, all of the same power at the microphones."""
    voices = random.permutation(len(VOICES))
    heard = []
    for place, voice in zip(talking, voices, strict=False):
        dry = talk(random, int(voice))
        wet = fftconvolve(dry[:, None], room.responses[place], mode="valid", axes=0)
        heard.append(wet / np.sqrt(np.mean(wet**2)))
    return np.sum(heard, axis=0)


def choices(places: int, talkers: int, mixtures: int) -> list[list[int]]:
    """Which loudspeakers talk in each scene: all choices there are, or so many of them at random."""
    every = list(itertools.combinations(range(places), talkers))
    order = np.random.default_rng(talkers).permutation(len(every))[:mixtures]
    return [list(every[index]) for index in sorted(order)]


def hits(found_m: np.ndarray, true_m: np.ndarray) -> np.ndarray:
    """Distances of the pairs within 0.25 m, as many as there can be, in metres."""
    distance = np.linalg.norm(found_m[:, None] - true_m, axis=-1)
    near = distance < NEAR_M  # never where a range is not determined
    pairs = linear_sum_assignment(np.where(near, distance, 1e3))
    return distance[pairs][near[pairs]]


def in_the_plane(position: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Covariance (2, 2) in x and z, in square metres, of one in azimuth, elevation and range (3, 3)."""
    azimuth, _, r = position
    turn = np.array([[r * math.cos(azimuth), math.sin(azimuth)], [-r * math.sin(azimuth), math.cos(azimuth)]])
    return turn @ covariance[np.ix_([0, 2], [0, 2])] @ turn.T


def localise(
    room: Room, samples: np.ndarray, talking: list[int], localizer: Localizer | None
) -> tuple[Scene, Localizer]:
    """As a user would: the samples, their rate, the microphones and a band; how many talk is not told."""
    recording = from_samples(samples, room.rate_hz, room.microphones_m, frequency_hz=BAND_HZ)
    localizer = localizer or Localizer.classical(recording.setup)
    result = localizer.analyse(recording)
    [sources], covariances = result.sources, result.position_covariance
    assert covariances is not None
    spread = [in_the_plane(p, c) for p, c in zip(sources.position.numpy(), covariances[0].numpy(), strict=True)]
    found = sources.xyz_m.numpy()
    error = hits(found, room.places_m[talking])
    scene = Scene(talking, found, np.reshape(spread, (-1, 2, 2)), sources.confidence.numpy(), error, result.notes)
    return scene, localizer


def told(scenes: Sequence[Scene]) -> str:
    """How well some scenes went, in one line."""
    hit = sum(len(scene.error_m) for scene in scenes)
    found, true = sum(len(scene.found_m) for scene in scenes), sum(len(scene.talking) for scene in scenes)
    errors = [float(value) for scene in scenes for value in scene.error_m]
    median = f"{statistics.median(errors):.3f} m" if errors else "-"
    return (
        f"found {hit} of {true}, false alarms {found - hit}, median error {median}, F1 {2 * hit / (found + true):.3f}"
    )


def draw(room: Room, panels: dict[int, list[Scene]], path: Path) -> None:
    """Seen from above: microphones, loudspeakers that talk, and what was found, with its 95 % regions."""
    figure = new_figure(4.2 * len(panels) + 0.4, 4.9)
    for axes, (talkers, scenes) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        axes.plot(*room.microphones_m[:, [0, 2]].T, "|", color=COLOURS[4], label="microphones")
        axes.plot(*room.places_m[:, [0, 2]].T, "o", color="0.85", ms=10, label="silent loudspeakers")
        shown = sorted({place for scene in scenes for place in scene.talking})
        axes.plot(*room.places_m[shown][:, [0, 2]].T, "o", color=COLOURS[0], ms=10, mfc="none", label="true places")
        found = np.concatenate([scene.found_m for scene in scenes])
        spread = np.concatenate([scene.spread_m2 for scene in scenes])
        sure = np.concatenate([scene.confidence for scene in scenes])
        for place, covariance, confidence in zip(found[:, [0, 2]], spread, sure, strict=True):
            paint = {"color": FOUND_COLOUR, "alpha": 0.2 + 0.8 * confidence}
            axes.plot(*place, "x", **paint, label="found, pale if unsure")
            if np.isfinite(covariance).all() and np.isfinite(place).all():
                border = confidence_ellipse(torch.from_numpy(place), torch.from_numpy(covariance))
                axes.fill(*border.T, fill=False, lw=1, **paint, label="95 % region")
        one_by_one = f", {len(scenes)} scenes" if len(scenes) > 1 else ""
        axes.set(title=f"{talkers} at once{one_by_one}", xlabel="x (m)", xlim=(-0.75, 0.75), ylim=(-0.1, 1.3))
        axes.set_aspect("equal")
    figure.axes[0].set_ylabel("z (m)")
    named = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(
        named.values(), named.keys(), loc="outside upper center", ncols=min(5, 2 * len(panels)), frameon=False
    )
    save_figure(figure, path)


def main() -> None:
    """Read, mix, localise, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder of the repository polimi-ispl/rs-mnmf")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 3], choices=range(1, 6), metavar="1..5")
    parser.add_argument("--mixtures", type=int, default=30, help="scenes of each number of talkers, at most")
    parser.add_argument(
        "--talkers", choices=("noise", "speech"), default="noise", help="speech-shaped noise, or speech"
    )
    parser.add_argument("--notes", action="store_true", help="print what the data say of array and room, too")
    parser.add_argument("--picture", type=Path, default=Path("loudspeakers.png"), metavar="PNG")
    options = parser.parse_args()
    room = read_room(options.checkout)
    length = round(SECONDS * room.rate_hz) + room.responses.shape[1] - 1  # the room has filled when a scene begins
    talk = noise_talker(room.rate_hz, length)
    if options.talkers == "speech":
        talk = speech_talker(options.checkout, room.rate_hz, length)
    work = {talkers: choices(len(room.places_m), talkers, options.mixtures) for talkers in options.at_once}
    progress, total, done = ProgressBar(), sum(map(len, work.values())), 0
    localizer, results, started = None, {}, time.perf_counter()
    progress("localising", done, total, unit="scenes")
    for talkers, chosen in work.items():
        results[talkers] = []
        for number, talking in enumerate(chosen):
            samples = mixture(room, talking, talk, np.random.default_rng([talkers, number]))
            scene, localizer = localise(room, samples, talking, localizer)
            results[talkers].append(scene)
            who = " ".join(str(place + 1) for place in talking)
            print(f"loudspeakers {who}: {told([scene])}, confidence {scene.confidence.round(2).tolist()}")
            for note in scene.notes if options.notes else ():
                print(f"    {note}")
            done += 1
            progress("localising", done, total, unit="scenes")
    progress.close()
    for talkers, scenes in results.items():
        print(f"{talkers} at once, {len(scenes)} scenes: {told(scenes)}")
    print(f"{(time.perf_counter() - started) / total:.1f} s a scene")
    draw(
        room, {talkers: scenes if talkers == 1 else scenes[:1] for talkers, scenes in results.items()}, options.picture
    )
    print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
