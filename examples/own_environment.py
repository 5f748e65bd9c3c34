"""Meta-train on an environment of your own: walk along a line to a target that you cannot see.

Any gymnasium.Env with Box spaces will do. Two things make it a family of tasks: `sample_tasks` draws tasks, and `reset`
takes one as `options["task"]` and keeps it until the next one comes. The policy never observes the task; it has to
find it out from the rewards of its own first episodes.
"""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from metarl_l2f import InnerLoop, MetaRL, MetaRLSettings, PolicyNetwork

MAX_STEP = 0.2  # Largest move per time step; longer actions are clipped.


class Reach(gymnasium.Env):
    """Observation: the position, (1,). Action: the move, (1,). Reward: minus the distance to the target."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-MAX_STEP, MAX_STEP, (1,), np.float32)

    def __init__(self) -> None:
        self.target, self.position = np.zeros(1), np.zeros(1)

    def sample_tasks(self, number, generator):
        """Targets in [−1, 1], (number, 1). All randomness comes from the generator, so that runs repeat exactly."""
        return generator.uniform(-1.0, 1.0, size=(number, 1))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options and "task" in options:
            self.target = options["task"]
        self.position = np.zeros(1)
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position = self.position + np.clip(action, -MAX_STEP, MAX_STEP)
        reward = -float(np.abs(self.position - self.target).sum())
        return self.position.astype(np.float32), reward, False, False, {}  # The sampler ends episodes at the horizon.


def main(iterations: int = 40, tasks: int = 8, episodes: int = 8, horizon: int = 15) -> tuple[list[float], list[float]]:
    """Returns on 20 held-out tasks after 0, 1 and 2 inner steps: of the untrained policy, and of the trained one."""
    torch.set_num_threads(1)  # `MetaRL(threads=...)` works on whole tasks; more inside an operation would fight it.
    settings = MetaRLSettings(
        tasks_per_batch=tasks,
        episodes_per_task=episodes,
        horizon=horizon,
        policy=PolicyNetwork(hidden_sizes=(32, 32), activation="tanh", initial_std=0.3),
        inner=InnerLoop(inner_lr=0.1),
    )
    run = MetaRL(Reach, settings)  # The class is the factory: one environment for each of tasks × episodes.
    held_out = run.held_out_tasks(20, seed=0)

    def returns() -> list[float]:
        rollouts = run.evaluate(held_out, episodes=20, steps=2, seed=0)
        return [float(e.returns().mean()) for e in rollouts.episodes]

    untrained = returns()
    for i in range(1, iterations + 1):
        metrics = run.iterate(i)  # Every key is explained in docs/metrics.md.
        if i % 10 == 0:
            print(f"iteration {i:>3}  before {metrics['return/step_0']:.2f}  after one step {metrics['return/step_1']:.2f}")
    return untrained, returns()


if __name__ == "__main__":
    for name, values in zip(("untrained", "trained"), main(), strict=True):
        print(f"{name:>9}, held-out tasks, after 0, 1, 2 steps: " + ", ".join(f"{value:.2f}" for value in values))
