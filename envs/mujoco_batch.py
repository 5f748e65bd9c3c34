"""Locomotion on MuJoCo: many simulations at once with `mujoco.batch.Batch`, and a single one that can be rendered.

A `Body` is a domain whose state is that of a MuJoCo simulation (qpos, qvel). Its observation, reward and end are pure
functions of states, for any leading batch shape, so `MuJoCoEnv` and `MuJoCoVectorEnv` only step the simulations.
Starts, and the dynamics between two observations, are those of gymnasium's environment of the same model.
"""

import contextlib
import logging
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from mujoco.batch import Batch, SimulationError

from .base import Domain, TaskEnv, TaskVectorEnv, check_count, domain_class

if TYPE_CHECKING:
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

logger = logging.getLogger(__name__)

GYMNASIUM_MODELS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
# MuJoCo counts these warnings when it finds a state that is huge or not finite, and then resets that simulation.
DIVERGED = [getattr(mujoco.mjtWarning, f"mjWARN_BAD{state}").value for state in ("QPOS", "QVEL", "QACC")]
ELEVATION = -15.0  # Elevation of the camera's line of sight in degrees; it looks down.
COUNT = 1  # Column of `Batch.warning` that holds the number of occurrences.


@dataclass(frozen=True, kw_only=True)
class Body(Domain):
    """A body in a MuJoCo model, and a family of tasks for it.

    Raises:
        ValueError: the model file does not load, or an argument is out of range.
    """

    horizon: int = 200
    """Time steps T after which an episode is truncated."""
    model_file: str = ""
    """An XML file to use instead of gymnasium's, with the same joints and actuators."""
    reset_noise_scale: float = 0.1
    """The scale of the random start around the model's own."""

    gymnasium_model: ClassVar[str]
    """The name of the model's file in gymnasium."""
    frame_skip: ClassVar[int]
    """The number of physics steps per time step."""
    camera_distance: ClassVar[float] = 4.0
    """The distance between camera and body in pictures, in m."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (np.isfinite(self.reset_noise_scale) and self.reset_noise_scale >= 0):
            raise ValueError(f"reset_noise_scale must be finite and not negative, got {self.reset_noise_scale}")
        expected, found = (load_model(path) for path in (GYMNASIUM_MODELS / self.gymnasium_model, self.model_path))
        if (expected.nq, expected.nv, expected.nu) != (found.nq, found.nv, found.nu):
            raise ValueError(
                f"{self.model_path} has {found.nq} positions, {found.nv} velocities and {found.nu} actuators; "
                f"{type(self).__name__} needs {expected.nq}, {expected.nv} and {expected.nu}, as in "
                f"{self.gymnasium_model}"
            )
        low, high = found.actuator_ctrlrange.T
        if not (low < high).all():
            raise ValueError(
                f"{self.model_path} must give every actuator a ctrlrange, got none for actuators "
                f"{np.flatnonzero(low >= high).tolist()}; actions are clipped to it"
            )

    @property
    def model_path(self) -> Path:
        """The path of the model's file."""
        return Path(self.model_file) if self.model_file else GYMNASIUM_MODELS / self.gymnasium_model

    @cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled model; it must not be changed."""
        return load_model(self.model_path)

    @cached_property
    def time_step(self) -> float:
        """The time between two observations, in seconds."""
        return self.model.opt.timestep * self.frame_skip

    def action_space(self) -> spaces.Box:
        low, high = self.model.actuator_ctrlrange.astype(np.float32).T
        return spaces.Box(low, high, dtype=np.float32)

    def observation_space(self) -> spaces.Box:
        size = self.observe(self.model.qpos0, np.zeros(self.model.nv)).shape
        return spaces.Box(-np.inf, np.inf, size, np.float64)

    def start(self, generator: np.random.Generator | None) -> np.ndarray:
        # gymnasium's own draws, in its order.
        assert generator is not None
        scale = self.reset_noise_scale
        return np.concatenate(
            [
                self.model.qpos0 + generator.uniform(-scale, scale, self.model.nq),
                self.start_velocities(generator),
            ]
        )

    def start_velocities(self, generator: np.random.Generator) -> np.ndarray:
        """Draw the velocities of a start, (nv,): Gaussian or uniform, as gymnasium's environment of the body does."""
        return self.reset_noise_scale * generator.standard_normal(self.model.nv)

    def applied(self, action: np.ndarray) -> np.ndarray:
        """Clip an action (..., A) to the actuators' ranges, which gives the control that is applied."""
        return np.clip(action, *self._control_range)

    @cached_property
    def _control_range(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.model.actuator_ctrlrange.T
        return low, high

    @abstractmethod
    def observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Compute the observation (..., O) of positions (..., nq) and velocities (..., nv)."""

    @abstractmethod
    def reward(self, before: "State", after: "State", control: np.ndarray, task: np.ndarray) -> np.ndarray:
        """Compute the reward of a time step, (...).

        Args:
            before: the state before the step.
            after: the state after the step.
            control: (..., A), the applied control.
            task: (..., *task_shape).
        """

    def forward_speed(self, before: "State", after: "State") -> np.ndarray:
        """Compute the root's mean speed along x over one time step: (...), m/s."""
        return (after.qpos[..., 0] - before.qpos[..., 0]) / self.time_step

    def fallen(self, state: "State") -> np.ndarray:
        """Tell whether the episode ends in a state, (...) bool. By default it never does."""
        return np.zeros(state.qpos.shape[:-1], bool)

    def dynamics(self, task: np.ndarray) -> Mapping[str, np.ndarray]:
        """Compute the model's fields that depend on the task, by name: (..., *field's shape). By default none do."""
        return {}


@dataclass(frozen=True)
class State:
    """The state of one or many simulations."""

    qpos: np.ndarray
    """(..., nq), positions."""
    qvel: np.ndarray
    """(..., nv), velocities."""

    def finite(self) -> np.ndarray:
        """Tell where all numbers are finite, (...) bool."""
        return np.isfinite(self.qpos).all(-1) & np.isfinite(self.qvel).all(-1)


def load_model(path: Path) -> mujoco.MjModel:
    """Compile a model.

    Args:
        path: the XML file.
    Raises:
        ValueError: the file is missing or is no MuJoCo model; the error names it.
    """
    with quiet:
        try:
            return mujoco.MjModel.from_xml_path(os.fspath(path))
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the model {path} does not load: {reason}; give an XML file that MuJoCo {mujoco.mj_versionString()} "
                "compiles"
            ) from error


