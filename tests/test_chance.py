"""Contract of a comparison's verdicts: every value has a 95 % interval over pictures and seeds; one is marked only
where some other differs from it by more than chance, and then with all that chance cannot tell from it; no order of
names decides a tie, for whichever method it is.
"""

import itertools
import json
import random
from math import inf, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import scipy.stats

from erase.compare.chance import Estimate, are_apart, leaders, lesser, marked, over_seeds, t_quantile
from erase.compare.comparison import estimate, leaders_of, placed
from erase.compare.page import opening
from erase.compare.pareto import Axes, axes_of, pareto_front, unbeaten
from erase.compare.rows import aggregate, row_of
from erase.compare.table import cells, columns_of, markdown_table, text_table
from erase.evaluate.statistics import wilson


def test_students_t_against_scipy() -> None:
    for freedom in (1, 2, 3, 4, 7, 10, 29, 100):
        assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-9)
    with pytest.raises(ValueError, match="at least one degree of freedom"):
        t_quantile(0)


def test_seeds_and_pictures_are_both_counted() -> None:
    one = Estimate(0.98, 0.95, 0.99)
    assert over_seeds([one]) == one
    runs = [Estimate(0.9, 0.85, 0.94), Estimate(0.8, 0.74, 0.85), Estimate(0.85, 0.8, 0.89)]
    pictures = mean([0.045, 0.055, 0.045])
    seeds = scipy.stats.t.ppf(0.975, 2) * stdev([0.9, 0.8, 0.85]) / sqrt(3)
    found = over_seeds(runs)
    assert found.value == pytest.approx(0.85)
    assert found.high - 0.85 == pytest.approx(0.85 - found.low) == pytest.approx(sqrt(pictures**2 + seeds**2))
    # Equal seeds say nothing new about the pictures, which all of them share.
    assert over_seeds([one, one, one]).high - 0.98 == pytest.approx(0.02)
    assert over_seeds([one, Estimate(0.97)]).interval is None
    with pytest.raises(ValueError, match="at least one run"):
        over_seeds([])


@pytest.mark.parametrize(
    ("values", "sign", "expected"),
    [
        ({"ours": Estimate(4.276, 2.3, 6.3), "theirs": Estimate(4.278, 2.3, 6.3)}, -1, set()),
        ({"a": Estimate(0.99, 0.965, 0.997), "b": Estimate(0.6, 0.53, 0.665)}, 1, {"a"}),
        (
            {"a": Estimate(0.97, 0.94, 0.99), "b": Estimate(0.99, 0.96, 1.0), "c": Estimate(0.6, 0.53, 0.66)},
            1,
            {"a", "b"},
        ),
        # b's interval meets that of a, but not that of the best.
        (
            {"best": Estimate(0.99, 0.97, 1.0), "a": Estimate(0.96, 0.93, 0.98), "b": Estimate(0.92, 0.89, 0.95)},
            1,
            {"best", "a"},
        ),
        ({"a": Estimate(0.99, 0.97, 1.0), "unknown": Estimate(0.1)}, 1, set()),
        ({"alone": Estimate(0.99, 0.97, 1.0)}, 1, set()),
        ({}, 1, set()),
    ],
)
def test_only_what_is_more_than_chance_is_marked(values: dict[str, Estimate], sign: int, expected: set[str]) -> None:
    for order in itertools.permutations(values):
        assert marked({name: values[name] for name in order}, sign) == expected


def test_costs_must_differ_by_a_margin() -> None:
    def once(**values: float) -> dict[str, Estimate]:
        return {name: Estimate(value, value, value) for name, value in values.items()}

    assert marked(once(a=20.0, b=20.9), -1, margin=0.05) == set()
    assert marked(once(a=20.0, b=21.0), -1, margin=0.05) == {"a"}
    assert marked(once(guard=0.0, a=20.0), -1, margin=0.05) == {"guard"}
    # Over seeds their spread counts as well.
    assert not are_apart(Estimate(20.0, 10.0, 30.0), Estimate(40.0, 30.0, 50.0), 0.05)


