"""What a reader is shown: every variant, the right line, nothing that a model wrote as markup, nothing from afar."""

import json
import re
from html.parser import HTMLParser

import made_up
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import report
from stages.core.process.errors import UserError
from stages.core.reporting import beside, chapters, drawing, facts, page, paired, pictures, published, tables
from stages.core.reporting.study import pareto, summary
from stages.core.settings import params

OUTS = {
    "summary": "summary.json", "variants": "variants", "points": "points", "plots": "plots", "report": "report.md",
    "texts": "samples.md", "html": "report.html",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that the stage left, of a study of fifteen variants."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "variants", lambda profile: dict.fromkeys(made_up.NAMES))
        given_files = made_up.lay_out(made_up.study(), folder / "given")
        report.main(profile="small", **given_files, **{option: folder / name for option, name in OUTS.items()})
    return folder


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text in the cells of tables."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_what_a_reader_takes_away():
    study = made_up.study(("original", "softshare", "merged_4"))
    for name, parameters, after, speedup in (
        ("original", 100, 10.0, 1.02), ("softshare", 90, 10.4, 0.97), ("merged_4", 60, 12.0, 1.30),
    ):  # fmt: skip
        study.sizes[name].update(parameters=parameters, parameter_ratio=parameters / 100)
        study.perplexity[name].update(after=after)
        study.latency[name].update(speedup=speedup)
    assert [fact.value for fact in facts.facts(study)] == ["10.000", "90%", "1.30×"]
    study.perplexity["softshare"].update(after=10.6)
    study.latency["merged_4"].update(speedup=1.01)
    _, near, fast = facts.facts(study)
    assert near.value == fast.value == "none" and "(1.02×)" in fast.note
    # On a busy machine even the original may be slower than itself: nothing below 1 is fast.
    study.latency["original"].update(speedup=0.85)
    study.latency["merged_4"].update(speedup=0.99)
    assert facts.facts(study)[2].value == "none"
    # As far off 1 as the original beside itself is noise, above 1 as below.
    study.latency["merged_4"].update(speedup=1.14)
    assert facts.facts(study)[2].value == "none"
    study.latency["merged_4"].update(speedup=1.16)
    assert facts.facts(study)[2].value == "1.16×"


def test_the_page_needs_nothing_but_itself(made):
    text = (made / "report.html").read_text()
    for tag, attributes in Elements(text).found:
        assert tag not in ("script", "link", "iframe", "object", "base", "img")
        for name in ("href", "xlink:href", "src", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_what_a_model_wrote_is_text(made):
    text = (made / "report.html").read_text()
    assert "<script" not in text and "<b>bold" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in text and "&lt;b&gt;bold&lt;/b&gt;" in text


def test_inline_markdown_lets_no_tag_through(tmp_path):
    (tmp_path / "p.html.j2").write_text("{{ text | inline }}")
    text = page.render(tmp_path, "p.html.j2", text="*a* `<b>` <img src=x onerror=y>")
    assert text == "<em>a</em> <code>&lt;b&gt;</code> &lt;img src=x onerror=y&gt;"


def test_ids_are_unique_and_every_target_is_there(made):
    attributes = [attributes for _, attributes in Elements((made / "report.html").read_text()).found]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    targets = [found.get("href", found.get("xlink:href")) for found in attributes]
    assert {target[1:] for target in targets if target and target.startswith("#")} <= set(ids)


def test_every_variant_is_everywhere(made):
    html, markdown = (made / "report.html").read_text(), (made / "report.md").read_text()
    for name in made_up.NAMES:
        assert f'<th scope="row">{name}</th>' in html and f"\n| {name} |" in markdown
        assert f"**{name}**" in (made / "samples.md").read_text()
        assert (made / f"variants/{name}.json").exists()
        assert html.count(f">{name}</text>") >= 3  # the legends
    found = json.loads((made / "summary.json").read_text())
    study = made_up.study()
    kept = paired.margins(paired.read(made / "given/losses", made_up.NAMES))  # float32
    assert kept == pytest.approx(study.margins, rel=1e-3)
    study.margins.update(kept)
    assert found == summary(study) and list(found) == list(made_up.NAMES)
    assert found["svd"]["sentiment"].keys() == {"accuracy"}
    assert found["svd"]["summarization"].keys() == {"rouge1", "rouge2", "rougeL", "rougeLsum"}


def test_tables_in_markdown_have_as_many_cells_in_every_row(made):
    for block in re.findall(r"(?:^\|.*\n)+", (made / "report.md").read_text(), re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_drawings_are_the_same_bytes_twice(made, tmp_path):
    drawings = pictures.drawings(made_up.study())
    for name in ("perplexity_by_size", "window_search"):
        draw = drawings[name]
        drawing.png(draw(), tmp_path / name)
        assert (tmp_path / name).read_bytes() == (made / f"plots/{name}.png").read_bytes()
        assert drawing.svg(draw(), name) == drawing.svg(draw(), name)


def test_windows_scored_with_the_ranks_of_a_budget_are_none_of_the_single_ones():
    study = made_up.study(("original", "softshare"))
    found = study.windows["softshare"]
    first = found["candidates"][0]
    found["groups"] = [list(range(first["windows"][0][0], first["windows"][0][1] + 1))]
    singles = len(found["candidates"])
    found["candidates"] = [*found["candidates"], first | {"perplexity": 1.9, "budget": True}]
    found["ranks"] = {"0": {"in": 3}}
    table = tables.searches(study)[0]
    assert f"{singles} windows and 1 sets of them" in table.title
    assert [row[1] for row in table.rows if "chosen" in row[0]] == ["1.900"]
    drawn = pictures.window_search(study).axes[0].lines[0].get_ydata()
    assert len(drawn) == singles and 1.9 not in drawn


def test_no_line_is_drawn_across_starts_that_nobody_scored():
    study = made_up.study(("original", "softshare"))
    scored = study.windows["softshare"]["candidates"]
    del scored[2:5]
    line = pictures.window_search(study).axes[0].lines[0]
    assert list(line.get_xdata()) == list(range(9))
    assert list(np.flatnonzero(np.isnan(line.get_ydata()))) == [2, 3, 4]
    assert line.get_ydata()[5] == scored[2]["perplexity"]


def test_a_window_far_above_the_rest_flattens_no_other():
    study = made_up.study(("original", "softshare"))
    scored = study.windows["softshare"]["candidates"]
    scored[0]["perplexity"] = 9104.3
    axes = pictures.window_search(study).axes[0]
    others = [candidate["perplexity"] for candidate in scored[1:]]
    assert np.isnan(axes.lines[0].get_ydata()[0]) and list(axes.lines[0].get_ydata()[1:]) == others
    assert [text.get_text() for text in axes.texts] == ["9,104"] and axes.get_ylim()[1] < 2 * max(others)
    assert "from 0" in axes.get_xlabel()


@pytest.mark.parametrize("high", [1.2, 3, 9, 11, 40, 900, 90_000])
def test_a_logarithmic_axis_has_several_labels_whatever_it_spans(high):
    figure, axes = drawing.new_figure(1)
    axes.plot([0, 1], [1.6, 1.6 * high])
    drawing.logarithmic(axes.yaxis)
    figure.draw_without_rendering()
    low, top = axes.get_ylim()
    labels = [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= top]
    drawing.plt.close(figure)
    assert len([label for label in labels if label]) >= 3 and len(set(labels)) == len(labels)


def test_markers_that_would_cover_each_other_stand_side_by_side():
    figure, axes = drawing.new_figure(1)
    points = {"a": (2.3, 1.64), "b": (2.3, 1.64), "c": (2.3, 1.9), "d": (2.7, 1.64), "e": (2.3, 1.6401)}
    axes.plot(*zip(*points.values()))
    moved = drawing.side_by_side(axes, points)
    drawing.plt.close(figure)
    assert moved["c"] == moved["d"] == 0
    assert sorted(moved[name] for name in "abe") == [-drawing.APART, 0, drawing.APART]


@pytest.mark.parametrize("draw", [pictures.perplexity_by_size, pictures.perplexity_by_speed])
def test_the_closer_look_holds_the_control_and_half_of_the_variants(draw):
    study, half = made_up.study(), -(-len(made_up.NAMES) // 2)
    for number, name in enumerate(made_up.NAMES):
        study.perplexity[name].update(after=study.control * (1 + 0.01 * number if number < half else 9.0))
    near = draw(study).axes[1]
    shown = [line for line in near.lines if line.get_marker() not in ("None", "")]
    assert len(shown) == half and "up to 1.1 times the control" in near.get_title("left")


@pytest.mark.parametrize("draw", [pictures.perplexity_by_size, pictures.perplexity_by_speed])
def test_the_closer_look_has_a_bar_for_each_interval_that_is_known(draw):
    study = made_up.study(("original", "softshare", "svd"))
    study.perplexity["svd"].update(after=study.control * 1.02)
    study.margins.update(softshare=0.01, svd=5.0)  # the second leaves the panel
    near = draw(study).axes[1]
    bars = [list(line.get_ydata()) for line in near.lines if len(line.get_xdata()) == 2 and line.get_alpha() == 0.4]
    assert bars == [pytest.approx([bound * study.control for bound in study.bounds(name)]) for name in study.variants]
    assert near.get_ylim()[1] < 1.1 * study.control
    study.margins.clear()
    assert not [line for line in draw(study).axes[1].lines if line.get_alpha() == 0.4 and len(line.get_xdata())]


def test_losses_are_not_offered_for_comparison():
    losses, validation = pictures.training(made_up.study()).axes
    assert "within a variant only" in losses.get_title("left")
    assert "across variants" in validation.get_title("left")


def test_the_loss_of_many_small_batches_is_drawn_as_their_mean():
    study = made_up.study(("original",))
    losses = [2.0 + (step % 2) for step in range(400)]
    study.training["original"][:] = [{"tokens": 512 * step, "loss": loss} for step, loss in enumerate(losses)]
    drawn = pictures.training(study).axes[0].lines[0].get_ydata()
    assert len(drawn) == 400 and drawn[0] == 2.0 and drawn[9:] == pytest.approx(2.5)


def test_names_that_differ_in_their_number_share_a_colour_and_no_two_look_alike():
    looks = pictures.styles(made_up.NAMES)
    assert looks["merged_4"]["color"] == looks["merged_10"]["color"] != looks["softshare"]["color"]
    assert looks["softshare"]["color"] != looks["softshare_seed"]["color"]
    assert len({tuple(look.values()) for look in looks.values()}) == len(looks)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_pareto_line_holds_exactly_what_nothing_beats(points):
    named = dict(enumerate(points))

    def beaten(point):
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    line = pareto(named)
    assert {named[name] for name in line} == {point for point in points if not beaten(point)}
    assert [named[name] for name in line] == sorted({named[name] for name in line})


@pytest.mark.parametrize(("model", "said"), [("openai-community/gpt2", "line by line"), ("data/model", "no value")])
def test_what_is_comparable_depends_on_the_model(model, said):
    chapter = next(c for c in chapters.chapters(made_up.study(model=model)) if c.title == "Beside published figures")
    assert said in chapter.parts[0]


@pytest.mark.parametrize("seeds", [True, False])
def test_published_figures_stand_beside_variants_of_the_same_name(seeds):
    found = {table.title: table for table in beside.beside(made_up.study(seeds=seeds))}
    ours = {row[0]: row[1:] for row in found["Perplexity after fine-tuning"].rows}
    # Where the notes' protocol was not repeated, it has no column.
    assert ours["original"] == ("1.66", *(["2.00"] if seeds else []), "12.22")
    assert ours["compressed_6"][-1] == "33.22" and "svd" not in ours


def test_figures_of_others_have_the_columns_that_their_source_has():
    found = {table.title.split(" ")[0]: table for table in beside.elsewhere(made_up.study().published.images)}
    assert found["MiniViT"].header == ("model", "millions of parameters", "accuracy")
    assert ("Mini-DeiT-B", "44.0", "0.8320") in found["MiniViT"].rows
    assert found["ToMe"].header == ("model", "accuracy", "images a second")
    assert found["Verma"].rows == [("ViT, 99% of its performance", "0.79")] and "FiPS" in found


def test_published_figures_must_be_well_formed(tmp_path):
    (tmp_path / "p.yaml").write_text("seeds: {title: t, model: m, protocol: p, figures: [{name: a, accuracy: 87}]}")
    with pytest.raises(UserError, match="accuracy"):
        published.read(tmp_path / "p.yaml")


def test_the_report_says_how_much_test_text_was_learnt(made):
    said = "Text: 25 of the test split's 1,250 rows (1.5% of its characters) are rows of the train split too; 0 of the"
    assert said in (made / "report.md").read_text()


def test_another_text_has_its_columns_where_it_was_measured():
    study, without = made_up.study(), made_up.study(other=False)
    found = tables.headline(study)
    row = found.rows[made_up.NAMES.index("merged_4")]
    assert dict(zip(found.header, row))["other ppl before"] == "7.000"
    assert dict(zip(found.header, row))["other ppl after"] == "6.500"
    own = {"before", "after", "to_control", "margin"}
    assert summary(study)["merged_4"]["perplexity"].keys() == own | {"other_before", "other_after"}
    assert summary(without)["merged_4"]["perplexity"].keys() == own
    assert set(found.header) - set(tables.headline(without).header) == {"other ppl before", "other ppl after"}
    told = ["".join(part for chapter in chapters.chapters(each) for part in chapter.parts if isinstance(part, str))
            for each in (study, without)]  # fmt: skip
    assert "4,567 tokens of another text" in told[0] and "1 of the other text's 20 rows" in told[0]
    assert "other text" not in told[1]


def test_a_report_removes_what_other_variants_have_left(tmp_path, monkeypatch):
    monkeypatch.setattr(params, "variants", lambda profile: dict.fromkeys(("original", "svd_0.9")))
    monkeypatch.setattr(drawing, "png", lambda figure, path: drawing.plt.close(figure) or path.touch())
    monkeypatch.setattr(drawing, "svg", lambda figure, name: drawing.plt.close(figure) or "")
    (tmp_path / "given").mkdir()
    given = made_up.lay_out(made_up.study(("original", "svd_0.9", "gone", "svd_0")), tmp_path / "given")
    folders = [path for path in (tmp_path / "given").iterdir() if path.is_dir()]
    assert len(folders) == 10
    for folder in folders:
        (folder / ".gitignore").write_text("/original.json\n")
        (folder / "notes.txt").write_text("mine")
    report.main(profile="small", **given, **{option: tmp_path / name for option, name in OUTS.items()})
    for folder in folders:
        assert {path.stem for path in folder.iterdir()} == {"original", "svd_0.9", ".gitignore", "notes"}


def test_environments_name_the_precision_of_what_was_trained():
    table = tables.environments(made_up.study())
    assert [row[0] for row in table.rows] == ["recovery", "perplexity; latency; sentiment; summarization"]
    assert [row[table.header.index("precision")] for row in table.rows] == ["bfloat16", "float32"]


def test_the_picture_of_a_mixture_says_form_and_share_of_every_matrix():
    study = made_up.study()
    axes = pictures.forms(study).axes[0]
    assert pictures.mixed(study) == ["svd"] and len(axes.patches) == 2 * 12
    assert [patch.get_label() for patch in axes.patches[:6]] == ["sparse", "gone", "low rank", "gone", "dense", "gone"]
    assert [text.get_text() for text in axes.texts[:6]] == ["50", "0", "30", "0", "100", "0"]
    assert "forms" in pictures.drawings(study)
    assert "forms" not in pictures.drawings(made_up.study(("original", "softshare")))
