"""The style of all pictures, and their files, which come out whole."""

import threading

import matplotlib
import pytest
from matplotlib import image, pyplot
from matplotlib.figure import Figure

from metarl_l2f.reports.style import finish_panel, legend_above, minus, save, step_title


def picture(width=4.0, height=3.0):
    """One panel with a line, names and a legend."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    (line,) = axes.plot([0, 1], [0, 1], label="L2F")
    finish_panel(axes)
    legend_above(figure, [line], 3, "by γ")
    return figure


def test_a_png_has_200_pixels_an_inch(tmp_path):
    save(picture(width=4.0, height=3.0), tmp_path / "picture.png")
    height, width, _ = image.imread(tmp_path / "picture.png").shape
    assert (width, height) == (800, 600)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_pdf_has_fonts_that_publishers_accept(tmp_path):
    save(picture(), str(tmp_path / "picture.PDF"))
    content = (tmp_path / "picture.PDF").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/FontFile2" in content and b"/Type3" not in content


@pytest.mark.parametrize("name", ["curve.jpg", "curve", "png"])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"path must end in \.png or \.pdf, got .*; rename the picture"):
        save(Figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_drawing_and_saving_leave_no_trace_in_matplotlib(tmp_path):
    before = dict(matplotlib.rcParams)

    def draw(number, suffix):
        for i in range(3):
            save(picture(), tmp_path / f"{number}_{i}.{suffix}")

    threads = [threading.Thread(target=draw, args=work) for work in enumerate(["pdf", "pdf", "png"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 9
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_a_negative_number_has_a_minus_sign_and_zero_has_none():
    assert [minus(text) for text in ("-1.5", "2.0", "-0.0")] == ["−1.5", "2.0", "0.0"]


def test_the_title_of_a_panel_gives_steps_and_return():
    assert [step_title(step, value) for step, value in ((0, -8.0), (1, -0.04), (2, 3.14))] == [
        "before\nreturn −8.0",
        "after 1 step\nreturn 0.0",
        "after 2 steps\nreturn 3.1",
    ]


def test_the_title_of_a_legend_is_small_in_a_narrow_picture():
    sizes = [picture(width=width).legends[0].get_title().get_fontsize() for width in (3.3, 5.0)]
    assert sizes == [7, 8]