def test_leaders_include_ties_and_the_lesser_is_known_within_both_intervals() -> None:
    assert leaders({"a": Estimate(1.0, 0.9, 1.0), "b": Estimate(1.0, 0.9, 1.0)}, 1) == ["a", "b"]
    assert lesser(Estimate(0.9, 0.8, 0.95), Estimate(0.92, 0.7, 0.94)) == Estimate(0.9, 0.7, 0.94)


def test_the_front_knows_chance() -> None:
    sure = {"both": (0.99, 0.99), "erases": (0.99, 0.5), "keeps": (0.5, 0.99), "neither": (0.5, 0.5)}
    points = {name: [Estimate(v, v - 0.02, v + 0.02) for v in values] for name, values in sure.items()}
    assert dict(zip(points, unbeaten(list(points.values())))) == {
        "both": True, "erases": False, "keeps": False, "neither": False,
    }  # fmt: skip
    # A little less of both, within chance: the front of the values has one method, the front of what is known has two.
    near = [[Estimate(0.98, 0.95, 0.99), Estimate(0.97, 0.94, 0.99)], [Estimate(0.981, 0.95, 0.99)] * 2]
    assert unbeaten(near) == [True, True]
    assert pareto_front([[e.value for e in point] for point in near]) == [False, True]
    # Without width it is the usual front.
    generator = random.Random(0)
    exact = [(generator.randint(0, 9), generator.randint(0, 9)) for _ in range(40)]
    assert unbeaten([[Estimate(v, v, v) for v in point] for point in exact]) == pareto_front(exact)


def test_a_base_without_the_concept_gives_no_share_of_it() -> None:
    assert axes_of({"nudity_any_0.6": 0.0, "clip_score": 30.0}) is None
    assert axes_of({"nudity_any_0.6": 0.5, "clip_score": 30.0}) == Axes("nudity_any_0.6", ("clip_score",))


PICTURES = {"ua_coherent": 204, "ira": 570, "cra": 204}


def made_row(method: str, seed: int | None, counts: dict[str, int], fd: float, **more: Any) -> dict[str, Any]:
    """A row as `row_of` makes it."""
    figures = {key: wilson(count, PICTURES[key]) for key, count in counts.items()}
    intervals = {key: [figure.low, figure.high] for key, figure in figures.items()}
    row = {"method": method, "kind": "trained", "concept": "cat", "seed": seed, "resumed": False}
    row |= {key: figure.value for key, figure in figures.items()} | {"fd_canvas": fd, "peak_bytes": 6.2e8}
    return row | {"intervals": intervals | {"fd_canvas": [fd - 2, fd + 2]}} | more


def counts(erased: int, ira: int, cra: int = 204) -> dict[str, int]:
    return {"ua_coherent": erased, "ira": ira, "cra": cra}


BASE_ROW = made_row("base", None, counts(0, 567), 1.3, kind="base", peak_bytes=None)


def test_a_tie_is_nobodys() -> None:
    rows = [BASE_ROW, *(made_row(name, 0, counts(202, 566), fd, seconds=3.0)
                        for name, fd in (("recommended", 4.276), ("uce", 4.278), ("aaa", 4.277)))]  # fmt: skip
    lines = placed(rows, BASE_ROW, axes_of(BASE_ROW))
    assert all(sorted(of) == ["aaa", "recommended", "uce"] for of in leaders_of(lines).values())
    assert all(line["on_front"] for line in lines if line["kind"] != "base")
    protocol = {"name": "canvas", "num_target_images": 204, "num_kept_images": 570}
    axes = {"erasure": "UA coherent", "retention": "lesser of IRA and CRA, of the base's"}
    said = opening({"summary": lines, "leaders": leaders_of(lines), "axes": axes, "rows": rows, "failures": [],
                    "concept": "cat", "protocol": protocol}).replace("\N{NO-BREAK SPACE}", " ")  # fmt: skip
    assert "Of 3 methods, none beats another by more than chance in erasing cat and keeping the rest." in said
    assert said.count("aaa, recommended and uce: 99.0 % each") == 2 and said.count("recommended") == 4
    summaries = aggregate(rows)
    for column in columns_of(summaries):
        assert not any(value.is_marked for value in cells(summaries, column).values()), column.key
    assert "*" not in text_table(summaries).partition("A value is")[0] and "**" not in markdown_table(summaries)


