"""`byol-jax compare`: its numbers are those of the files, and what it refuses."""

import re

import pytest
from absl import flags
from commands import imported
from html_page import Page

from byol_jax.errors import CheckpointError, ConfigError
from byol_jax.report import compare, tables


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return Page(compare(runs, tmp_path_factory.mktemp("page") / "page.html").read_text())


def rows_of(page, caption):
    """The rows of a table as text, with * at a marked cell."""
    (body,) = re.findall(
        rf"(?s)<caption>[^<]*{re.escape(caption)}[^<]*</caption>(.*?)</table>", page.words
    )
    found = []
    for row in re.findall(r"(?s)<tr.*?</tr>", body):
        cells = re.findall(r"(?s)<(?:th|td)(.*?)>(.*?)</t[hd]>", row)
        texts = [re.sub("<[^>]*>", "", text.replace(", the best", "")) for _, text in cells]
        marks = ["*" * ("best" in attributes) for attributes, _ in cells]
        found.append([text + mark for text, mark in zip(texts, marks, strict=True)])
    return found


def test_a_page_is_complete_and_can_be_read_aloud(page):
    assert page.text.startswith("<!doctype html>") and len(page.text) < 4e6
    assert all(url.startswith("#") and url[1:] in page.ids for url in page.urls)
    assert not page.all("link") and "default-src 'none'" in page.text
    assert len(page.ids) == len(set(page.ids)) and len(page.all("h1")) == 1
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in cell for cell in page.all("th"))
    charts = [found for tag, found in page.tags if found.get("class") == "chart"]
    assert "first from 1.5 to 0.5; second from 2 to 0.667" in charts[0]["aria-label"]


def test_differing_settings_are_found(page):
    header, *rows = rows_of(page, "differ. Bold")
    assert header == ["Setting", "first", "second", "signals"]
    found = {key: values for key, *values in rows}
    assert found["data.kind"] == ["images", "images", "signals"]
    assert found["optimizer.base_learning_rate"][:2] == ["0.01", "0.25"]
    assert found["log_every_steps"][:2] == ["2", "1"]
    assert found["encoder.channels"][0] == "(4, 8)" and found["data.image_size"][2] == "–"
    assert [*found][:1] == ["data.kind"] and [*found][-1:] == ["log_every_steps"]
    assert "seed" not in found and "<dt>seed</dt><dd>0</dd>" in page.words


def test_two_runs_differ_in_what_was_changed(runs, tmp_path):
    page = Page(compare(runs[:2], tmp_path / "page.html").read_text())
    keys = [row[0] for row in rows_of(page, " differ.")[1:]]
    assert keys == ["optimizer.base_learning_rate", "log_every_steps"]
    last = rows_of(page, "The last value of each metric")
    assert last[1:] == [["first", "60.0%*", "0.5"], ["second", "25.0%", "0.6667"]]


def test_results_are_those_of_the_files(page):
    assert rows_of(page, "knn on some/test, 1,200 images") == [
        ["Run", "k = 20", "95%", "step"],
        ["first", "52.5%", "50.0 to 55.0", "6"],
        ["second", "75.0%*", "70.0 to 80.0", "3"],
        ["random, of first", "90.0%", "80.0 to 95.0", ""],
    ]
    single = page.words.index("1 of one run only")
    assert single < page.words.index("<caption>retrieval</caption>")
    assert "second: broken.json holds no result" in page.words


def test_runs_of_unequal_lengths_have_their_numbers_and_curves(page):
    _, first, second, third = rows_of(page, "How far the runs are")
    assert first[:5] == ["first", "6 of 6", "3.0", "12 seconds", "8"]
    assert second[:5] == ["second", "3 of 6", "1.5", "", ""]
    assert third[1].startswith("0 of ")
    charts = {chart["metric"]: chart["lines"] for chart in page.drawn["charts"]}
    one, other = charts["byol_loss"]
    assert one == {"run": 0, "steps": [2, 4, 6], "values": [1.5, 0.75, 0.5], "seconds": [4, 8, 12]}
    assert other["steps"] == [1, 2, 3] and other["seconds"] == [None] * 3
    assert [run["steps_per_epoch"] for run in page.drawn["runs"]] == [2, 2, 2]
    assert list(charts)[-1] == "images_per_second"


def test_metrics_on_different_data_have_no_best(page):
    assert all("*" not in cell for row in rows_of(page, "The last value") for cell in row)
    assert "no accuracy and no RankMe is marked" in page.words


def test_the_best_is_that_of_the_runs():
    numbers = {
        ("a", 0): {"top": "50.0% +-1.0", "rank": "3", "95%": "4 to 5", "same": "1"},
        ("b", 1): {"top": "50.0% +-9.0", "rank": "20", "95%": "1 to 2", "same": "1"},
        ("c", 2): {"top": "9.5%"},
        ("d", None): {"top": "99%", "rank": "1"},
    }
    made = tables.table("", numbers, higher={"top", "same"}, lower={"rank"}, order=["rank", "no"])
    assert made.titles == ["rank", "top", "95%", "same"]
    best = [
        [title for title, cell in zip(made.titles, row.cells, strict=True) if cell.is_best]
        for row in made.rows
    ]
    assert best == [["rank", "top"], ["top"], [], []]
    texts = ("1,234.5", "-1.62", "1e-05", "3.2e+03", "", "nan")
    assert [*map(tables.value, texts)] == [1234.5, -1.62, 1e-5, 3200, None, None]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    copy = tmp_path / "other" / "first"
    copy.mkdir(parents=True)
    (copy / "config.json").write_bytes((runs[0] / "config.json").read_bytes())
    page = Page(compare([runs[0], copy], tmp_path / "page.html").read_text())
    names = [run["name"] for run in page.drawn["runs"]]
    assert names == [f"{runs[0].parent.name}/first", "other/first"]
    assert "these runs have the same settings" in page.words


def test_mistakes_are_one_line(runs, tmp_path):
    first = str(runs[0])
    output = f"--output={tmp_path / 'page.html'}"
    with imported("compare") as command:

        def call(*folders, output=output):
            flags.FLAGS.unparse_flags()
            flags.FLAGS(["compare", output, *(f"--run={folder}" for folder in folders)])
            command.main()

        with pytest.raises(ConfigError, match="two or more runs"):
            call(first)
        with pytest.raises(ConfigError, match="first is named twice"):
            call(first, f"{first}/")
        with pytest.raises(CheckpointError, match="nowhere holds no run"):
            call(first, tmp_path / "nowhere")
        with pytest.raises(CheckpointError, match="holds no run"):
            call(first, tmp_path)
        with pytest.raises(CheckpointError, match="name a file in a folder that exists"):
            call(first, runs[1], output=f"--output={tmp_path}")
        assert not list(tmp_path.iterdir())
        call(first, runs[1])
    assert (tmp_path / "page.html").exists()
