"""The package: importing it is light, and every public name is there when it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metarl_l2f

HEAVY = [
    "matplotlib",
    "tensorboard",
    "torch.utils.tensorboard",
    "flask",
    "tyro",
    "scipy",
    "PIL",
    "mujoco",
    "imageio_ffmpeg",
    "jinja2",
    "termios",
    "resource",
]
"""What only some programs need, or only some systems have."""
POSIX = ("fcntl", "resource", "termios", "pwd", "grp")


def printed(program):
    """What a fresh Python prints that runs a program."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_nothing_heavy():
    program = f"import sys, metarl_l2f; print(*(name for name in {HEAVY} + ['torch'] if name in sys.modules))"
    assert printed(program) == []


def test_learners_need_no_pictures_no_board_and_no_command_line():
    program = (
        f"import sys, metarl_l2f; metarl_l2f.MetaRL, metarl_l2f.MetaSupervised; import metarl_l2f.training.loop\n"
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    assert printed(program) == []


@pytest.mark.parametrize(
    "use", ["metarl_l2f", "metarl_l2f.MetaRL, metarl_l2f.MetaSupervised, metarl_l2f.AdaptedPolicy"]
)
def test_the_package_needs_no_module_that_only_posix_has(use):
    blocked = f"import sys; sys.modules.update(dict.fromkeys({POSIX}))"
    assert printed(f"{blocked}; import metarl_l2f; {use}; print('imported')") == ["imported"]


def test_learners_are_imported_when_they_are_used():
    program = (
        "import sys, metarl_l2f\n"
        "for name in ('MetaRL', 'MetaSupervised'):\n"
        "    print(name in vars(metarl_l2f), name in dir(metarl_l2f), getattr(metarl_l2f, name).__module__)"
    )
    expected = ["False", "True", "metarl_l2f.rl.experiment", "False", "True", "metarl_l2f.supervised.experiment"]
    assert printed(program) == expected


def test_importing_the_package_registers_its_environments():
    program = "import metarl_l2f, gymnasium; print(gymnasium.spec('metarl_l2f/Navigation2D-v0').id)"
    assert printed(program) == ["metarl_l2f/Navigation2D-v0"]


def test_every_public_name_is_there():
    for name in metarl_l2f.__all__:
        assert getattr(metarl_l2f, name) is not None
    with pytest.raises(AttributeError, match="module 'metarl_l2f' has no attribute 'MAML'"):
        _ = metarl_l2f.MAML


def test_type_checkers_are_shown_the_names_that_are_imported():
    (block,) = (
        node for node in ast.parse(Path(metarl_l2f.__file__).read_text("utf-8")).body if isinstance(node, ast.If)
    )
    shown = {node.module: tuple(alias.name for alias in node.names) for node in block.body}
    assert shown == metarl_l2f._NAMES
    assert sorted(metarl_l2f.__all__) == sorted(["envs", *metarl_l2f._MODULES])
