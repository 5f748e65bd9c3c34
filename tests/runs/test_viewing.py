"""The viewer's answers are evaluation's, and its films those of the policies."""

import threading

import numpy as np
import pytest

from metarl_l2f.core.parameters import layer_of
from metarl_l2f.envs import domain_of
from metarl_l2f.envs.navigation import MAX_STEP
from metarl_l2f.runs import film, reinforcement, serving, viewing

from .viewed import HORIZON, adapted, viewer_of

# --- Answers ---


def test_returns_of_the_held_out_task_are_exactly_those_of_evaluation(runs, client):
    answer = adapted(client, task=None, steps=2, episodes=4, seed=3)
    assert (answer["steps"], answer["episodes"], answer["seed"]) == (2, 4, 3)
    for name, found in zip(("l2f", "maml"), answer["runs"], strict=True):
        _, experiment = reinforcement.load_policy(runs / name)
        evaluation, _, tasks = reinforcement.evaluate(experiment, tasks=1, episodes=4, steps=2, seed=3)
        experiment.close()
        assert answer["task"] == tasks[0].tolist()
        assert found["returns"] == evaluation.scores[0].tolist()


def test_a_task_in_numbers_is_answered_like_the_same_task_by_seed(client):
    held_out = adapted(client, seed=3, steps=1)
    by_numbers = adapted(client, task=held_out["task"], seed=3, steps=1)
    # By whichever way it came, the seed's own task is marked, for its numbers are those of evaluate.py.
    assert held_out["held_out"] and by_numbers["held_out"]
    assert not adapted(client, task=held_out["task"], seed=4, steps=1)["held_out"]
    for ours, theirs in zip(held_out["runs"], by_numbers["runs"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_two_runs_answer_side_by_side(client):
    about = client.get("/api/about").json
    assert [run["method"] for run in about["runs"]] == ["L2F", "MAML"]
    l2f, maml = adapted(client, task=[0.2, 0.1])["runs"]
    assert l2f["returns"] != maml["returns"]


def test_gamma_lies_between_0_and_1_by_tensor_and_maml_has_none(client, pair):
    l2f, maml = adapted(client, task=[0.2, 0.1])["runs"]
    assert list(l2f["gamma"]) == pair.runs[0].experiment.learner.attenuator.names
    assert all(0 < gamma < 1 for gamma in l2f["gamma"].values())
    assert maml["gamma"] == {}


def test_conflict_is_the_angle_to_the_sum_of_the_training_tasks_gradients(client, pair):
    task, run = np.array([0.2, 0.1], np.float32), pair.runs[0]
    gradients = run.experiment.evaluate([task], 4, 0, 5).start.gradients
    (found, _) = adapted(client, task=[0.2, 0.1], episodes=4, seed=5, steps=1)["runs"]
    for layer in {"network", *map(layer_of, gradients)}:
        names = [name for name in gradients if layer in ("network", layer_of(name))]
        u = np.concatenate([gradients[name][0].double().numpy().ravel() for name in names])
        v = np.concatenate([run.gradients[name].double().sum(0).numpy().ravel() for name in names])
        angle = np.arccos(u @ v / np.sqrt((u @ u) * (v @ v)))
        assert found["conflict"][layer] == pytest.approx(angle, rel=1e-6)
    assert len(run.gradients[names[0]]) == 3  # Training tasks of the run.


def test_paths_begin_at_the_start_and_end_when_episodes_do(client):
    (l2f, _) = adapted(client, task=[0.4, 0.4], steps=2, episodes=12)["runs"]
    assert len(l2f["paths"]) == 3  # Before adaptation, after one step, after two.
    for episodes in l2f["paths"]:
        assert len(episodes) == viewing.PATHS_SHOWN < 12
        for path in map(np.array, episodes):
            assert path.shape == (HORIZON + 1, 2)
            assert path[0].tolist() == [0, 0]
            assert np.abs(np.diff(path, axis=0)).max() <= MAX_STEP + 2 * 10.0**-viewing.DECIMALS


def test_questions_that_come_together_are_answered_one_after_the_other(client):
    questions = [{"task": [0.1 * number, 0.0], "steps": 1, "episodes": 3} for number in range(4)]
    alone = [adapted(client, **question)["runs"][0]["returns"] for question in questions]
    together = {}

    def ask(number):
        fresh = client.application.test_client()
        together[number] = adapted(fresh, **questions[number])["runs"][0]["returns"]

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(4)] == alone


def test_directions_have_numbers_but_no_paths(cheetah):
    client = serving.application(cheetah).test_client()
    about = client.get("/api/about").json
    assert (about["kind"], about["accepted"]) == ("direction", [-1.0, 1.0])
    backwards, forwards = (adapted(client, task=[d], episodes=2)["runs"][0] for d in (-1, 1))
    assert backwards["returns"] != forwards["returns"]
    assert "paths" not in forwards
    wrong = client.post("/api/adapt", json={"task": [0.5]})
    assert wrong.json["error"] == "direction must be -1 (backwards) or 1 (forwards), got 0.5"


def test_speeds_may_lie_half_the_trained_range_outside_it():
    domain = domain_of("metarl_l2f/HalfCheetahVel-v0", min_speed=1.0, max_speed=3.0)
    tasks = viewing.tasks_of(domain, "HalfCheetahVel-v0")
    assert (tasks.kind, tasks.trained, tasks.accepted) == ("speed", (1.0, 3.0), (0.0, 4.0))
    assert tasks.checked([0]) == (0.0,)


# --- Films ---


@pytest.fixture(scope="module")
def graphics():
    try:
        film.working_graphics()
    except ValueError as error:
        pytest.skip(str(error))


def test_a_film_shows_an_episode_of_every_policy(cheetah, graphics):
    client = serving.application(cheetah).test_client()
    question = {"task": [1], "steps": 1, "episodes": 2}
    gif, mp4 = (client.post(f"/api/film/0.{form}", json=question) for form in ("gif", "mp4"))
    assert (gif.status_code, gif.mimetype, gif.data[:4]) == (200, "image/gif", b"GIF8")
    assert (mp4.status_code, mp4.mimetype, mp4.data[4:8]) == (200, "video/mp4", b"ftyp")


def test_the_first_picture_of_a_body_looks_like_those_that_follow(cheetah, graphics):
    experiment = cheetah.runs[0].experiment
    adapted = experiment.adapt(task=1.0, steps=1, episodes=2)
    env = film.filmable(experiment.env, experiment.env_kwargs, 60)
    before, after = film.film(env, adapted, 1.0, HORIZON, seed=1, size=60)
    env.close()
    assert before.frames[0].tobytes() == after.frames[0].tobytes()


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/film/1.mp4", 400, "there is no run 1; they are numbered from 0 to 0"),
        ("/api/film/0.avi", 400, "a film is one of mp4, gif, got 'avi'"),
        ("/api/film/-1.mp4", 404, "there is nothing at"),
        ("/api/film/..%2f..%2fconfig.json", 404, "there is nothing at"),
    ],
)
def test_films_that_are_not_there(cheetah, path, status, said):
    response = serving.application(cheetah).test_client().post(path, json={})
    assert response.status_code == status
    assert said in response.json["error"]


def test_where_nothing_can_draw_the_page_is_told_so(runs, monkeypatch):
    def cannot():
        raise ValueError("MuJoCo cannot draw on this machine")

    monkeypatch.setattr(film, "working_graphics", cannot)
    blind = viewer_of(runs / "cheetah")
    response = serving.application(blind).test_client().post("/api/film/0.gif", json={"task": [1]})
    blind.close()
    assert (response.status_code, response.json) == (400, {"error": "MuJoCo cannot draw on this machine"})
