"""Many episodes in one batch equal single ones bit for bit, on any number of threads."""

from typing import Any

import numpy as np

from .bodies import FACTS, batch, every_environment, random_actions, single


def assert_same_step(ones, many, rows) -> None:
    """Compare steps of scalar environments with those rows of one step of the batch, bit for bit."""
    for values, expected in zip(many[:4], zip(*[one[:4] for one in ones], strict=True), strict=True):
        np.testing.assert_array_equal(values[rows], np.array(expected))


@every_environment
def test_many_episodes_equal_single_ones_bit_for_bit(name):
    facts, num_envs, horizon = FACTS[name], 5, 25
    many = batch(name, num_envs, horizon=horizon, threads=2)
    ones = [single(name, horizon=horizon) for _ in range(num_envs)]
    tasks = many.sample_tasks(num_envs, np.random.default_rng(1))
    everyone, some = list(range(num_envs)), [0, 3]
    mask = np.isin(everyone, some)

    def step_all(times: int, seed: int) -> Any:
        for actions in np.random.default_rng(seed).normal(size=(times, num_envs, facts.action)):
            steps = many.step(actions)
            assert_same_step([one.step(action) for one, action in zip(ones, actions, strict=True)], steps, everyone)
        return steps

    starts, _ = many.reset(seed=[7, 9, 8, 7, 30], options={"task": tasks})
    for one, seed, task, start in zip(ones, [7, 9, 8, 7, 30], tasks, starts, strict=True):
        np.testing.assert_array_equal(one.reset(seed=seed, options={"task": task})[0], start)
    # Environment 1 is kicked up, out of any height at which an episode goes on.
    many._qvel[1, facts.height] = ones[1].data.qvel[facts.height] = 9.0
    frozen = step_all(horizon, seed=1)
    assert frozen[2][1] == facts.ends
    assert (frozen[2] | frozen[3]).all()
    assert frozen[3].any() or facts.original in ("Hopper-v5", "Walker2d-v5")  # Which fall within 25 steps.
    # Finished episodes are frozen.
    later = step_all(2, seed=2)
    np.testing.assert_array_equal(later[0], frozen[0])
    np.testing.assert_array_equal(later[1], np.zeros(num_envs))

    # Some begin anew, under their old tasks and with their own random numbers; the others stay as they are.
    starts, _ = many.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(starts[some], [ones[i].reset()[0] for i in some])
    np.testing.assert_array_equal(starts[~mask], frozen[0][~mask])
    step_all(4, seed=3)

    # Then again under other tasks, of which the others get none.
    others = many.sample_tasks(num_envs, np.random.default_rng(2)) if "Dir" not in name else -tasks
    starts, _ = many.reset(seed=40, options={"reset_mask": mask, "task": others})
    expected = [ones[i].reset(seed=40 + i, options={"task": others[i]})[0] for i in some]
    np.testing.assert_array_equal(starts[some], expected)
    np.testing.assert_array_equal(many.tasks, np.where(mask.reshape(-1, *[1] * (tasks.ndim - 1)), others, tasks))
    step_all(4, seed=4)

    # And all of them, with tasks drawn from their seeds no more, since theirs were given.
    starts, _ = many.reset(seed=50)
    np.testing.assert_array_equal(starts, [one.reset(seed=50 + i)[0] for i, one in enumerate(ones)])
    step_all(3, seed=5)


@every_environment
def test_tasks_drawn_from_the_seed_are_the_same_for_one_and_many(name):
    many, one = batch(name, 2), single(name)
    starts, _ = many.reset(seed=5)
    np.testing.assert_array_equal(starts[1], one.reset(seed=6)[0])
    np.testing.assert_array_equal(many.tasks[1], one.task)


@every_environment
def test_threads_change_no_bit(name):
    actions = random_actions(name, 12, 7)
    runs = []
    for threads in (1, 2, 3):
        env = batch(name, 7, threads=threads)
        assert env.threads == threads
        env.reset(seed=0)
        runs.append([env.step(action)[:4] for action in actions])
    for step, *others in zip(*runs, strict=True):
        for other in others:
            for values, same in zip(step, other, strict=True):
                np.testing.assert_array_equal(values, same)


@every_environment
def test_the_task_matters_and_stays_until_replaced(name):
    facts, action = FACTS[name], random_actions(name, 3)
    env = batch(name, 2)

    def rewards(**options) -> list[float]:
        env.reset(seed=0, options=options or None)
        return [tuple(env.step(np.tile(a, (2, 1)))[1]) for a in action]

    first = rewards(task=facts.task)
    assert first == rewards()
    assert first != rewards(task=facts.another_task)
    assert first == rewards(task=facts.task)


@every_environment
def test_an_action_beyond_the_actuators_range_is_clipped(name):
    beyond, within = single(name), single(name)
    for env in (beyond, within):
        env.reset(seed=0, options={"task": FACTS[name].task})
    action = random_actions(name, scale=3.0)
    assert np.abs(action).max() > 1
    step, clipped = beyond.step(action), within.step(np.clip(action, -1, 1))
    np.testing.assert_array_equal(step[0], clipped[0])
    assert step[1] == clipped[1]


@every_environment
def test_the_memory_layout_of_actions_changes_no_bit(name):
    rows, columns = batch(name, 9), batch(name, 9)
    actions = random_actions(name, 9)
    for env in (rows, columns):
        env.reset(seed=0)
    expected, found = rows.step(actions), columns.step(np.asfortranarray(actions))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@every_environment
def test_the_caller_may_write_into_what_step_returns(name):
    written, left = batch(name, 2), batch(name, 2)
    for env in (written, left):
        env.reset(seed=0)
    for action in random_actions(name, 3, 2):
        step, expected = written.step(action), left.step(action)
        for values, same in zip(step[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(values, same)
            values[:] = 1
