"""Health of an embedding: known values, plain NumPy, and what is saved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from notebook_functions import page

from beatssl.evaluate import evaluate_run, train
from beatssl.methods import losses, make_run
from beatssl.methods.encoder import EncoderConfig, build_encoder, with_data_statistics
from beatssl.report import tables
from beatssl.tasks import embedding
from beatssl.tasks import scores as metrics
from beatssl.tasks.classify import split
from beatssl.settings import Rotation

Z = torch.nn.functional.normalize(
    torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1
)


def predictions(z=Z, first=None, second=None):
    z = np.asarray(z, np.float64)
    first = z if first is None else first
    found = embedding.of_records(z, first, first if second is None else second)
    return found | {"agreement": np.linspace(1, 0, len(z)), "chance": np.full(len(z), 0.3)}


def test_scores_are_those_of_the_definitions():
    scores = metrics.embedding_scores(predictions())
    assert scores["uniformity"][0] == pytest.approx(losses.uniformity(Z).item(), abs=1e-5)
    assert scores["neighbour_agreement"][0] == pytest.approx(0.5)
    assert scores["neighbour_chance"][0] == pytest.approx(0.3)


def test_a_collapsed_embedding_has_uniformity_zero_and_no_rank():
    same = np.tile([[0.6, 0.8, 0.0]], (10, 1))
    scores = metrics.embedding_scores(predictions(same))
    assert scores["uniformity"][0] == pytest.approx(0, abs=1e-6)
    assert np.isnan(scores["effective_rank"][0])


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_effective_rank_counts_equal_directions(directions):
    x = np.zeros((2 * directions, 7))
    x[range(directions), range(directions)] = 1
    x[range(directions, 2 * directions), range(directions)] = -1
    assert metrics.effective_rank(x + 3) == pytest.approx(directions)


def test_pairs_of_records_are_resampled_to_first_order():
    """Resamples of uniformity and chance spread as those over the pairs themselves."""
    n, rng = 300, np.random.default_rng(0)
    weights = np.ones((1001, n))
    weights[1:] = drawn = rng.multinomial(n, np.full(n, 1 / n), size=1000)
    z = rng.normal(size=(n, 6)) + 1.5 * rng.random((n, 1))  # denser on one side
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    second = np.roll(z, 7, axis=0)
    kernels = {
        "uniformity": np.exp(-2 * ((z[:, None] - z[None]) ** 2).sum(axis=2)),
        "alignment_chance": ((z[:, None] - second[None]) ** 2).sum(axis=2),
    }
    got = metrics.embedding_scores(predictions(z, z, second), weights)
    for name, kernel in kernels.items():
        np.fill_diagonal(kernel, 0)
        over_pairs = np.einsum("bi,ij,bj->b", weights, kernel, weights)
        over_pairs /= weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
        if name == "uniformity":
            over_pairs = np.log(over_pairs)
        assert got[name][0] == pytest.approx(over_pairs[0], abs=1e-5)
        assert got[name][1:].std() == pytest.approx(over_pairs[1:].std(), rel=0.12)
        assert np.corrcoef(got[name][1:], over_pairs[1:])[0, 1] > 0.9
    same = ((z - second) ** 2).sum(axis=1)
    assert got["alignment"][1:] == pytest.approx(drawn @ same / n, abs=1e-5)
    assert np.isnan(got["effective_rank"][1:]).all()


def alignment_of(first, second):
    scores = metrics.embedding_scores(predictions(Z, *embedding.centred_views(first, second)))
    return scores["alignment"][0], scores["alignment_chance"][0]


def test_views_of_unrelated_records_agree_as_much_as_chance():
    rng = np.random.default_rng(0)
    same, chance = alignment_of(*rng.normal(size=(2, 40, 200)))
    assert same == pytest.approx(2, abs=0.05) and chance == pytest.approx(2, abs=0.05)
    first = rng.normal(size=(40, 200))
    same, chance = alignment_of(first, first)
    assert same == 0 and chance == pytest.approx(2, abs=0.1)


def test_what_all_views_share_is_no_agreement():
    """Masking moves the views of all records to the same side: that changes nothing."""
    rng = np.random.default_rng(1)
    first = rng.normal(size=(40, 30))
    second = first + 0.5 * rng.normal(size=(40, 30))
    plain, moved = alignment_of(first, second), alignment_of(first + 9, second + 9)
    np.testing.assert_allclose(plain, moved, rtol=1e-9)
    assert 0 < plain[0] < plain[1]


def test_health_shows_alignment_beside_its_chance(small):
    run = train(small, make_run(method="random"))
    found = embedding.diagnose(run.config, small.store, run.encoder, Rotation())
    rows = evaluate_run(small, run, "embedding").set_index("metric")
    by_hand = found["alignment"].mean()
    assert 0 < rows.loc["alignment", "value"] == pytest.approx(by_hand, abs=1e-5)
    low, high = rows.loc["alignment_chance", ["ci_low", "ci_high"]]
    assert low <= rows.loc["alignment_chance", "value"] <= high
    table = tables.by_method(rows.reset_index().assign(seed="all"))
    columns = list(page("10_health").health_texts(table))
    assert columns.index("alignment chance") == columns.index("alignment") + 1


def test_overlap_of_label_sets():
    a = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    expected = [[1, 0, 1 / 2], [0, 1, 0], [1 / 2, 0, 1]]
    np.testing.assert_allclose(embedding.overlap(a, a), expected)


def test_neighbours_are_training_records_and_agreement_is_their_overlap(small):
    run = train(small, make_run(method="random"))
    found = embedding.diagnose(run.config, small.store, run.encoder, Rotation())
    parts = split(small.store, Rotation())
    for name in ("record_id", "patient_id"):
        assert found[name].tolist() == parts["test"].ids[name].tolist()
    known = embedding.embed(run.encoder, small.store, parts["train"].rows)
    x = embedding.embed(run.encoder, small.store, parts["test"].rows)[0] - known.mean(axis=0)
    k = known - known.mean(axis=0)
    cosine = k @ x / np.linalg.norm(k, axis=1) / np.linalg.norm(x)
    nearest = parts["train"].labels[np.argsort(-cosine)[: embedding.NEIGHBOURS]]
    mine = parts["test"].labels[0]
    both, either = (nearest & mine).sum(axis=1), (nearest | mine).sum(axis=1)
    assert found["agreement"][0] == pytest.approx(np.mean(both / np.maximum(either, 1)), abs=1e-6)


def test_the_same_views_for_every_encoder_and_rows_without_reference(small):
    run = train(small, make_run(method="random"))
    once = embedding.diagnose(run.config, small.store, run.encoder, Rotation())
    again = embedding.diagnose(run.config, small.store, run.encoder, Rotation())
    np.testing.assert_array_equal(once["alignment"], again["alignment"])
    assert (once["alignment"] > 0).all()
    rows = evaluate_run(small, run, "embedding")
    assert set(rows["protocol"]) == {"frozen"} and set(rows["task"]) == {embedding.Embedding.name}


def test_spread_of_layers_is_that_of_their_outputs():
    encoder = build_encoder(EncoderConfig(), 0)
    x = torch.randn(8, 12, 300, generator=torch.Generator().manual_seed(0))
    table = page("10_health").layer_spread(encoder, x)
    layers = encoder.layers
    with torch.no_grad():
        inside = layers[:4](x)
        block, e = layers[4], encoder(x)
        branch = block.main(inside).std(dim=(0, 2)).mean() / inside.std(dim=(0, 2)).mean()
    assert table["layer"].tolist() == ["input", "stem", *(f"block {k}" for k in range(1, 9))]
    expected = [y.std(dim=(0, 2)).mean().item() for y in (x, inside, e)]
    np.testing.assert_allclose(table["sd"].iloc[[0, 2, 9]], expected, rtol=1e-5)
    assert table["branch"].isna().tolist() == [True] * 2 + [False] * 8
    assert table["branch"].iloc[3] == pytest.approx(branch.item(), rel=1e-5)
    assert not any(m._forward_hooks for m in encoder.modules())


def test_as_initialised_nothing_is_normalised():
    """A signal ten times as large is so in every layer; with statistics of data, in none."""
    bare = build_encoder(EncoderConfig(), 0)
    x = torch.randn(32, 12, 300, generator=torch.Generator().manual_seed(0))
    once, ten = (page("10_health").layer_spread(bare, f * x)["sd"] for f in (1, 10))
    np.testing.assert_allclose(ten / once, 10, rtol=1e-3)
    once, ten = (
        page("10_health").layer_spread(with_data_statistics(bare, [f * x]), f * x) for f in (1, 10)
    )
    np.testing.assert_allclose(ten["sd"][1:] / once["sd"][1:], 1, rtol=0.01)
    assert (once["branch"][2:] > 2 * page("10_health").layer_spread(bare, x)["branch"][2:]).all()


def test_maps_hold_the_records_of_fold_10_and_their_whole_beats(small):
    run = train(small, make_run(method="random"))
    found = page("05_pretraining").maps(
        run.config, small.store, small.beats, run.encoder, Rotation()
    )
    test = split(small.store, Rotation())["test"]
    points, labels, share = found["records"]
    assert points.shape == (len(test.rows), 2) and np.array_equal(labels, test.labels)
    assert 0 < share.sum() <= 1
    beat_points, beat_class, _ = found["beats"]
    r_peak = small.beats.r_peak[test.rows]
    rate, time = small.store.sampling_rate, small.store.signals.shape[2]
    whole = (r_peak >= 0.25 * rate) & (r_peak + 0.5 * rate <= time - 1)
    assert len(beat_points) == len(beat_class) == whole.sum()
    assert np.array_equal(beat_class, small.beats.rules[test.rows][whole])
