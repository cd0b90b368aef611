"""The page of a report: the answer, its numbers, its files, and what it refuses."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwsim.cli.app import app
from hwsim.report.page import digest, figures, points
from hwsim.report.page.inputs import Inputs, read_inputs
from hwsim.report.page.latex import _shown, latex
from hwsim.util.units import show_number
from tests.report.conftest import as_closed

pytest.importorskip("plotly")
pytest.importorskip("jinja2")
from hwsim.report.page import build_page


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def text_of(page: str) -> str:
    """What a reader of the page sees, without scripts."""
    page = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


# ---------------------------------------------------------------------- the answer


def test_without_accuracy_the_fastest_is_named_and_what_is_missing(rows):
    (answer,) = digest.answers(digest.name(rows))
    best, dense = rows[2]["throughput_tok_s"], rows[0]["throughput_tok_s"]
    assert answer.startswith(
        f"On Google Pixel 8, dip-ca, density 0.5 is fastest: {show_number(best)} tokens/s, {best / dense:.2f} x the dense"
    )
    assert answer.endswith("What it costs in accuracy is not in these results: hwsim eval measures it.")


def test_with_accuracy_the_fastest_of_those_that_cost_little(rows):
    closed = [as_closed(row, 20 + cost) for row, cost in zip(rows, (0, 0.4, 3), strict=True)]
    (answer,) = digest.answers(digest.name(closed))
    assert "On Google Pixel 8, dip, density 0.5 is fastest" in answer
    assert "perplexity 20.4 against the dense model's 20" in answer
    dear = [as_closed(row, 20 + cost) for row, cost in zip(rows, (0, 2, 3), strict=True)]
    assert "No run costs at most 0.5" in digest.answers(digest.name(dear))[0]


def test_an_oracle_is_no_answer(rows):
    rows[2]["provenance"]["policy"]["oracle"] = True
    assert "dip, density 0.5 is fastest" in digest.answers(digest.name(rows))[0]


def test_labels_hold_what_differs(rows):
    other = json.loads(json.dumps(rows[2]))
    other["provenance"]["policy"]["parameters"]["gamma"] = 0.5
    labels = [each.label for each in digest.name([rows[2], other])]
    assert labels == ["dip-ca, gamma 0.2", "dip-ca, gamma 0.5"]
    assert digest.name([rows[2]])[0].label == "dip-ca"


def test_the_front_holds_what_nothing_beats(rows):
    costs = (20.0, 20.5, 20.4)
    found = digest.name([as_closed(row, cost) for row, cost in zip(rows, costs, strict=True)])
    # dip-ca is faster and better than dip
    assert [each.policy for each in points.best_of(found)] == ["dip-ca", "dense"]


def on_two_devices(rows, costs):
    """The three runs on their device, and on one that is thirty times faster."""
    fast = json.loads(json.dumps(rows))
    for row in fast:
        row["provenance"]["device"]["name"] = "fast"
        row["throughput_tok_s"] *= 30
    return digest.name([as_closed(row, cost) for row, cost in zip([*rows, *fast], costs * 2, strict=True)])


def test_each_device_has_a_front_of_its_own(rows):
    found = on_two_devices(rows, (20.0, 20.5, 20.4))
    shown = figures.pareto(found)
    lines = [trace for trace in shown.data if trace.get("mode") == "lines"]
    assert [len(line["x"]) for line in lines] == [2, 2]
    assert [line["showlegend"] for line in lines] == [True, False]
    assert [row[-1] for row in shown.rows] == ["yes", "", "yes"] * 2
    assert shown.layout["xaxis"]["type"] == "log"  # from one device to the other
    assert figures.pareto(found[:3]).layout["xaxis"]["type"] == "linear"


def test_runs_scored_on_different_tokens_have_lines_and_fronts_of_their_own(rows):
    found = digest.name([as_closed(row, cost) for row, cost in zip(rows, (20.0, 20.5, 20.4), strict=True)])
    for each in (found[1], found[2]):
        each.row["dense_perplexity"] += 3
    shown = figures.pareto(found)
    assert [line["y0"] for line in shown.layout["shapes"]] == [20.0, 23.0]
    assert [row[-1] for row in shown.rows] == ["yes", "", "yes"]
    assert "scored on different tokens" in shown.says


def test_without_dense_the_answer_says_so(rows):
    (told,) = digest.answers(digest.name(rows[1:]))
    assert "(no dense run of the same DRAM is among these, so whether that is a gain is open)" in told


def test_notes_say_which_runs_they_are_about(rows):
    found = on_two_devices(rows, (20.0, 20.5, 20.4))
    for each in found:
        each.row["notes"] = ["all"] + ["fast"] * (each.device == "fast") + ["dip-ca"] * (each.policy == "dip-ca")
    found[0].row["notes"] += ["one", "some"]
    found[4].row["notes"] += ["some"]
    assert digest.notes(found) == [
        "all", f"{found[0].label}, {found[0].device}: one", "2 of 6 runs: some", "dip-ca: dip-ca", "fast: fast",
    ]  # fmt: skip


# ---------------------------------------------------------------------- the numbers


def test_every_number_of_the_tables_is_one_of_the_results(rows):
    found = digest.name([*rows, *(as_closed(row, 21) for row in rows)])
    heads, body = digest.table(found)
    assert [row[heads.index("tokens/s")] for row in body] == [
        show_number(each.row["throughput_tok_s"]) for each in found
    ]
    assert [row[heads.index("perplexity")] for row in body] == [""] * 3 + ["21"] * 3
    for plot in figures.all_figures(found, []):
        assert len({len(row) for row in plot.rows} | {len(plot.heads)}) == 1, plot.key
    times = figures.time(found)
    for at, each in enumerate(found):
        shown = sum(trace["x"][at] for trace in times.data)
        assert shown == pytest.approx(1000 * each.row["time_s"]["total"] / each.row["tokens"])


def test_open_and_closed_loop_are_put_side_by_side(rows):
    closed = [as_closed(row, 21) for row in rows]
    _, body = digest.loops(digest.name([*rows, *closed]))
    assert [row[0] for row in body] == ["dense", "dip, density 0.5", "dip-ca, density 0.5"]
    assert digest.loops(digest.name(rows))[1] == []


def test_synthetic_data_is_called_synthetic(rows):
    page = build_page(Inputs(rows, [], ["x.json"]), "Title")
    assert "Synthetic data:" in text_of(page)
    for row in rows:
        row["provenance"]["trace"]["origin"] = "recorded"
    assert "Synthetic data:" not in text_of(build_page(Inputs(rows, [], ["x.json"]), "Title"))


def test_what_users_name_cannot_run(rows):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    for row in rows:
        told = row["provenance"]
        told["device"]["name"] = told["model"]["name"] = told["trace"]["name"] = told["policy"]["name"] = evil
        row["notes"] = [evil]
    page = build_page(Inputs(rows, [], [evil]), evil)
    # plotly's own script is the only one that holds such words
    from plotly.offline import get_plotlyjs

    rest = page.replace(get_plotlyjs(), "")
    assert "<script>alert" not in rest
    assert "<img" not in rest
    assert evil in text_of(rest)


def test_the_page_needs_no_network(rows):
    from plotly.offline import get_plotlyjs

    page = build_page(Inputs(rows, [], ["x.json"]), "Title").replace(get_plotlyjs(), "")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)


def test_many_runs_are_cut_to_the_fastest_and_that_is_said(here):
    found = digest.name(json.loads(Path("many.json").read_text())["results"])
    plot = next(each for each in figures.all_figures(found, []) if each.key == "time")
    assert len(plot.rows) == figures.BARS
    assert plot.says.endswith(" Of 200 runs those of dense and the fastest, 30 in all.")


# ---------------------------------------------------------------------- the command


def test_the_command(here):
    code, _, err = run("report", "open.json", "closed.json", "-o", "r.html", "--title", "Mine", "--export", "csv,latex")
    assert code == 0
    assert err == "6 runs in r.html; r.csv, r-groups.csv, r.tex\n"
    page = Path("r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<title>Mine</title>" in page
    rows = list(csv.DictReader(Path("r.csv").read_text().splitlines()))
    assert len(rows) == 6
    source = json.loads(Path("open.json").read_text())["results"]
    assert [float(row["throughput_tok_s"]) for row in rows[:3]] == [row["throughput_tok_s"] for row in source]
    assert [row["settings.overlap"] for row in rows] == ["none"] * 6
    assert {row["flash_confidence"] for row in rows} == {"assumed"}
    assert [float(row["busy_s_flash"]) for row in rows[:3]] == [row["busy_s"]["flash"] for row in source]
    groups = list(csv.DictReader(Path("r-groups.csv").read_text().splitlines()))
    assert sum(int(row["hits"]) for row in groups) == 2 * sum(row["unit_hits"] for row in source)


def test_stores_and_curves_are_read_too(here):
    assert (
        run(
            "sweep",
            "--trace",
            "t.npz",
            "--hw",
            "pixel8",
            "--policy",
            "dip",
            "--dram",
            "50%,60%",
            "-o",
            "s.db",
            "--jobs",
            1,
        )[0]
        == 0
    )
    assert run("trace", "curve", "t.npz", "--policy", "dip", "--dram", "60%", "--json", "c.json")[0] == 0
    code, _, err = run("report", "s.db", "c.json", "-o", "r.html")
    assert (code, err) == (0, "2 runs in r.html\n")
    assert "Miss ratio of LRU by size of the cache: dip on t.npz" in text_of(Path("r.html").read_text())


def test_what_is_in_several_files_is_there_once(here):
    found = read_inputs([Path("open.json"), Path("open.json")], lambda _: [])
    assert len(found.results) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "x.json: cannot be read: is no JSON"),
        ("[]", "x.json: holds no result of hwsim; give what --json wrote, or a store of a sweep"),
        ('{"format": "hwsim-result"}', "x.json: holds no result of hwsim"),
        ('{"format": "hwsim-results", "results": 3}', "x.json: results must be a list"),
        ('{"format": "hwsim-results", "results": []}', "x.json: no result in it"),
        (None, "x.json: cannot be read: No such file"),
        ("PK\x03\x04 and so on", "x.json: is an archive, such as a trace, and no result; hwsim replay x.json --json"),
    ],
)
def test_other_files_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.json").write_text(content)
    code, _, err = run("report", "x.json", "-o", "r.html")
    assert code == 1
    assert err.startswith(f"hwsim: {message}")
    assert len(err.splitlines()) == 1
    assert not Path("r.html").exists()


def test_sources_are_spared(here):
    assert (
        run("report", "open.json", "-o", "open.json")[2]
        == "hwsim: open.json: cannot be written: the command reads it; choose another name\n"
    )
    Path("r.csv").symlink_to("open.json")
    code, _, err = run("report", "open.json", "-o", "r.html", "--export", "csv")
    assert code == 1
    assert err.startswith("hwsim: r.csv: cannot be written")
    assert not Path("r.html").exists()
    assert run("report", "open.json", "-o", "r.html", "--export", "docx")[2].startswith(
        "hwsim: --export docx: must be some of csv, parquet"
    )


def test_latex_is_escaped_with_units_in_its_heads_and_the_fastest_first(here):
    rows = json.loads(Path("open.json").read_text())["results"]
    found = [each._replace(label="50% of a_b\n& c") for each in digest.name(rows)]
    lines = latex(found).splitlines()
    assert lines[0].startswith("% made by hwsim ")
    heads = lines[3].removesuffix(r" \\").split(" & ")
    assert heads[:5] == ["device", "run", "tokens/s", "p50 (ms)", "p95 (ms)"]
    cells = [line.split(" & ") for line in lines[5:8]]
    assert {row[1] for row in cells} == {r"50\% of a\_b \& c"}
    assert {len(row) for row in cells} == {len(heads)}
    rates = sorted((row["throughput_tok_s"] for row in rows), reverse=True)
    assert [float(row[2].replace(",", "")) for row in cells] == pytest.approx(rates, rel=1e-3)
    assert [_shown(number) for number in (101, 0.4989123, 98765.4)] == ["101.0", "0.4989", "98,770"]
    assert not {"perplexity", "KL (nats)"} & set(heads)
    assert "perplexity" in latex(digest.name(json.loads(Path("closed.json").read_text())["results"]))


def test_parquet(here):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert run("report", "open.json", "-o", "r.html", "--export", "parquet")[0] == 0
    table = pandas.read_parquet("r.parquet")
    assert list(table.policy) == ["dense", "dip", "dip-ca"]


# ---------------------------------------------------------------------- compare


def test_compare_says_what_differs_and_where_it_comes_from(here):
    code, out, _ = run("compare", "open.json:2", "open.json:3")
    assert code == 0
    words = " ".join(out.split())
    rows = json.loads(Path("open.json").read_text())["results"]
    ratio = rows[2]["throughput_tok_s"] / rows[1]["throughput_tok_s"]
    assert (
        f"The second is {ratio:.3g} x as fast as the first. What was asked for differs in policy (dip and dip-ca)."
        in words
    )
    assert "100% of the change is in masked MLP" in words
    assert show_number(rows[1]["throughput_tok_s"]) in words


def test_compare_writes_json(here):
    code, out, _ = run("compare", "open.json:2", "open.json:3", "--json", "-")
    assert code == 0
    found = json.loads(out)
    assert {"name": "policy", "first": "dip", "second": "dip-ca"} in found["settings"]
    rows = json.loads(Path("open.json").read_text())["results"]
    assert found["numbers"][0] == {
        "name": "tokens/s",
        "first": rows[1]["throughput_tok_s"],
        "second": rows[2]["throughput_tok_s"],
    }
    assert run("compare", "open.json:2", "open.json:3", "--json", "open.json")[0] == 1


def test_compare_with_itself(here):
    words = " ".join(run("compare", "open.json:1", "open.json:1")[1].split())
    assert "tokens/s. Both were asked for the same." in words


def test_compare_wants_one_result(here):
    assert (
        run("compare", "open.json", "open.json:1")[2]
        == "hwsim: open.json: holds 3 results; name one, such as open.json:1\n"
    )
    assert (
        run("compare", "open.json:4", "open.json:1")[2] == "hwsim: open.json:4: there are 3 results, counted from 1\n"
    )
