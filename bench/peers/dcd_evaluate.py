"""DCD-MUSIC and NF-SubspaceNet beside methods of risfast, over the first scenes of the suite's main set, nothing told.

python -m bench.peers.dcd_evaluate --checkout FOLDER --weights dcd_music.safetensors nf_subspacenet.safetensors
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from bench.peers.dcd_checkout import CLONE
from bench.peers.dcd_music import PEERS, CheckoutOptions
from bench.peers.dcd_networks import read_weights
from risfast.baselines import Baseline
from risfast.evaluate.figures import figures
from risfast.evaluate.methods import Methods, measurement_of
from risfast.evaluate.metrics import Scores, score_scenes
from risfast.evaluate.scenarios import CHUNK
from risfast.evaluate.suite import SuiteConfig
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.setup import Setup
from risfast.simulate.scenes import generate_scenes
from risfast.simulate.system_file import system_of


@dataclass(frozen=True)
class EvaluateCommand:
    """Options of the command."""

    checkout: Path
    """Folder of the checkout; its code is run."""
    weights: tuple[Path, ...]
    """Files of trained weights, one for each method that is to run: python -m bench.peers.dcd_train makes them."""
    methods: tuple[str, ...] = ("localizer", "sbl", "decoupled_music")
    """Methods of risfast to run beside them."""
    scenes: int = 96
    """Of the main set."""
    snapshots: tuple[int, ...] = (64, 16)
    """L of a scene."""
    model: Path = DEFAULT_MODEL
    """Model folder of the localizer, and of the problem."""


def checkout_methods(checkout: Path, weights: tuple[Path, ...], setup: Setup) -> dict[str, Baseline]:
    """The methods that the weights are for, by name."""
    if not weights:
        raise ValueError(f"no weights: `{CLONE}` and train networks of it with `python -m bench.peers.dcd_train`")
    names = [read_weights(path).options.method for path in weights]
    if len(set(names)) < len(names):
        raise ValueError(f"weights must be of different methods, got {', '.join(names)}")
    return {
        name: PEERS[name](setup, CheckoutOptions(checkout, path)) for name, path in zip(names, weights, strict=True)
    }


def evaluate(command: EvaluateCommand) -> dict[tuple[int, str], Scores]:
    """Scores by the number of snapshots and the method."""
    own = Methods(command.model)
    own.check(command.methods)
    peers = checkout_methods(command.checkout, command.weights, own.setup)
    scores = {}
    for length in command.snapshots:
        system = replace(system_of(own.setup), n_snapshots=length)
        parts: dict[str, list[Scores]] = {}
        for start in range(0, command.scenes, CHUNK):
            scenes = generate_scenes(system, SuiteConfig.seed, range(start, min(start + CHUNK, command.scenes)))
            given = measurement_of(scenes, "blind")
            found = {name: own[name].find(scenes, *given).sources for name in command.methods}
            found |= {name: peer.localize(*given) for name, peer in peers.items()}
            for name, sources in found.items():
                parts.setdefault(name, []).append(score_scenes(sources, scenes, tolerance=own.setup.tolerance))
        scores |= {(length, name): Scores.joined(several) for name, several in parts.items()}
    return scores


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    import tyro

    command = tyro.cli(EvaluateCommand, prog="python -m bench.peers.dcd_evaluate", args=arguments)
    try:
        scores = evaluate(command)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"dcd_evaluate: {error}", file=sys.stderr)
        return 1
    for (length, name), found in scores.items():
        values = figures(found)
        shown = "  ".join(f"{figure} {values[figure]:.3f}" for figure in ("f1", "precision", "recall"))
        print(f"L = {length:<4d}{name:18s}{shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
