"""Embed a data set of images with a trained prototypical network, into files that LEO reads."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from metarl_l2f.parallel.memory import quiet_machine
from metarl_l2f.runs.command_line import USER_ERRORS, fail, read_alone
from metarl_l2f.runs.load import load_run_of
from metarl_l2f.supervised.leo.embeddings import save_embeddings

IMAGES_AT_ONCE = 500  # Normalised together, like an episode's.


@dataclass(frozen=True)
class Options:
    """Write {train,val,test}_embeddings.pkl of the images that a prototypical network was trained on.

    Images are normalised in groups drawn from a whole split, so that no embedding tells which episode it is for.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run of launchers/prototypes.py."""
    out: Path
    """Folder to write to."""
    seed: int = 0
    """Seed of the order in which images are grouped."""


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, embed, write."""
    try:
        options = read_alone(Options, arguments)
        quiet_machine()
        network = load_run_of("prototypes", options.run)
        for split, images in network.data.items():
            order = np.random.default_rng(options.seed).permutation(len(images.labels))
            vectors = np.empty((len(order), network.embedding_size), np.float32)
            for rows in np.array_split(order, max(1, round(len(order) / IMAGES_AT_ONCE))):
                vectors[rows] = network.embed(images.pixels[rows].float() / 255).numpy()
            names = [images.classes[label] for label in images.labels.tolist()]
            path = save_embeddings(options.out, split, vectors, names)
            print(
                f"wrote {path}: {len(images.classes)} classes, {len(vectors)} images, {vectors.shape[1]} numbers each"
            )
    except USER_ERRORS as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