class _Quiet(contextlib.AbstractContextManager[None]):
    """Redirects MuJoCo's warnings from the terminal, and from MUJOCO_LOG.TXT in the working directory, to the log.

    They are the compiler's deprecation notes about gymnasium's models, and divergences, which the environments report.
    MuJoCo has one handler for the whole process, so threads that are in this context at the same time share it.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._previous: Callable[[str], None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._previous = mujoco.get_mju_user_warning()
                mujoco.set_mju_user_warning(_log)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                mujoco.set_mju_user_warning(self._previous)


def _log(text: str) -> None:
    logger.debug("MuJoCo: %s", text)


quiet = _Quiet()


# --- One simulation ---


class MuJoCoEnv(TaskEnv):
    """One simulation, which can be rendered.

    Args:
        family: the domain's class, or its address in this package, such as `ant:Velocity`.
        render_mode: None, "rgb_array" or "human".
        width: the width of the picture, in px.
        height: the height of the picture, in px.
        arguments: the family's fields.
    Raises:
        ValueError: the render mode is unknown, or an argument is out of range.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 20}

    domain: Body

    def __init__(
        self,
        family: type[Body] | str,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        **arguments: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None, 'rgb_array' or 'human', got {render_mode!r}")
        body: Body = domain_class(family)(**arguments)
        super().__init__(body)
        self.metadata = self.metadata | {"render_fps": round(1 / body.time_step)}
        self.render_mode = render_mode
        self.model = load_model(body.model_path)
        self.model.vis.global_.offwidth, self.model.vis.global_.offheight = width, height
        self.data = mujoco.MjData(self.model)
        self._size = (width, height)
        self._renderer: MujocoRenderer | None = None
        self._state: State  # The last good one.

    def render(self) -> np.ndarray | None:
        """Return a picture (height, width, 3) of bytes in mode "rgb_array", or show a window in mode "human".

        Raises:
            ValueError: the environment has no render mode.
        """
        if self.render_mode is None:
            raise ValueError("render needs a render_mode, got None; make the environment with render_mode='rgb_array'")
        body = self.data.subtree_com[1]
        if self._renderer is None:
            # Imported late: it needs a library for windows, which training does not.
            from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

            camera = {"distance": self.domain.camera_distance, "elevation": ELEVATION, "lookat": body.copy()}
            self._renderer = MujocoRenderer(self.model, self.data, camera, *self._size)
        elif self._renderer.viewer is not None:
            self._renderer.viewer.cam.lookat[:2] = body[:2]  # gymnasium's camera stays where it is.
            # Shadows take most of the time where no GPU draws them.
            self._renderer.viewer.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        return self._renderer.render(self.render_mode)

    def close(self) -> None:
        """Close the window."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _place(self, start: np.ndarray) -> None:
        fields = self.domain.dynamics(self.task)
        for name, values in fields.items():
            getattr(self.model, name)[...] = values
        if fields:
            mujoco.mj_setConst(self.model, self.data)  # Constants that follow from several fields.
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = np.split(start, [self.model.nq])
        mujoco.mj_forward(self.model, self.data)
        self._state = self._copied_state()
        if self.render_mode == "human":
            self.render()

    def _advance(self, action: np.ndarray) -> tuple[float, bool, dict[str, Any]]:
        before = self._state
        self.data.ctrl[:] = control = self.domain.applied(action)
        if self._simulate():
            logger.warning("the simulation diverged in task %s; its episode ends", self.task)
            self.data.qpos[:], self.data.qvel[:] = before.qpos, before.qvel
            return 0.0, True, {"diverged": True}
        self._state = after = self._copied_state()
        if self.render_mode == "human":
            self.render()
        reward = float(self.domain.reward(before, after, control, self.task))
        return reward, bool(self.domain.fallen(after)), {}

    def _simulate(self) -> bool:
        """Step the simulation, and return whether it diverged."""
        warned = self._divergences()
        with quiet:
            mujoco.mj_step(self.model, self.data, nstep=self.domain.frame_skip)
        # MuJoCo looks for bad numbers before each physics step, so those of the last step are found here.
        return self._divergences() > warned or not State(self.data.qpos, self.data.qvel).finite()

    def _divergences(self) -> int:
        return sum(self.data.warning[kind].number for kind in DIVERGED)

    def _copied_state(self) -> State:
        return State(self.data.qpos.copy(), self.data.qvel.copy())

    def _observe(self) -> np.ndarray:
        return self.domain.observe(self._state.qpos, self._state.qvel)


# --- Many simulations ---


class MuJoCoVectorEnv(TaskVectorEnv):
    """Many simulations, stepped together on a thread pool; the number of threads changes no digit.

    A simulation whose state is no longer finite ends its episode with reward 0, keeps its last good state, and is
    reported in info["diverged"], (N,) bool, and in the log; the others go on.

    Args:
        family: the domain's class, or its address in this package, such as `ant:Velocity`.
        num_envs: N, the number of simulations.
        threads: the number of CPU threads of the simulation.
        arguments: the family's fields.
    Raises:
        ValueError: an argument is out of range.
    """

    domain: Body

    def __init__(self, family: type[Body] | str, num_envs: int = 1, threads: int = 1, **arguments: Any) -> None:
        super().__init__(num_envs, domain_class(family)(**arguments))
        self.physics_seconds = 0.0  # Time spent inside the simulator so far.
        self.threads = threads

    @property
    def threads(self) -> int:
        """The number of CPU threads of the simulation. After it is set, a reset must come before the next step."""
        return self._batch.nthread

    @threads.setter
    def threads(self, number: int) -> None:
        check_count("threads", number, "CPU threads")
        self._batch = Batch(self.domain.model, self.num_envs, int(number))
        self._qpos, self._qvel, self._ctrl = (self._batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        self._begun = False

    def _place(self, rows: np.ndarray, starts: np.ndarray) -> None:
        self._set_dynamics(rows)
        self._batch.reset(rows, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self._qpos[rows], self._qvel[rows] = np.split(starts, [self.domain.model.nq], axis=1)
        self._batch.forward(rows)
        self._state = self._copied_state()
        self._count_divergences()

    def _set_dynamics(self, rows: np.ndarray) -> None:
        fields = self.domain.dynamics(self.tasks[rows])
        for name, values in fields.items():
            self._batch.expand(name)[rows] = values
        if fields:
            self._batch.set_const(rows)

    def _advance(self, actions: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        before = self._state
        self._ctrl[:] = control = self.domain.applied(actions)
        diverged = self._simulate(running)
        info: dict[str, Any] = {}
        if diverged.any():
            rows = np.flatnonzero(diverged)
            logger.warning(
                "simulations %s diverged, in tasks %s; their episodes end", rows.tolist(), self.tasks[rows].tolist()
            )
            self._qpos[rows], self._qvel[rows] = before.qpos[rows], before.qvel[rows]
            info["diverged"] = diverged
        self._state = after = self._copied_state()
        rewards = np.where(diverged, 0.0, self.domain.reward(before, after, control, self.tasks))
        return rewards, diverged | self.domain.fallen(after), info

    def _simulate(self, running: np.ndarray) -> np.ndarray:
        """Step the running simulations, and return which of them diverged, (N,) bool."""
        failed = np.zeros(self.num_envs, bool)
        begin = time.perf_counter()
        try:
            with quiet:
                self._batch.step(None if running.all() else np.flatnonzero(running), self.domain.frame_skip)
        except SimulationError as error:
            failed[error.ids] = True
        self.physics_seconds += time.perf_counter() - begin
        return failed | self._diverged(running)

    def _diverged(self, running: np.ndarray) -> np.ndarray:
        """Find the running simulations with bad numbers in the last step, (N,) bool."""
        before = self._divergences
        # Sums over all simulations are much faster, and nearly always suffice.
        if self._batch.warning.sum() == self._warnings and np.isfinite(self._qpos.sum() + self._qvel.sum()):
            return np.zeros(self.num_envs, bool)
        self._count_divergences()
        # MuJoCo looks for bad numbers before each physics step, so those of the last step are found here.
        return (self._divergences > before) | (running & ~State(self._qpos, self._qvel).finite())

    def _count_divergences(self) -> None:
        warnings = self._batch.warning
        self._warnings, self._divergences = warnings.sum(), warnings[:, DIVERGED, COUNT].sum(1)

    def _copied_state(self) -> State:
        return State(self._qpos.copy(), self._qvel.copy())

    def _observe(self) -> np.ndarray:
        return self.domain.observe(self._state.qpos, self._state.qvel)
