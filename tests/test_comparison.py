"""The comparison: values of draws and folds, tests over them, sentences made from them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from notebook_functions import page

from beatssl import evaluate
from beatssl.data.records import wave_marks
from beatssl.methods import make_run
from beatssl.report import comparison, tables
from beatssl.report import figures as plots
from beatssl.results import saved as results
from beatssl.results import uncertainty as stats
from beatssl.tasks import scores as metrics

OURS = comparison.BEST_LABEL
METHODS = page("11_methods")
BORDERS = page("13_segmentation_comparison")
TESTS = page("14_statistics")
LABELS = page("15_label_efficiency")
SUMMARY = page("16_summary")


def every_block(profile):
    values = {heading: comparison.blocks(profile, heading) for heading in comparison.DESIGNS}
    return {heading: table for heading, table in values.items() if len(table)}


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """Both protocols run for an untrained encoder of two seeds, the best row, which is fine-tuned
    too, and a delineator."""
    runs = (
        make_run(method="random"),
        make_run(method="random", seed=1),
        make_run(method="neurokit_prominence"),
        make_run(rhythm="soft_1", beat="hard", exponent=50.0, epochs=1, batch_size=32),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEATSSL_WORK", str(tmp_path_factory.mktemp("comparison")))
        compare = replace(small.profile.compare, label_fractions=(0.1, 1.0), draws=3)
        classify = replace(small.profile.classify, label_fractions=(0.5, 1.0))
        profile = replace(small.profile, runs=runs, compare=compare, classify=classify)
        w = replace(small, profile=profile)
        evaluate.evaluate_all(w, "label draws")
        evaluate.evaluate_all(w, "more folds", finetune_seeds=1)
        evaluate.evaluate_all(w, "classification", finetune_seeds=1)
        yield w


def test_value_of_a_fold_is_the_score_of_its_records_alone():
    rng = np.random.default_rng(0)
    saved = {
        "truth": rng.integers(0, 4, (12, 80)),
        "prediction": rng.integers(0, 4, (2, 12, 80)),
        "fold": np.stack([np.repeat([1, 2, 3], 4), np.tile([1, 2, 3], 4)]),
        "repeat": np.array([0, 3]),
        "sampling_rate": np.array(100),
        "tolerance_ms": np.array(150.0),
        "record_id": np.arange(12).astype(str),
    }
    saved["marks"] = wave_marks(saved["truth"], 100)
    for metric in ("f1_macro", "dice"):
        found = comparison.block_scores(results.FOLDS, saved, metric)
        assert list(found.index) == [(r, k) for r in (1, 4) for k in (1, 2, 3)]
        for at, repeat in enumerate((1, 4)):
            for k in (1, 2, 3):
                own = saved["fold"][at] == k
                part = saved | {
                    "truth": saved["truth"][own],
                    "prediction": saved["prediction"][at, own],
                }
                part["marks"] = wave_marks(part["truth"], 100)
                alone = metrics.segmentation_scores(part)[metric][0]
                assert found[repeat, k] == pytest.approx(alone)


def saved_of(w, task, name, protocol="frozen", fraction=1.0):
    return {
        what.run.seed: results.load_predictions(w.profile, what)
        for what, _ in results.evaluations(w.profile, task)
        if (what.name, what.protocol, what.label_fraction) == (name, protocol, fraction)
    }


def test_draws_are_means_over_encoders_and_folds_are_of_the_encoder_of_their_repeat(done):
    for heading, (task, metric) in comparison.DESIGNS.items():
        table = comparison.blocks(done.profile, heading)
        labels = task == results.LABELS
        expected = ["Untrained, as initialised", OURS]
        if not labels:
            expected = [
                "Untrained, as initialised",
                "Supervised from scratch",
                OURS,
                "NeuroKit2, prominence",
            ]
        assert list(table) == expected and len(table) == (3 if labels else 4)
        saved = saved_of(done, task, "random", fraction=0.1 if labels else 1.0)
        each = [comparison.block_scores(task, saved[s], metric) for s in (0, 1)]
        if labels:
            np.testing.assert_allclose(table["Untrained, as initialised"], (each[0] + each[1]) / 2)
        else:  # two repeats, two encoders, two folds
            assert [saved[s]["repeat"].tolist() for s in (0, 1)] == [[0], [1]]
            np.testing.assert_allclose(table["Untrained, as initialised"], [*each[0], *each[1]])


def test_blocks_that_a_method_lacks_are_left_out(done, monkeypatch):
    """As where the encoders of some seeds only are fine-tuned."""
    known = results.evaluations(done.profile, results.FOLDS)
    fewer = [e for e in known if e[0].name != "random" or e[0].run.seed == 0]
    monkeypatch.setattr(results, "evaluations", lambda *a, **k: fewer)
    table = comparison.blocks(done.profile, "LUDB F1")
    ours = saved_of(done, results.FOLDS, tables.BEST)[0]
    whole = comparison.block_scores(results.FOLDS, ours, "f1_macro")
    assert len(whole) == 4
    np.testing.assert_allclose(table[OURS], whole[:2])  # repeat 1 alone


def test_medians_stand_beside_the_papers(done):
    table = comparison.medians(every_block(done.profile))
    assert table.loc[OURS, "PTB-XL F1, paper"] == "0.608"
    assert table.loc["TS2Vec", ["LUDB F1, paper", "LUDB F1, ours"]].tolist() == ["0.869", "–"]
    assert table.loc["ECG-FM", "LUDB Dice, paper"] == "0.671"
    assert "PTB-XL AUROC, paper" not in table  # the paper has no such violin
    values = comparison.blocks(done.profile, "LUDB F1")[OURS]
    low, mid, high = np.percentile(values, [25, 50, 75])
    assert table.loc[OURS, "LUDB F1, ours"] == f"{mid:.3f} [{low:.3f}, {high:.3f}]"
    assert table.columns.name == "median [quartiles] over 3 draws / 4 folds"


def test_the_table_beside_the_paper_has_means_with_intervals(done):
    rows = results.with_combined(done.profile)
    table = comparison.beside_paper(rows)
    assert table.loc["TS2Vec", "LUDB F1, paper"] == "0.869"
    assert table.loc["TS2Vec", "LUDB F1, ours"] == "–" == table.loc["TS2Vec", "seeds"]
    assert table.loc["Untrained, as initialised", "seeds"] == "2"
    assert list(table)[:2] == ["PTB-XL F1, paper", "PTB-XL F1, ours"]
    for heading, (task, metric) in comparison.DESIGNS.items():
        fraction = 0.1 if task == results.LABELS else 1.0
        one = rows[
            (rows["run_id"] == "random")
            & (rows["task"] == task)
            & (rows["metric"] == metric)
            & (rows["label_fraction"] == fraction)
            & (rows["protocol"] == "frozen")
        ].squeeze()
        text = table.loc["Untrained, as initialised", f"{heading}, ours"]
        assert text.startswith(f"{one.value:.3f} (")
        interval = f"[{one.ci_low:.3f}, {one.ci_high:.3f}]"  # none where resamples lack a class
        assert text.endswith(")" if np.isnan(one.ci_low) else interval)


@pytest.mark.parametrize(
    "task, heading, metric, fraction",
    [
        (results.CLASSIFY, "AUROC, 50% of labels", "auroc_macro", 0.5),
        (results.CLASSIFY, "F1, 100% of labels", "f1_macro", 1.0),
        (results.FOLDS, "Dice", "dice", 1.0),
    ],
)
@pytest.mark.parametrize("base", ["supervised", "frozen"])
def test_fine_tuning_is_held_against_the_same_seed(done, task, heading, metric, fraction, base):
    rows = results.with_combined(done.profile, task)
    rows = rows[(rows["metric"] == metric) & (rows["label_fraction"] == fraction)]
    value = rows.set_index(["run_id", "protocol"])["value"]
    ours = "beatssl-soft_1-hard-50-s0"
    tuned = value[ours, "finetune"]
    second = value["supervised-s0", "scratch"] if base == "supervised" else value[ours, "frozen"]
    if task == results.FOLDS and base == "supervised":  # which has the first repeat only
        assert saved_of(done, task, "supervised", "scratch")[0]["repeat"].tolist() == [0]
        saved = saved_of(done, task, tables.BEST, "finetune")[0]
        assert saved["repeat"].tolist() == [0, 1]
        first = {**saved, "prediction": saved["prediction"][0]}
        tuned = metrics.segmentation_scores(first)[metric][0]
    table = comparison.finetuning_gains(done.profile, task, base)
    assert list(table.index) == [OURS]  # untrained and supervised encoders are not fine-tuned
    text = table.loc[OURS, heading]
    assert float(text.split()[0]) == pytest.approx(tuned - second, abs=6e-4)


def test_tests_say_what_the_design_cannot_show():
    rng = np.random.default_rng(0)
    five = pd.DataFrame({"ours": 1 + rng.random(5), "b": rng.random(5), "c": rng.random(5) - 1})
    table = TESTS.pairs_with(five, "ours")
    assert table["second"].tolist() == ["b", "c"] and table["p"].tolist() == [0.0625, 0.0625]
    assert set(table["second_reading"]) == {"cannot be shown"}
    assert table["rank_difference"].tolist() == [1, 2]  # in every block first, second, third
    assert table["verdict"].tolist() == ["no difference shown", "higher"]  # Nemenyi can show two
    two = TESTS.pairs_with(five.iloc[:2], "ours")
    assert set(two["verdict"]) == {"cannot be shown"} and (two["smallest_p_nemenyi"] > 0.05).all()
    ten = pd.DataFrame(
        {
            "ours": 1 + rng.random(10),
            "b": rng.random(10),
            "c": 3 + rng.random(10),
            "d": 1 + rng.random(10),
        }
    )
    table = TESTS.pairs_with(ten, "ours").set_index("second")
    assert table["second_reading"].to_dict() == {
        "b": "higher",
        "c": "lower",
        "d": "no difference shown",
    }
    ranks = ten.rank(axis=1, ascending=False).mean()
    found = stats.friedman(ten.to_numpy())
    for name, row in table.iterrows():
        assert row["rank_difference"] == pytest.approx(ranks[name] - ranks["ours"])
        beyond = abs(row["rank_difference"]) > found.critical_difference
        assert (row["p_nemenyi"] < 0.05) == beyond == (row["verdict"] != "no difference shown")
    texts = TESTS.pair_texts(table.reset_index())
    assert list(texts)[:4] == ["family", "difference of mean ranks", "p, Nemenyi", "verdict"]
    assert texts.loc["b", "smallest p"] == "0.002" and texts.loc["b", "p, Holm"] == "0.006"
    friedman = TESTS.friedman_texts({"x": ten, "two": ten[["ours", "b"]]})
    assert list(friedman.index) == ["x"] and friedman.loc["x", "blocks"] == 10
    assert friedman.loc["x", "best by mean rank"] == "c (1.0)"


def test_references_are_a_family_of_their_own():
    rng = np.random.default_rng(0)
    ten = pd.DataFrame(
        {
            "ours": 1 + rng.random(10),
            "TS2Vec": rng.random(10),
            "Untrained, as initialised": rng.random(10),
            "CMSC (CLOCS)": rng.random(10),
            "NeuroKit2, dwt": rng.random(10),
        }
    )
    table = TESTS.pairs_with(ten, "ours").set_index("second")
    assert table["family"].to_dict() == {
        "TS2Vec": "compared",
        "CMSC (CLOCS)": "compared",
        "Untrained, as initialised": "reference",
        "NeuroKit2, dwt": "reference",
    }
    np.testing.assert_allclose(table["p"], 2 / 2**10)
    np.testing.assert_allclose(table["p_holm"], 2 * 2 / 2**10)  # two in each family


def test_label_efficiency_and_what_is_saved(done):
    table = LABELS.label_efficiency(done.profile, "auroc_macro")
    assert sorted(table["label_fraction"].unique()) == [0.1, 1.0]
    wide = LABELS.label_texts(table)
    assert list(wide) == ["10%", "100%"] and list(wide.index) == ["Untrained, as initialised", OURS]
    fake = pd.DataFrame(
        [("a", f, v) for f, v in ((0.01, 0.5), (0.1, 0.7), (1.0, 0.9))]
        + [("b", f, v) for f, v in ((0.01, 0.7), (0.1, 0.8), (1.0, 0.9))]
        + [("c", f, 0.6) for f in (0.01, 0.1, 1.0)],
        columns=["label", "label_fraction", "value"],
    )
    text = LABELS.labels_to_reach(fake, "a")
    assert "*a* with 10% of the labels: 0.700" in text
    assert "*b* reaches it with 1% of the labels" in text and "*c* reaches it with no" in text


def test_delineation_at_a_stricter_tolerance_finds_fewer_borders(done):
    def sensitivity(table):
        return table.map(lambda text: float(text.split(" ")[0])).to_numpy()

    wide, strict = (BORDERS.delineation(done.profile, t) for t in (150, 30))
    assert (sensitivity(strict) <= sensitivity(wide) + 1e-9).all()
    assert (sensitivity(strict) < sensitivity(wide)).any() and wide.shape == (4, 6)


def test_published_borders_stand_above_ours(done):
    table = BORDERS.borders_f1(done.profile, 150)
    assert table.loc["U-Net (2024) (published)"].tolist() == [
        "0.972",
        "0.973",
        "0.995",
        "0.998",
        "0.997",
        "0.995",
    ]
    assert table.loc["wavelets (published)", "T onset"] == "–"
    assert list(table.index[-4:]) == list(BORDERS.delineation(done.profile, 150).index)


def test_claims_are_judged_only_by_what_was_run():
    rng = np.random.default_rng(0)
    names = [OURS, "TS2Vec", "Domain-SSL", "W2V+CMSC+RLM (small)"]
    values = {
        "PTB-XL F1": pd.DataFrame({n: np.full(5, 0.6) for n in names}),
        "LUDB F1": pd.DataFrame(
            {n: 0.9 - 0.01 * i + 1e-3 * rng.random(10) for i, n in enumerate(names)}
        ),
    }
    text = SUMMARY.headline_claims(values["PTB-XL F1"], values["LUDB F1"])
    assert "cannot be judged without the released file" in text and "100%" in text
    nemenyi = float(stats.nemenyi(1, 4, 10))  # in every fold one rank apart
    assert "against TS2Vec" in text and "0.006 by Wilcoxon after Holm" in text
    assert f"p = {nemenyi:.3f} by Nemenyi among 4 methods" in text and "too small" in text
    ours, second = values["LUDB F1"][OURS].mean(), values["LUDB F1"]["TS2Vec"].mean()
    assert f"here {100 * (ours / second - 1):+.1f}% against" in text
    values["PTB-XL F1"]["ECG-FM"] = [0.7, 0.7, 0.8, 0.9, 0.9]
    values["PTB-XL F1"][OURS] = [0.6, 0.6, 0.6, 0.6, 1.0]
    text = SUMMARY.headline_claims(values["PTB-XL F1"], values["LUDB F1"])
    assert "here 85% (ratio of the mean F1" in text  # of the medians it would be 75 %
    text = SUMMARY.headline_claims(*[values[k][[OURS]] for k in ("PTB-XL F1", "LUDB F1")])
    assert "none of the paper's methods" in text


def test_figures(done):
    values = {h: comparison.blocks(done.profile, h) for h in ("LUDB F1", "LUDB Dice")}
    paper = {heading: comparison.paper_medians(heading) for heading in values}
    assert isinstance(plots.violins(values, paper), Figure)
    table = values["LUDB F1"].to_numpy()
    found = stats.friedman(table)
    figure = TESTS.critical_differences(
        list(values["LUDB F1"]), found.mean_rank, found.critical_difference
    )
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert any(t.startswith("Untrained, as initialised (") for t in texts)
    table = LABELS.label_efficiency(done.profile, "f1_macro")
    assert isinstance(LABELS.draw_label_efficiency(table, "F1"), Figure)


def test_sizes_of_the_encoders(done):
    table = METHODS.sizes(done)
    assert list(table.index) == ["Untrained, as initialised", OURS]
    assert table["steps"].tolist()[0] == "untrained" and table.loc[OURS, "records a step"] == 32


def test_gains_are_paired_differences_of_the_mean_scores(done):
    table = LABELS.label_gains(done.profile, "AUROC")
    against = "Untrained, as initialised"
    line = f"{OURS} − {against}"
    assert list(table.index) == [line] and list(table) == ["10%", "100%"]
    value = LABELS.label_efficiency(done.profile, "auroc_macro").pivot(
        index="label", columns="label_fraction", values="value"
    )
    gain = value.loc[OURS] - value.loc[against]
    for text, expected in zip(table.loc[line], gain, strict=True):
        assert float(text.split()[0]) == pytest.approx(expected, abs=0.0006)


def test_each_network_is_held_against_itself_untrained():
    assert LABELS.own_untrained("ts2vec") == ["random_ts2vec"]
    assert LABELS.own_untrained("w2v") == ["random_w2v"]
    for method in ("beatssl", "cmsc", "domain_ssl", "supervised", "features"):
        assert LABELS.own_untrained(method) == ["random", "random_data"]


def test_records_on_which_a_delineator_failed_are_listed(done, monkeypatch):
    text = BORDERS.delineator_failures(done.profile)
    assert text == "- NeuroKit2, prominence: failed on 0 of 8 records."
    saved = {"failed": np.array(["ludb/7: nothing found"]), "truth": np.zeros((8, 5))}
    monkeypatch.setattr(results, "load_predictions", lambda *a: saved)
    assert BORDERS.delineator_failures(done.profile).endswith(
        "failed on 1 of 8 records; ludb/7: nothing found."
    )
