"""Figures: every colour swaps in the dark, labels are harmless, numbers are where they belong."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from scipy.stats import spearmanr

from interp.report import Report
from interp.report.figures import bars, canvas, curves, heatmap, places, plane, scatter, wall
from interp.report.figures.canvas import DARK, DARK_SHADES, GROUPS, PALE, PAPER, RULE, SHADES, STEPS
from interp.report.index import entries
from tests.test_report import HOSTILE

WORDS = ["king", "x" * 1_000_000, " ", "中文👨", "$a_b$", *HOSTILE]


def grid(values) -> pd.DataFrame:
    values = np.atleast_2d(values)
    cells = [(y, x, values[y, x]) for y, x in np.ndindex(*values.shape)]
    return pd.DataFrame(cells, columns=["pos", "layer", "effect"])


def draw_heatmap(data=None, **options):
    data = grid(np.linspace(-1, 1, len(WORDS) * 3).reshape(-1, 3)) if data is None else data
    options = {"rows": "pos", "columns": "layer", "value": "effect", "axis": "effect (nats)",
               "alt": "A picture."} | options  # fmt: skip
    return heatmap(data, **options)


def named(n: int = len(WORDS)) -> pd.DataFrame:
    value = np.linspace(-0.6, 0.9, n)
    return pd.DataFrame(
        {"word": pd.Series(WORDS[:n], dtype=object), "x": value, "y": value**2,
         "low": value - 0.1, "high": value + 0.1, "group": ["one", "two"] * (n // 2)}
    )  # fmt: skip


def groups(names=(*WORDS[:9], "none")) -> pd.DataFrame:
    cells = [(i // 5, i % 5, one) for i, one in enumerate(names)]
    return pd.DataFrame(cells, columns=["layer", "head", "role"])


def draw_wall(data=None, **options):
    data = groups() if data is None else data
    options = {"rows": "layer", "columns": "head", "group": "role", "quiet": "none",
               "alt": "A picture."} | options  # fmt: skip
    return wall(data, **options)


def draw_all() -> dict:
    data, span = named(), {"low": "low", "high": "high", "alt": "A picture."}
    axes = {"x": "x", "y": "y", "x_axis": "share \x00", "y_axis": "nats"}
    return {
        "heatmap": draw_heatmap(names={"pos": WORDS}, titles={"pos": "position (token)"}),
        "tokens below": draw_heatmap(rows="layer", columns="pos", names={"pos": WORDS}),
        "shares": draw_heatmap(grid(np.eye(3)), diverging=False),
        "ranks": draw_heatmap(grid([[1, 20, 3000], [2, 7, 1]]), ranks=True),
        "wall": draw_wall(),
        "bars": bars(data, label="word", value="x", group="group", axis="share", **span),
        "places": places(data, label="word", value="x", axis="cosine", **span),
        "curves": curves(
            data, x="x", value="y", x_axis="layer", axis="share", group="group", **span
        ),
        "scatter": scatter(data, group="group", alt="A picture.", **axes),
        "plane": plane(
            data, label="word", group="group", alt="A picture.", links=[(WORDS[0], WORDS[5])],
            outline=WORDS[1:5], **axes,
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a sign that the font lacks, a layout that collapsed
        return draw_all()


KINDS = ("heatmap", "tokens below", "shares", "ranks", "wall", "bars", "places", "curves",
         "scatter", "plane")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_colour_of_a_figure_has_its_dark_one(drawn, kind):
    svg = drawn[kind].svg.decode()
    body = svg[svg.index("</style>") :]
    used = set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", body))
    assert used
    for what, colour in used:
        assert f'[style*="{what}: {colour}"]{{{what}:{DARK[colour]} !important}}' in svg


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_names_leave_a_picture_that_opens(drawn, kind):
    root = ElementTree.fromstring(drawn[kind].svg)
    assert not [one for one in root.iter() if one.tag.rpartition("}")[2] in ("script", "image")]
    assert not re.search(rb"\b(href|src)=\"(?!#)", drawn[kind].svg.replace(b"xlink:", b""))
    assert drawn[kind].width in (round(88 / 25.4 * 96), round(180 / 25.4 * 96))
    assert Image.open(io.BytesIO(drawn[kind].png)).size[0] > 600
    assert drawn[kind].alt.startswith("A picture.")


def test_same_numbers_same_bytes_whatever_the_theme_which_stays_as_it_is(drawn):
    with matplotlib.rc_context({"axes.grid": True, "font.size": 31, "lines.linewidth": 7}):
        before = dict(matplotlib.rcParams)
        again = draw_all()
        assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
    for kind in KINDS:
        assert drawn[kind].svg == again[kind].svg, kind
        assert drawn[kind].png == again[kind].png, kind
        assert b"<dc:date>" not in drawn[kind].svg


def leftmost(figure, colour: str) -> int:
    """The first pixel column in which a colour stands."""
    pixels = np.asarray(Image.open(io.BytesIO(figure.png)).convert("RGB"))
    wanted = np.rint(np.array(to_rgb(colour)) * 255)
    found = (pixels == wanted).all(axis=2).any(axis=0)
    assert found.any(), colour
    return int(found.argmax())


def test_cells_stand_where_they_belong_and_zero_is_neutral():
    figure = draw_heatmap(grid([-2.0, 0.0, 2.0]))
    order = [leftmost(figure, SHADES[i]) for i in (0, STEPS, -1)]
    assert order == sorted(order)
    assert len(set(order)) == 3
    lopsided = draw_heatmap(grid([-0.5, 2.0]))  # both ends are equally far from zero
    assert SHADES[STEPS - STEPS // 4] in lopsided.svg.decode()
    assert leftmost(lopsided, SHADES[STEPS - STEPS // 4]) < leftmost(lopsided, SHADES[-1])


def test_the_first_rank_is_darkest_and_the_last_palest():
    figure = draw_heatmap(grid([1, 100, 10_000]), ranks=True)
    order = [leftmost(figure, SHADES[i]) for i in (-1, STEPS + STEPS // 2, STEPS)]
    assert order == sorted(order)
    assert len(set(order)) == 3
    same = draw_heatmap(grid([1, 1]), ranks=True)  # the darkest shade alone, but for the scale
    assert leftmost(same, SHADES[-1]) < leftmost(same, SHADES[STEPS + 1])
    with pytest.raises(ValueError, match="below 1, which are no ranks"):
        draw_heatmap(grid([0.5, 3]), ranks=True)


def test_a_group_has_its_colour_in_every_picture_and_none_is_grey():
    order = ["first", "second", "third"]
    both = draw_wall(groups(["none", "second", "third"]), order=order)
    alone = draw_wall(groups(["third", "none"]), order=order)
    for figure, there, absent in ((both, (1, 2), (0,)), (alone, (2,), (0, 1))):
        body = figure.svg.decode().partition("</style>")[2]
        assert f"fill: {RULE}" in body
        for i in there:
            assert f"fill: {GROUPS[i][0]}" in body, i
        for i in absent:
            assert f"fill: {GROUPS[i][0]}" not in body, i
    assert len({paper for paper, _ in GROUPS}) == 10
    draw_wall(groups([f"g{i}" for i in range(10)]), quiet=None)
    with pytest.raises(ValueError, match="11 groups, and colours tell 10 apart"):
        draw_wall(groups([f"g{i}" for i in range(11)]))
    with pytest.raises(ValueError, match="layer 0, head 0 is there more than once"):
        draw_wall(pd.concat([groups(), groups()]))


def test_rows_run_down_and_a_missing_cell_stays_empty():
    data = grid([[1.0, -1.0], [-1.0, 0.5]])
    assert leftmost(draw_heatmap(data), SHADES[-1]) < leftmost(draw_heatmap(data), SHADES[0]) + 100
    pixels = np.asarray(Image.open(io.BytesIO(draw_heatmap(data.iloc[1:]).png)).convert("RGB"))
    whole = np.asarray(Image.open(io.BytesIO(draw_heatmap(data).png)).convert("RGB"))
    changed = np.argwhere((pixels != whole).any(axis=2))
    assert len(changed) > 500
    assert (pixels[tuple(changed.T)] == 255).all()  # paper


def test_a_limit_of_its_own_is_told_and_clips():
    figure = draw_heatmap(grid([1.0, 5.0]), limit=1.0)
    assert leftmost(figure, SHADES[-1]) > 0
    assert figure.svg != draw_heatmap(grid([1.0, 1.0]), limit=1.0).svg  # the title says so
    assert draw_heatmap(grid([0.0, 0.0])).png


def test_a_large_map_is_small():
    assert len(draw_heatmap(grid(np.zeros((256, 64)))).svg) < 100_000


def luminance(colour: str) -> float:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


# Machado et al. (2009), severity 1.0, in linear light.
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


@pytest.mark.parametrize("shades", [SHADES, DARK_SHADES], ids=["light", "dark"])
def test_shades_are_ordered_by_lightness_and_both_signs_differ_for_everyone(shades):
    light = [luminance(one) for one in shades]
    away = -1 if shades is SHADES else 1
    assert (np.diff(light[STEPS:]) * away > 0).all()
    assert (np.diff(light[STEPS::-1]) * away > 0).all()
    for matrix in BLIND.values():
        seen = [np.clip(np.array(matrix) @ np.array(to_rgb(one)), 0, 1) for one in shades]
        for i in range(STEPS // 4, STEPS + 1):
            apart = np.abs(seen[STEPS + i] - seen[STEPS - i]).max()
            assert apart > 0.1, (i, shades[STEPS + i], shades[STEPS - i])


def test_no_colour_has_two_dark_ones():
    assert len(DARK) == 9 + len(PALE) + len(SHADES)
    assert len(set(SHADES)) == 2 * STEPS + 1


def test_scatter_states_the_rank_correlation():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.normal(size=50).round(1)})  # with ties
    data["y"] = rng.normal(size=50) - data["x"] ** 3
    said = scatter(data, x="x", y="y", x_axis="a", y_axis="b", alt="Two methods.").alt
    rho = spearmanr(data.x, data.y).statistic
    assert rho < -0.3
    assert said == f"Two methods. Spearman’s rank correlation −{abs(rho):.2f} (n = 50)."
    constant = scatter(data.assign(y=1.0), x="x", y="y", x_axis="a", y_axis="b", alt="Flat.").alt
    assert "No rank correlation" in constant


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.head(0), "nothing to draw"),
        (lambda d: d.drop(columns="effect"), "no column 'effect'.*'pos', 'layer'"),
        (lambda d: d.assign(effect=np.nan), "'effect' holds values that are no finite"),
        (lambda d: d.assign(effect=np.inf), "'effect' holds values"),
        (lambda d: d.assign(effect="much"), "'effect' holds values"),
        (lambda d: pd.concat([d, d]), "pos 0, layer 0 is there more than once"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        draw_heatmap(change(grid([1.0, 2.0])))


def test_refusals_of_single_figures():
    with pytest.raises(ValueError, match="below zero"):
        draw_heatmap(grid([-1.0]), diverging=False)
    with pytest.raises(ValueError, match="more than 20,000"):
        draw_heatmap(grid(np.zeros((200, 101))))
    with pytest.raises(ValueError, match="pos 2 has no name: there are 2"):
        draw_heatmap(grid(np.zeros((3, 1))), names={"pos": ["a", "b"]})
    many = pd.DataFrame({"g": list("abcdef"), "x": range(6), "v": 0.0})
    with pytest.raises(ValueError, match="6 groups, and colours tell 5 apart"):
        curves(many, x="x", value="v", low="v", high="v", group="g", x_axis="x", axis="v", alt="")
    three = named(4).assign(group=list("abcc"))
    span = {"low": "low", "high": "high", "axis": "x", "alt": "x"}
    with pytest.raises(ValueError, match="one or two groups, got 3"):
        bars(three, label="word", value="x", group="group", **span)
    frame = pd.DataFrame({"w": range(121), "x": 0.0, "low": 0.0, "high": 0.0})
    with pytest.raises(ValueError, match="121 names do not fit"):
        places(frame, label="w", value="x", **span)
    with pytest.raises(ValueError, match="no point 'absent'"):
        plane(named(4), label="word", x="x", y="y", x_axis="", y_axis="", alt="",
              links=[("king", "absent")])  # fmt: skip


def test_names_are_short_and_drawn_in_signs_that_there_are():
    assert canvas.name("x" * 1_000_000) == "x" * canvas.LABEL + "…"
    assert canvas.name("  ") == "␣␣"
    assert canvas.name("中👨\u2028") == "\\u4e2d\\U0001f468\\u2028"
    assert canvas.name("šה") == "šה"
    assert PAPER == "#ffffff"


# For a paper -----------------------------------------------------------------------------------


def letters(svg: bytes) -> list[tuple[float, str]]:
    """The size in points and the words of every text of an SVG, whose unit is a point."""
    texts = []
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        size = re.search(r"font-size: ([\d.]+)px", text.get("style", ""))
        texts.append((float(size[1]), "".join(text.itertext())))
    return texts


@pytest.mark.parametrize("kind", KINDS)
def test_letters_are_text_of_seven_points_in_the_width_of_a_column(drawn, kind):
    root = ElementTree.fromstring(drawn[kind].svg)
    width = float(root.get("width").removesuffix("pt")) * 25.4 / 72
    assert round(width, 1) in (88, 180)
    texts = letters(drawn[kind].svg)
    assert min(size for size, _ in texts) >= 7
    words = " ".join(word for _, word in texts)
    assert len(words) > 10 and ("king" in words or kind not in ("bars", "places", "plane"))
    image = Image.open(io.BytesIO(drawn[kind].print_png))
    assert image.size[0] == pytest.approx(width / 25.4 * 300, abs=1)
    assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)
    pdf = drawn[kind].pdf
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)
    assert float(box[1]) * 25.4 / 72 == pytest.approx(width, abs=0.1)
    assert b"/FontFile2" in pdf and b"/CreationDate" not in pdf and b"/Type3" not in pdf


AGAIN = """
import hashlib, sys
from tests.test_figures import draw_all
for kind, figure in draw_all().items():
    if kind not in ("heatmap", "curves", "wall"):
        continue
    files = (figure.svg, figure.png, figure.pdf, figure.print_png)
    print(kind, *(hashlib.sha256(file).hexdigest() for file in files))
