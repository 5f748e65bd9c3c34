"""Fits of sinusoids, and episodes of images: what is drawn is what the networks put out."""

import matplotlib
import numpy as np
import torch

from metarl_l2f.reports.fits import few_shot_episode, sinusoid_fit
from metarl_l2f.reports.style import COLUMN
from metarl_l2f.supervised.episodes import Task


def sinusoids(number=2, points=9):
    x = torch.linspace(-5, 5, points).expand(number, points).unsqueeze(-1)
    return Task(x[:, :3], x[:, :3].sin(), x, x.sin(), torch.empty(number, 0))


def test_a_row_a_network_a_column_a_curve():
    tasks = sinusoids()
    fits = {"L2F": torch.zeros(2, 3, 9, 1), "MAML": torch.ones(2, 2, 9, 1)}
    figure = sinusoid_fit(tasks, fits)
    panels = figure.axes
    assert len(panels) == 4 and [panels[0].get_ylabel(), panels[2].get_ylabel()] == ["L2F", "MAML"]
    # The curve, a line per step, and the points.
    assert [len(axes.lines) for axes in panels] == [1 + 3 + 1, 1 + 3 + 1, 1 + 2 + 1, 1 + 2 + 1]
    np.testing.assert_allclose(panels[0].lines[0].get_ydata(), tasks.query_targets[0, :, 0])
    np.testing.assert_allclose(panels[3].lines[1].get_ydata(), np.ones(9))
    assert [text.get_text() for text in figure.legends[0].texts][-1] == "after 2 steps"


def test_a_narrow_picture_of_fits_has_a_column_a_network():
    tasks, outputs = sinusoids(3), {"L2F": torch.zeros(3, 2, 9, 1), "MAML": torch.ones(3, 2, 9, 1)}
    panels = sinusoid_fit(tasks, outputs, width=COLUMN).axes
    assert len(panels) == 6 and [axes.get_title() for axes in panels] == ["L2F", "MAML", "", "", "", ""]
    assert [axes.lines[1].get_ydata()[0] for axes in panels] == [0, 1, 0, 1, 0, 1]


def an_episode():
    targets = torch.tensor([[0, 0, 1, 1]])
    pictures = torch.rand(1, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    task = Task(pictures[:, :2], torch.tensor([[0, 1]]), pictures, targets, torch.empty(1, 0))
    after = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])  # the second image of class 0 is taken for class 1
    return task, torch.stack([after * 0 + torch.tensor([0.0, 1.0]), after]).unsqueeze(0)


def test_an_episode_shows_which_images_were_classified_correctly():
    figure = few_shot_episode(*an_episode())
    frames = [axes.spines["left"].get_edgecolor() for axes in figure.axes]
    right, wrong = (matplotlib.colors.to_rgba(colour) for colour in ("#0072B2", "#D55E00"))
    assert frames[1:3] == [right, wrong] and frames[4:] == [right, right]
    assert figure.legends[0].get_title().get_text() == "accuracy in this episode: 50 % before adaptation, 75 % after"


def test_fits_and_episodes_fit_a_column_of_a_paper(fits_its_page):
    fits_its_page(sinusoid_fit(sinusoids(4), dict.fromkeys(("L2F", "MAML"), torch.zeros(4, 3, 9, 1)), width=COLUMN))
    fits_its_page(few_shot_episode(*an_episode(), width=COLUMN))