def test_a_clear_lead_is_marked_in_every_form() -> None:
    rows = [BASE_ROW, made_row("good", 0, counts(202, 566), 2.0, seconds=60.0),
            made_row("bad", 0, counts(122, 300), 9.0, seconds=3.0)]  # fmt: skip
    summaries = aggregate(rows)
    by_key = {column.key: cells(summaries, column) for column in columns_of(summaries)}
    assert {key: [m for m, v in of.items() if v.is_marked] for key, of in by_key.items()} == {
        "ua_coherent": ["good"], "ira": ["good"], "cra": [], "fd_canvas": ["good"], "seconds": ["bad"],
        "peak_bytes": [],
    }  # fmt: skip
    assert by_key["ua_coherent"]["good"].text == "99.0 [96.5–99.7]"
    assert "**99.0** [96.5–99.7]" in markdown_table(summaries)
    lines = text_table(summaries).splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("good"))
    assert "99.0*" in lines[at] and "96.5–99.7" in lines[at + 1] and max(map(len, lines)) < 120
    placed_lines = placed(rows, BASE_ROW, axes_of(BASE_ROW))
    assert leaders_of(placed_lines) == {"erased": ["good"], "kept": ["good"], "both": ["good"]}
    erased = next(line["erased"] for line in placed_lines if line["method"] == "good")
    assert (erased["low"], erased["high"]) == pytest.approx((wilson(202, 204).low, wilson(202, 204).high))
    json.dumps(placed_lines, allow_nan=False)


def test_intervals_stay_within_what_a_figure_can_be() -> None:
    rows = [BASE_ROW, *(made_row("a", seed, counts(erased, 567), 0.5) for seed, erased in enumerate((204, 150)))]
    a = aggregate(rows)[1]
    assert a.interval["ua_coherent"][1] == 1.0 and a.interval["ua_coherent"][0] >= 0 and a.interval["fd_canvas"][0] < 0
    line = placed(rows, BASE_ROW, axes_of(BASE_ROW))[1]
    assert line["erased"]["high"] == 1.0 and line["kept"]["high"] > 1.0


def test_rows_without_intervals_are_read_and_mark_nothing(tmp_path: Path) -> None:
    old = [{k: v for k, v in made_row(name, 0, counts(n, 566), 2.0).items() if k != "intervals"}
           for name, n in (("a", 202), ("b", 12))]  # fmt: skip
    summaries = aggregate(old)
    assert summaries[0].interval == {} and summaries[0].estimate("ira") == Estimate(566 / 570, -inf, inf)
    assert not any(v.is_marked for v in cells(summaries, columns_of(summaries)[0]).values())
    share = placed([BASE_ROW, *old], BASE_ROW, axes_of(BASE_ROW))[1]["erased"]
    assert share["low"] is share["high"] is None and estimate(share).interval is None
    (tmp_path / "evaluation").mkdir()
    figures = {"erased": {"ua": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}, "fid": {"value": 17.5}}}
    (tmp_path / "evaluation/metrics.json").write_text(json.dumps(figures))
    row = row_of(tmp_path, method="a", kind="inference", concept="cat", seed=None)
    assert (row["ua"], row["fid"], row["intervals"]) == (0.5, 17.5, {"ua": [0.4, 0.6]})
