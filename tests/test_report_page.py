from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import sparkinfer.report.page
from sparkinfer.cli import main
from sparkinfer.exceptions import ConfigError, OutputError
from sparkinfer.metrics.base import Metric
from sparkinfer.metrics.classification import AucRoc, Calibration, Confusion, LabelledRows
from sparkinfer.report import charts
from sparkinfer.report.asked import scoring_rate
from sparkinfer.report.cost import cost_of
from sparkinfer.report.facts import ErrorSample, Facts
from sparkinfer.report.going_on import command
from sparkinfer.report.page import page_of, write_report
from sparkinfer.terminal import printable
from tests.made_up_facts import CASES, LARGE, ROWS, facts, measure_of, model, session
from tests.parsed_page import Page

MOST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: page_of(case) for name, case in CASES.items()}


@pytest.fixture(params=list(CASES))
def page(request: pytest.FixtureRequest, pages: dict[str, str]) -> str:
    return pages[request.param]


def test_a_page_asks_for_nothing_and_runs_nothing(page: str) -> None:
    read = Page(page)
    assert not read.all("script", "img", "iframe", "object", "embed", "form", "base")
    [icon] = read.all("link")
    assert icon.attributes["href"] == "data:,"
    for element in read.elements:
        assert not [name for name in element.attributes if name.startswith("on")]
        link = element.attributes.get("href") or element.attributes.get("xlink:href") or "#"
        assert link.startswith(("#", "data:"))
        assert "src" not in element.attributes
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_a_page_is_made_for_screen_readers_and_keyboards(page: str) -> None:
    read = Page(page)
    [whole] = read.all("html")
    assert whole.attributes["lang"] == "en"
    assert [len(read.all(tag)) for tag in ("header", "main", "footer", "nav", "h1")] == [1] * 5
    levels = [int(one.tag[1]) for one in read.all("h1", "h2", "h3")]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(one.text for one in read.all("h1", "h2", "h3", "th", "summary"))
    for drawing in read.all("svg"):
        assert drawing.attributes["aria-hidden"] == "true"
        picture = drawing.above[-1]
        assert picture.attributes["role"] == "img"
        assert picture.attributes["aria-label"]
    for region in (one for one in read.elements if one.attributes.get("class") == "scroll"):
        assert (region.attributes["role"], region.attributes["tabindex"]) == ("group", "0")
        assert region.attributes["aria-label"]


def test_ids_are_unique_and_every_link_leads_somewhere(page: str) -> None:
    read = Page(page)
    ids = Counter(one.attributes["id"] for one in read.elements if "id" in one.attributes)
    assert [name for name, times in ids.items() if times > 1] == []
    linked = {
        value[1:]
        for one in read.elements
        for name, value in one.attributes.items()
        if name in ("href", "xlink:href") and value.startswith("#")
    }
    referred = {
        one.attributes[n]
        for one in read.elements
        for n in ("aria-labelledby",)
        if n in one.attributes
    }
    assert linked | referred | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_each_picture_has_its_numbers_below(pages: dict[str, str]) -> None:
    read = Page(pages["finished"])
    drawings = read.all("svg")
    numbers = [one for one in read.all("summary") if one.text.startswith("Numbers of:")]
    assert len(drawings) == len(numbers) == 7


def test_a_page_has_no_value_that_is_no_number(page: str) -> None:
    read = Page(page)
    assert not re.search(r"\b(nan|inf|True|False|Undefined)\b", read.text)
    assert not [one for one in read.all("td", "th", "dd") if one.text == "None"]


def test_a_page_is_small(pages: dict[str, str]) -> None:
    assert max(len(page.encode()) for page in pages.values()) <= MOST_BYTES


