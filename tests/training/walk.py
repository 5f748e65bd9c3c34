"""A random walk for the outer loop to train, and short runs of it."""

from typing import Any

import torch

from metarl_l2f.training.loop import train
from metarl_l2f.training.seeding import Stream, generator


class Walk:
    """A random walk that remembers every step it has taken: a step lost or taken twice shows in all that follow."""

    def __init__(self, seed=0):
        self.seed = seed
        self.place = torch.zeros(2, dtype=torch.float64)
        self.steps = 0

    def iterate(self, iteration):
        noise = generator(self.seed, Stream.POLICY, iteration).standard_normal(2)
        self.place = 0.9 * self.place + torch.from_numpy(noise)
        self.steps += 1
        return {"return/step_1": self.place[0].item(), "env_steps": self.steps}

    def validate(self, iteration):
        return {"validation/return": self.place[1].item()}

    def state_dict(self):
        return {"place": self.place, "steps": self.steps}

    def load_state_dict(self, state):
        self.place = state["place"]
        self.steps = state["steps"]


class Scripted(Walk):
    """A walk whose validation values are given."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def validate(self, iteration):
        return {"validation/return": self.values[iteration - 1]}


class Interrupted(Walk):
    """A walk that calls a function in the middle of one iteration."""

    def __init__(self, at, call):
        super().__init__()
        self.at = at
        self.call = call

    def iterate(self, iteration):
        if iteration == self.at:
            self.call()
        return super().iterate(iteration)


def run(directory, experiment=None, **options):
    defaults: dict[str, Any] = {
        "iterations": 5,
        "config": {"seed": 0, "method": "l2f"},
        "resume": False,
        "validate_every": 2,
        "validation_key": "validation/return",
        "progress_key": "return/step_1",
        "checkpoint_every": 2,
    }
    return train(experiment or Walk(), directory, **(defaults | options))


def left_by(directory):
    """The bytes of all files of a run but TensorBoard's, whose names and records hold the time."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith("events.out")}
