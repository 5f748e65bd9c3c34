"""Meta-train on an environment of your own: a corridor with a target that you cannot see, to the left or to the right.

Any gymnasium.Env will do, if `sample_tasks` draws tasks and `reset` takes one as options["task"]. Actions may be Box or
Discrete; observations may be anything that gymnasium can flatten; episodes may end when they like.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from metarl_l2f import AdaptedPolicy, MetaRL, MetaRLSettings, PolicyNetwork

MAX_STEP = 0.2  # Largest move per time step; longer actions are clipped.


class Corridor(gymnasium.Env):
    """Walk between −1 and 1, from 0. Reward: minus the distance to the target."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)  # The position.
    action_space = Box(-MAX_STEP, MAX_STEP, (1,), np.float32)  # The move.

    def sample_tasks(self, number, generator):
        # Targets, (number, 1). The generator is the only randomness, so that runs can be repeated exactly.
        return generator.choice([-1.0, 1.0], size=(number, 1)) * generator.uniform(0.7, 1.0, size=(number, 1))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options and "task" in options:  # gymnasium resets finished episodes without options: the task stays.
            self.target = options["task"]
        self.position = np.zeros(1, np.float32)
        return self.position, {}

    def step(self, action):
        self.position = np.clip(self.position + np.clip(action, -MAX_STEP, MAX_STEP), -1.0, 1.0)
        reward = -float(np.abs(self.position - self.target).sum())
        return self.position, reward, False, False, {}  # Never ends by itself: the horizon ends it.


def returns(run: MetaRL, tasks: np.ndarray) -> list[float]:
    return [float(e.returns().mean()) for e in run.evaluate(tasks, episodes=8, steps=2, seed=0).episodes]


def play(policy: AdaptedPolicy, task: np.ndarray, horizon: int) -> float:
    """One episode with an adapted policy, outside of the library: the return."""
    env, total = Corridor(), 0.0
    observation, _ = env.reset(options={"task": task})
    for _ in range(horizon):
        observation, reward, *_ = env.step(policy(observation))
        total += reward
    return total


def main(iterations: int = 25, episodes: int = 8, horizon: int = 15) -> list[list[float]]:
    """Mean returns after 0, 1 and 2 inner steps on held-out tasks, before and after meta-training; and on one task."""
    torch.set_num_threads(1)  # Threads work on whole tasks, MetaRL(..., threads=4); more inside them would fight.
    policy = PolicyNetwork(hidden_sizes=(16,), initial_std=0.3)  # σ suits the size of good actions here.
    settings = MetaRLSettings(tasks_per_batch=8, episodes_per_task=episodes, horizon=horizon, policy=policy)
    # The class makes the environments; any function that returns one will do, a lambda too. Slow environments may be
    # spread over processes: MetaRL(Corridor, settings, workers=4).
    run = MetaRL(Corridor, settings)
    held_out = run.held_out_tasks(20, seed=0)
    results = [returns(run, held_out)]
    for iteration in range(1, iterations + 1):  # `iterate` returns all that docs/metrics.md explains.
        print(f"iteration {iteration:>2}: return after one step {run.iterate(iteration)['return/step_1']:.2f}")
    results.append(returns(run, held_out))

    # What a user of the trained policy does: adapt it to the task at hand, and act.
    adapted = run.adapt(Corridor, task=held_out[0], steps=2, episodes=episodes)
    results.append(adapted.returns)
    run.close()
    print(f"target {held_out[0]}: one episode with the adapted policy {play(adapted.policy, held_out[0], horizon):.2f}")
    return results


if __name__ == "__main__":
    before, after, one = main()
    for what, means in (("before meta-training", before), ("after it", after), ("the one task", one)):
        print(f"{what}, returns after 0, 1, 2 steps:", *(f"{value:.2f}" for value in means))
