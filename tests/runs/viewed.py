"""The size of the runs that the viewer's tests show, and a viewer of them."""

import os

from metarl_l2f.runs import viewing

HORIZON = 6
TINY = [
    *("--iterations", "2", "--tasks-per-batch", "3", "--episodes-per-task", "3", "--horizon", str(HORIZON)),
    *("--hidden-sizes", "4", "--evaluation-tasks", "0", "--threads", "1"),
]


def viewer_of(*folders):
    made = viewing.Viewer([viewing.ViewedRun(folder) for folder in folders])
    made.measure()
    return made


def adapted(client, **question):
    response = client.post("/api/adapt", json=question)
    assert response.status_code == 200, response.json
    return response.json


def without_screen(**variables: str) -> dict[str, str]:
    removed = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    return {name: value for name, value in os.environ.items() if name not in removed} | variables