def test_the_same_facts_give_the_same_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparkinfer.report.page, "utc_now", lambda: "now")
    assert page_of(facts()) == page_of(facts())


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("finished", "All 4,000 rows are done, none with an error."),
        ("finished", "openvino in bfloat16 21,000 taken"),
        ("finished", "not used: it is not installed"),
        ("finished", "Bottleneck: forward"),
        ("unrecorded", "What was tried before the job is not recorded in this output."),
        ("unrecorded", "How long the texts were is not recorded in this output."),
        ("unrecorded", "What each device did is not recorded in this output."),
        ("unrecorded", "time in all not known"),
        ("unrecorded", "No call on this output has left a record"),
        ("empty", "The input has no rows, and so has the output."),
        ("only errors", "None of the 4,000 rows that are done could be scored"),
        ("only errors", "other reasons 3"),
        ("unfinished", "2,000 of 4,000 rows (50.0 %) are done"),
        ("unfinished", "failed: a worker died"),
        ("unfinished", "Ended before their time: 2 workers"),
        ("unfinished", "sparkinfer score --input /data/reviews.parquet --output /data/scored"),
        ("embedding", "chroma:library#reviews (8 of 8 chunks arrived there)"),
        ("generation", "generation.max_new_tokens"),
        ("generation", "Which of them were cut was not counted."),
        ("function", "which gave 8,000 rows"),
        ("function", "my_functions:Predictor"),
        ("several", "mood (mood), topic (org/topic)"),
        ("several", "The model topic"),
        ("large", "The 11 most frequent of 1,000 labels"),
        ("large", "The last 20 of 100 calls."),
        ("no labels", "There are none: label_col='x': none fits."),
        ("running", "sparkinfer status /data/scored"),
        ("ready", "Only the mark of completion is missing."),
    ],
)
def test_each_kind_of_output_has_its_page(pages: dict[str, str], case: str, said: str) -> None:
    assert said in Page(pages[case]).text.replace("  ", " ")


def test_what_a_task_does_not_have_is_not_spoken_of(pages: dict[str, str]) -> None:
    for case in ("embedding", "generation", "function"):
        headings = {one.text for one in Page(pages[case]).all("h3")}
        assert not headings & {"Predicted labels", "Confidence", "Calibration", "ROC", "Metrics"}


HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</title></style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{2}$ and $x",
    "two\nlines\r\tand \x1b[31mred\x1b[0m \x07",
    "\u202egnp.exe\u2066 \u200bhidden\ufeff",
    "half \ud83d of one",
    "&lt;b&gt; &amp; &#x202e;",
    "-->\x00<!--",
    " " * 3,
]


def hostile_facts(text: str) -> Facts:
    """Returns facts that hold a text wherever an output may hold one."""
    label = text.encode("utf-8", "replace").decode()  # no column holds half a character
    one = model([label, "other", "third"])
    calls = session(
        0,
        outcome="failed",
        reason=text,
        engine=text,
        options={"model": text, f"x.{text}": text, "input": [text, text]},
        versions={text: text},
        hosts={text: {"cpu": text, "cores": 2, "gpus": {text: text}}},
        phases={text: 1.0, "score": 2.0},
        notes=(text,),
        mlflow_run=text,
    )
    calls = replace(calls, devices=(replace(calls.devices[0], device=text),))
    settings = {**one.settings, "input_col": text, "task.prompt": text, "label_col": text}
    verdict = {
        **one.verdict,
        "device_model": text,
        "rejected": [[text, text]],
        "speeds": [[text, 3.0]],
        "unpadded": text,
        "memory": text,
    }
    whole = facts(
        models={text: replace(one, settings=settings, verdict=verdict)},
        sessions=[calls],
        samples=[ErrorSample(text, {text: text})],
        output=f"/data/{text}",
        settings={"input": text, "columns": {text: "string"}},
        created=text,
        errors=1,
        reasons={text: 1},
        vector_store=text,
        vector_chunks=1,
    )
    return replace(whole, chunks=tuple(replace(c, devices={text: 1}) for c in whole.chunks))


@pytest.mark.parametrize("text", HOSTILE)
def test_data_never_becomes_markup(text: str) -> None:
    plain, hostile = Page(page_of(hostile_facts("plain"))), Page(page_of(hostile_facts(text)))
    assert [one.tag for one in hostile.elements] == [one.tag for one in plain.elements]
    assert not hostile.comments
    names = {name for one in plain.elements for name in one.attributes}
    assert {name for one in hostile.elements for name in one.attributes} == names
    cells = Counter("".join(one.texts) for one in hostile.all("th", "td", "dd"))
    assert cells[printable(text)] >= 10


@given(st.text(max_size=20))
@settings(max_examples=25)
def test_no_text_acts(text: str) -> None:
    page = sparkinfer.report.page.rendered(
        "report.html",
        kind="report",
        source=text,
        head=sparkinfer.report.page.head_of(facts(output=text or "x"), None),
        sections=(),
        made=text,
        version=text,
    )
    read = Page(page)
    page.encode()
    assert not read.all("script")
    assert printable(text).strip() in "".join(read.all("footer")[0].texts)