"""


def test_same_numbers_same_bytes_in_another_process(drawn):
    """Whose hashes of words differ."""
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    for line in done.stdout.splitlines():
        kind, *hashes = line.rsplit(" ", 4)
        figure = drawn[kind]
        files = (figure.svg, figure.png, figure.pdf, figure.print_png)
        assert hashes == [hashlib.sha256(file).hexdigest() for file in files], kind
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("form", ["page", "paper"])
def test_a_report_writes_its_figures_for_a_page_or_for_a_paper(tmp_path, drawn, form):
    report = Report("t", "q")
    report.answer("Yes.").figure(drawn["heatmap"], "A map", name="map")
    report.section("More").figure(drawn["curves"], "Curves", name="curves")
    report.section("Table").table(pd.DataFrame({"n": [1]}), "Table")
    path = report.write(tmp_path / "r", figures=form)
    files = {p.relative_to(tmp_path / "r").as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    if form == "page":
        assert path == tmp_path / "r" / "index.html"
        assert not any(name.endswith(".pdf") for name in files)
        return
    assert path == tmp_path / "r" / "figures"
    names = {f"figures/{one}.{kind}" for one in ("map", "curves") for kind in ("svg", "pdf", "png")}
    assert files == names | {"manifest.json"}
    assert (path / "map.pdf").read_bytes().startswith(b"%PDF")
    assert Image.open(path / "map.png").info["dpi"][0] == pytest.approx(300, abs=0.1)
    assert entries(tmp_path) == []  # no page to list
    report.write(tmp_path / "r")  # and a report may take its place
    assert len(entries(tmp_path)) == 1 and not entries(tmp_path)[0].broken


def test_what_cannot_be_written_for_a_paper_is_refused(tmp_path):
    report = Report("t", "q")
    with pytest.raises(ValueError, match="no figure to print"):
        report.write(tmp_path / "r", figures="paper")
    for wrong in ("Paper", "pdf", None, True):
        with pytest.raises(ValueError, match=r"figures=.*expected 'page' or 'paper'"):
            inspect.unwrap(Report.write)(report, tmp_path / "r", figures=wrong)
    assert not (tmp_path / "r").exists()


# What a map says -------------------------------------------------------------------------------


def panels(values: dict) -> pd.DataFrame:
    return pd.concat([grid(value).assign(part=part) for part, value in values.items()])


def test_sibling_maps_have_one_size_and_one_scale():
    data = panels({"state": [[4.0, 1.0]], "MLP": [[1.0, 0.0]], "attention": [[2.0, 0.5]]})
    figure = draw_heatmap(data, panel="part", alt=None)
    maps = figure.drawn.axes[:3]
    assert [one.get_title(loc="left") for one in maps] == ["state", "MLP", "attention"]
    sizes = {tuple(one.get_position().size.round(6)) for one in maps}
    assert len(sizes) == 1
    assert len({one.get_position().y0 for one in maps}) == 1
    alone = draw_heatmap(data[data.part == "attention"], limit=4.0)
    shades = [{to_hex(patch.get_facecolor()) for patch in axes.patches} for axes in maps]
    assert shades[2] == {to_hex(patch.get_facecolor()) for patch in alone.drawn.axes[0].patches}
    assert SHADES[-1] in shades[0] and SHADES[-1] not in shades[1] | shades[2]
    assert "4 at part state, pos 0, layer 0" in figure.alt
    with pytest.raises(ValueError, match="'part' has 7 values; 6 maps fit"):
        draw_heatmap(panels({f"p{i}": [[1.0]] for i in range(7)}), panel="part")


@pytest.mark.parametrize(
    ("values", "noise", "below"),
    [([0.0, 1.0], None, False), ([-0.1, 1.0], None, True), ([-0.1, 1.0], 0.2, False),
     ([-0.3, 1.0], 0.2, True), ([0.5, 0.9], None, False), ([-1.0, -0.5], None, True)],
)  # fmt: skip
def test_a_scale_has_a_negative_side_where_values_do(values, noise, below):
    scale = draw_heatmap(grid(values), noise=noise).drawn.axes[1]
    assert (scale.get_ylim()[0] < 0) == below
    shades = {to_hex(patch.get_facecolor()) for patch in scale.patches}
    assert (SHADES[0] in shades) == below


def test_what_lies_within_the_noise_is_grey():
    axes = draw_heatmap(grid([-0.3, -0.2, 0.1, 0.21]), noise=0.2).drawn.axes[0]
    grey = [patch for patch in axes.patches if to_hex(patch.get_facecolor()) == RULE]
    (patch,) = grey
    assert patch.get_path().vertices[:, 0].min() == 0.5  # the second cell
    assert patch.get_path().vertices[:, 0].max() == 2.5
    data = named(4)
    for figure in (
        bars(data, label="word", value="x", group="group", axis="a", low="low", high="high",
             noise=0.25),
        curves(data, x="x", value="y", low="low", high="high", x_axis="x", axis="y", noise=0.25),
    ):  # fmt: skip
        bands = [one for one in figure.drawn.axes[0].patches if to_hex(one.get_facecolor()) == RULE]
        assert len(bands) == 1


def test_without_words_a_picture_tells_its_numbers():
    data = named(6).assign(y=lambda frame: frame["x"] ** 3)
    span = {"low": "low", "high": "high"}
    axes = {"x": "x", "y": "y", "x_axis": "share", "y_axis": "nats"}
    top, bottom = f"{data['x'].max():.3g}", f"{data['x'].min():.3g}".replace("-", "−")
    for figure in (
        draw_heatmap(grid([0.9, -0.6, 0.01]), alt=None, noise=0.05, names={"pos": ["</b>\u2028"]}),
        bars(data, label="word", value="x", group="group", axis="share", **span),
        places(data, label="word", value="x", axis="cosine", **span),
        curves(data, x="y", value="x", x_axis="layer", axis="share", **span),
        scatter(data, **axes),
        plane(data, label="word", **axes),
    ):
        assert top in figure.alt and bottom in figure.alt
        assert not {"\u2028", "\n"} & set(figure.alt)
        assert not re.search(r"\b(nan|None)\b", figure.alt)
    assert "1 lie within the noise of ±0.05" in draw_heatmap(
        grid([0.9, -0.6, 0.01]), alt=None, noise=0.05
    ).alt  # fmt: skip
    said = draw_heatmap(grid([[3, 1, 40]]), alt=None, ranks=True).alt
    assert "First: 1 at pos 0, layer 1; 3 at" in said
    assert "none 1" in draw_wall(alt=None).alt
