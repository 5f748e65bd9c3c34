"""Films: tasks in numbers and in words, environments that draw themselves, and a way to draw."""

import os

import gymnasium
import numpy as np
import pytest

from metarl_l2f.runs import film

from .viewed import without_screen

SIZE = 200


class Invisible(gymnasium.Env):
    def __init__(self):
        self.metadata = {"render_modes": ["ansi"]}


def test_an_environment_that_cannot_draw_itself_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Invisible-v0 cannot be filmed: .*'rgb_array', but \['ansi'\]; give it one"):
        gymnasium.register("Invisible-v0", entry_point=Invisible)
        try:
            film.filmable("Invisible-v0", {}, SIZE)
        finally:
            del gymnasium.registry["Invisible-v0"]


class Drawn:
    """Just enough of an experiment: tasks of some kind."""

    def __init__(self, task):
        self.env, self.task = "Drawn-v0", task

    def held_out_tasks(self, count, seed):
        return [self.task]


def test_numbers_become_a_task_of_the_environments_own_kind():
    task = film.chosen_task(Drawn(np.zeros((2, 2), np.float32)), (1, 2, 3, 4), 0)
    assert (task.dtype, task.tolist()) == (np.float32, [[1, 2], [3, 4]])
    assert film.chosen_task(Drawn(3), (5.0,), 0) == 5
    with pytest.raises(ValueError, match=r"task must be whole for Drawn-v0, got 0\.5"):
        film.chosen_task(Drawn(3), (0.5,), 0)
    with pytest.raises(ValueError, match="task cannot be given in numbers, for those of Drawn-v0 are like 'left'"):
        film.chosen_task(Drawn("left"), (1.0,), 0)
    assert film.chosen_task(Drawn("left"), None, 0) == "left"


@pytest.mark.parametrize(
    ("meaning", "task", "words"),
    [
        ("a goal", np.array([0.3, -0.2], np.float32), "goal: (0.3, −0.2)"),
        ("a goal (x, y)", np.array([0.0001, -0.0001]), "goal: (0, 0)"),
        ("a speed in m/s", 1.23456, "speed in m/s: 1.235"),
        ("an object", "cup", "object: cup"),
        (None, -1, "task: −1"),
    ],
)
def test_a_task_is_told_with_its_meaning(meaning, task, words):
    env = gymnasium.Env()
    if meaning is not None:
        env.domain = type("Domain", (), {"task_meaning": meaning})()
    assert film.in_words(task, env) == words


def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(film, "OPEN_GRAPHICS", "import sys; raise ImportError('no ' + sys.argv[1])")
    monkeypatch.setattr(os, "environ", without_screen())
    with pytest.raises(ValueError, match=r"GL=egl: ImportError: no egl; .*osmesa: .*no osmesa\)\. .* needs libEGL"):
        film.working_graphics()
    monkeypatch.setitem(os.environ, "MUJOCO_GL", "glx")
    with pytest.raises(ValueError, match=r"\(MUJOCO_GL=glx: ImportError: no glx\)"):
        film.working_graphics()


def test_the_first_graphics_that_work_are_taken(monkeypatch):
    monkeypatch.setattr(film, "OPEN_GRAPHICS", "import sys; sys.exit(sys.argv[1] != 'osmesa')")
    monkeypatch.setattr(os, "environ", without_screen())
    assert film.working_graphics() == "osmesa"