def test_secrets_are_not_shown() -> None:
    page = page_of(facts(reasons={"password=hunter22x failed": 1}, errors=1))
    assert "hunter22x" not in page


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were() -> None:
    with matplotlib.rc_context({"font.size": 33, "svg.fonttype": "path", "svg.hashsalt": None}):
        before = matplotlib.rcParams.copy()
        svg = charts.line("one", [(0, 0), (1, 1)], "seconds")
        assert matplotlib.rcParams.copy() == before
    assert "33px" not in svg
    assert "<text" in svg


def test_drawing_does_not_load_pyplot() -> None:
    script = (
        "import sys; from sparkinfer.report import charts, page; loaded = set(sys.modules); "
        "charts.line('one', [(0, 0), (1, 1)], 's'); "
        "print('matplotlib' in loaded or 'jinja2' in loaded, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_drawing_has_no_colour_of_its_own() -> None:
    drawn = [
        charts.line("a", [(0, 0), (1, 2)], "s", marks=[0.5], level=1, is_step=True),
        charts.bars("b", [1, 2], [(0.5, "x")], "tokens", notable=[0, 1]),
        charts.band("c", [0, 1], [1, 1], [(0, 2), (0, 3)], "chunk"),
        charts.dots("d", [(0, 1)], [(1, 3)], "chunk", 1),
        charts.calibration("e", [(0.5, 0.4, 0.3), (0.9, 0.8, 0.7)]),
        charts.roc("f", [((0, 0.5, 1), (0, 0.9, 1))] * 5),
    ]
    for svg in drawn:
        assert not re.search(r"#[0-9a-f]{6}\b", svg), svg
        assert "var(--" in svg


def labelled(seed: int, num_labels: int, rows: int = 400) -> LabelledRows:
    random = np.random.default_rng(seed)
    raw = random.random((rows, num_labels)) ** 2
    shares = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    labels = random.integers(num_labels, size=rows)
    return LabelledRows(labels, shares.argmax(axis=1), shares)


def counted(metric: Metric, rows: LabelledRows) -> Any:
    metric.update(rows)
    return metric


@pytest.mark.parametrize("num_labels", [2, 3])
def test_the_area_below_the_drawn_curves_is_the_auc(num_labels: int) -> None:
    rows = labelled(1, num_labels)
    auc = counted(AucRoc(num_labels), rows)
    areas = [
        np.trapezoid(c.true, c.false) if hasattr(np, "trapezoid") else np.trapz(c.true, c.false)
        for c in auc.curves()
    ]
    assert np.mean(areas) == pytest.approx(auc.compute()["auc_roc"], abs=1e-12)
    wanted = roc_auc_score(
        rows.labels,
        rows.probabilities[:, 1] if num_labels == 2 else rows.probabilities,
        multi_class="ovr",
    )
    assert np.mean(areas) == pytest.approx(wanted, abs=auc.compute()["auc_roc_bound"] + 1e-9)
    assert {(c.false[0], c.true[0], c.false[-1], c.true[-1]) for c in auc.curves()} == {
        (0, 0, 1, 1)
    }


def test_the_gaps_of_the_calibration_curve_are_the_calibration_error() -> None:
    calibration = counted(Calibration(), labelled(2, 3))
    points = calibration.curve()
    total = sum(rows for _, _, rows in points)
    error = sum(rows * abs(confidence - right) for confidence, right, rows in points) / total
    assert error == pytest.approx(calibration.compute()["calibration_error"])


def test_curves_are_left_out_where_the_value_is() -> None:
    rows = labelled(3, 2)
    odd = replace(rows, probabilities=rows.probabilities * 2)
    assert counted(AucRoc(2), odd).curves() == []
    assert counted(Calibration(), odd).curve() == []
    one_label = replace(rows, labels=np.zeros_like(rows.labels))
    assert counted(AucRoc(2), one_label).curves() == []


def test_the_confusion_is_shown_as_it_was_counted(pages: dict[str, str]) -> None:
    case = CASES["finished"].models[""]
    adding = measure_of(case.labels).adding()
    adding.add(case.states)
    [matrix] = [one.matrix for one in adding.counted() if isinstance(one, Confusion)]
    table = next(
        one for one in Page(pages["finished"]).all("table") if one.text.startswith("true label")
    )
    rows = [
        f"{label} {' '.join(map(str, row))}" for label, row in zip(case.labels, matrix, strict=True)
    ]
    assert all(row in table.text for row in rows)


@pytest.mark.parametrize("states", [{"labels": 3}, {"labels": {}, "confusion": None}, {"x": 1}])
def test_states_that_make_no_sense_leave_the_values_without_curves(states: Any) -> None:
    text = Page(page_of(facts(models={"": model(states=states)}))).text
    assert "accuracy" in text
    assert "Calibration" not in text


def test_the_cost_is_that_of_the_calls_with_a_price() -> None:
    calls = [session(0, seconds=1800.0, price_per_hour=4.0), session(1, seconds=1800.0)]
    cost = cost_of(calls, None)
    assert cost is not None
    assert (cost.amount, cost.rows, cost.calls) == (2.0, ROWS // 2, 1)
    assert cost.per_million == pytest.approx(1000.0)
    given_now = cost_of(calls, 8.0)
    assert given_now is not None
    assert (given_now.amount, given_now.rows) == (8.0, ROWS)
    assert cost_of([session(0)], None) is None
    free = cost_of([session(0, rows=0)], 1.0)
    assert free is not None
    assert free.per_million is None


def test_the_rate_is_over_the_calls_whose_scoring_was_timed() -> None:
    timed = session(0, phases={"score": 4.0}, rows=100, retried_rows=20)
    assert scoring_rate([timed, session(1, phases={})]) == 30.0
    assert scoring_rate([session(1, phases={})]) is None


def test_a_command_gives_each_option_as_the_command_line_takes_it() -> None:
    options = {
        "input": ["a b.parquet", "c.parquet"],
        "output": "out",
        "task": "embedding",
        "dedupe": True,
        "stall_timeout_s": 60,
        "csv.delimiter": ";",
        "batching.max_batch_tokens": 4096,
        "revision": None,
        "models.mood.model": "m",
    }
    assert command(options) == (
        "sparkinfer score --input 'a b.parquet' c.parquet --output out --task embedding --dedupe "
        "--set stall_timeout_s=60 --set 'csv.delimiter=;' --max-batch-tokens 4096 --model mood=m"
    )


def test_a_large_page_summarises_its_chunks(pages: dict[str, str]) -> None:
    read = Page(pages["large"])
    assert "The slowest of 10,000 chunks" in read.text
    assert len(read.all("path")) < 2_000
    assert len(LARGE.chunks) == 10_000


def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparkinfer.report.page, "read_facts", lambda output: facts())


def test_the_report_is_written_to_the_work_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch)
    (tmp_path / "_sparkinfer").mkdir()
    report = write_report(str(tmp_path))
    assert Path(report.path) == tmp_path / "_sparkinfer" / "report.html"
    assert Path(report.path).read_text(encoding="utf-8") == report.page
    frame = report._repr_html_()
    assert Page(frame).all("iframe")[0].attributes["srcdoc"] == report.page


def test_the_command_writes_where_it_is_told_and_prints_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up(monkeypatch)
    target = tmp_path / "mine.html"
    assert main(["report", "scored", "--to", str(target), "--price-per-hour", "2.5"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert "of a million rows" in Page(target.read_text(encoding="utf-8")).text


def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up(monkeypatch)
    with pytest.raises(OutputError, match=r"absent/r\.html.*cannot be written"):
        write_report("scored", str(tmp_path / "absent" / "r.html"))


@pytest.mark.parametrize("price", ["-1", "0", "nan", "inf", "much"])
def test_a_price_that_is_none_is_refused(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "scored", "--price-per-hour", price])
    assert "expected a number above 0" in capsys.readouterr().err


def test_an_output_without_a_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no manifest"):
        write_report(str(tmp_path))


@pytest.mark.parametrize("price", [0, -1, float("inf"), float("nan")])
def test_a_price_that_is_none_is_refused_in_python_too(tmp_path: Path, price: float) -> None:
    with pytest.raises(ConfigError, match="price_per_hour=.*expected a number above 0"):
        write_report(str(tmp_path), price_per_hour=price)
