"""Film a trained run on one task: before adaptation and after 1 to k gradient steps, side by side."""

from metarl_l2f.program import as_program

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from metarl_l2f.checks import check_count, check_number
from metarl_l2f.methods import label_of
from metarl_l2f.reports.video import checked_path, save, side_by_side
from metarl_l2f.rl.experiment import MetaRL
from metarl_l2f.runs.command_line import USER_ERRORS, fail, read_alone
from metarl_l2f.runs.film import LAST_FRAME_SECONDS, USUAL_FPS, chosen_task, film, filmable, in_words
from metarl_l2f.runs.reinforcement import load_policy

SMALLEST_PANEL = 200  # Pixels: below, the text does not fit.


@dataclass(frozen=True)
class Options:
    """A video of a trained run on one task: its policy before adaptation and after each inner step, side by side.

    Every policy plays one episode, from the same start. Works without a screen.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    task: tuple[float, ...] | None = None
    """The task, one number or several, as in --task -1 or --task 0.3 -0.2; by default one from the evaluation's random
    stream."""
    steps: int = 1
    """Inner gradient steps."""
    episodes: int | None = None
    """Episodes before adaptation and after every step, to adapt on; by default as in training."""
    later_lr_factor: float | None = None
    """Step size of steps beyond the trained ones, relative to the last trained one; by default as in training."""
    seed: int | None = None
    """Seed of the task, the start and the noise; by default the run's own."""
    checkpoint: Literal["best", "latest"] = "best"
    """The best by validation, or the latest."""
    out: Path | None = None
    """The video, an .mp4 or a .gif; by default play.mp4 in the run's folder."""
    size: int = 360
    """Height of a panel, pixels."""
    fps: float | None = None
    """Frames per second; by default the environment's own, at which its time passes as it really does."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("episodes", 1), ("size", SMALLEST_PANEL)):
            if (value := getattr(self, name)) is not None:
                check_count(name, value, least)
        if self.fps is not None:
            check_number("fps", self.fps, "(0, inf)")
        folder = checked_path(self.video).parent
        if self.out is not None and not folder.is_dir():
            raise ValueError(f"out must lie in a folder that exists, got {self.out}; make {folder} first")

    @property
    def video(self) -> Path:
        """The file of the video."""
        return self.out or self.run / "play.mp4"


@as_program
def main(arguments: list[str] | None = None) -> int:
    """Parse, adapt, film, save and print."""
    try:
        options = read_alone(Options, arguments)
        torch.set_num_threads(1)
        _, experiment = load_policy(options.run, options.checkpoint, later_lr_factor=options.later_lr_factor)
        try:
            print(play(experiment, options))
        finally:
            experiment.close()
    except USER_ERRORS as error:
        return fail(error)
    return 0


def play(experiment: MetaRL, options: Options) -> str:
    """Adapt to the task, write the video, and return the sentence to print, with the returns."""
    settings, name = experiment.settings, str(experiment.env)
    seed = settings.seed if options.seed is None else options.seed
    episodes = options.episodes or settings.episodes_per_task
    task = chosen_task(experiment, options.task, seed)
    env = filmable(name, experiment.env_kwargs, options.size)
    try:
        adapted = experiment.adapt(task=task, steps=options.steps, episodes=episodes, seed=seed)
        clips = film(env, adapted, task, settings.horizon, seed, options.size)
        subject = in_words(task, env)
        fps = options.fps or env.metadata.get("render_fps") or USUAL_FPS
    finally:
        env.close()
    heading = name.rpartition("/")[-1]
    frames = side_by_side(clips, heading, subject, label_of(settings.method), hold=round(LAST_FRAME_SECONDS * fps))
    save(frames, options.video, fps)
    returns = ", ".join(
        f"{clip.title} {clip.returns[-1]:.1f} ({mean:.1f})" for clip, mean in zip(clips, adapted.returns, strict=True)
    )
    mean_of = f"mean of {episodes} episodes" if episodes > 1 else "the episode adapted on"
    return f"wrote {options.video}; {subject}; return (in brackets: {mean_of}) {returns}"


if __name__ == "__main__":
    sys.exit(main())
