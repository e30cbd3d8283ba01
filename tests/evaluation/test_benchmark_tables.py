"""From rows to tables: planes averaged, patients drawn, undefined cases counted, comparisons paired."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies.precision import metric_correlations
from studies.published import CDAM_PAPER, published, read_published

from lidc_xai.errors import DataError
from lidc_xai.evaluation.benchmark.tables import comparisons, figures, summarise
from lidc_xai.evaluation.statistics import bootstrap_mean


@pytest.fixture(scope="module")
def per_case() -> pd.DataFrame:
    """Two methods on 40 cases of 20 patients; b is better by 1 on every case."""
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 5, 40)
    rows = []
    for k in range(40):
        for plane in ("axial", "coronal"):
            for method, gain in (("a", 0.0), ("b", 1.0)):
                for metric, sign in (("fidelity/area", 1.0), ("box/area", -1.0)):
                    value = sign * (easy[k] + gain + rng.normal(0, 0.2))
                    value = np.nan if (k, metric, method) == (3, "box/area", "a") else value
                    note = "" if np.isfinite(value) else "the map is constant"
                    rows.append((f"n{k}", plane, f"p{k // 2}", "g", method, "margin", metric, np.nan, value, note))
    columns = ["case", "plane", "cluster", "group", "method", "output", "metric", "x", "value", "note"]
    return figures(pd.DataFrame(rows, columns=columns))


def test_tables_average_planes_count_the_undefined_and_draw_patients(per_case: pd.DataFrame) -> None:
    assert len(per_case) == 40 * 2 * 2
    assert set(per_case["planes"]) == {2}
    summary = summarise(per_case).set_index(["metric", "method"])
    row = summary.loc[("box/area", "a")]
    assert (row["n"], row["undefined"], row["clusters"], row["note"]) == (39, 1, 20, "the map is constant")
    own = per_case[(per_case.metric == "fidelity/area") & (per_case.method == "a")]
    wanted = bootstrap_mean(own["value"], own["cluster"].tolist())
    found = summary.loc[("fidelity/area", "a"), ["mean", "low", "high"]].tolist()
    assert found == pytest.approx([wanted.mean, wanted.low, wanted.high])


def test_comparisons_are_paired_and_metric_correlations_centred(per_case: pd.DataFrame) -> None:
    found = comparisons(per_case, "fidelity/area", "margin", reference="b")
    assert found.loc[0, "difference"] == pytest.approx(1, abs=0.1)
    assert found.loc[0, "p_holm"] < 0.01
    rho, n = metric_correlations(per_case, ["fidelity/area", "box/area"])
    assert rho.loc["fidelity/area", "box/area"] < -0.7
    assert n.loc["fidelity/area", "box/area"] == 79


def test_published_figures_come_from_a_csv_with_named_columns(tmp_path: Path) -> None:
    known = published()
    assert not known.duplicated(["source", "table", "images", "model", "method", "metric", "note"]).any()
    place = known[known["metric"] == "fidelity/area"].set_index(["method", "images"])
    assert place.loc[("smoothgrad", "X_multi"), ["table", "value"]].tolist() == ["Table 1", -4]
    assert place.loc[("smoothgrad", "X_val"), ["table", "value"]].tolist() == ["Table S1", -10]
    tables = known[known["source"] == CDAM_PAPER].groupby(["table", "images"])["method"].nunique()
    by_table = {table: count for (table, images), count in tables.items() if images in ("X_multi", "X_val")}
    assert by_table == {"Table 1": 10, "Table 2": 10, "Table 3": 10, "Table S1": 10}
    path = tmp_path / "paper.csv"
    path.write_text("source,table,method,metric,value\nx,Table 1,cdam,fidelity/area,634\n", encoding="utf-8")
    assert read_published(path)["value"].tolist() == [634]
    path.write_text("method,value\ncdam,634\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no column 'source'"):
        read_published(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_published(tmp_path / "none.csv")
