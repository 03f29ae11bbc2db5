"""Task 2: LUDB waves, one of background, P, QRS, T for every sample of one lead.

K-fold cross-validation by record (every LUDB record is another patient), the same folds for all
methods and seeds, so that each record is tested once. The decoder has no skip connections: all it
knows of the signal is the encoder's output. No epoch is selected: training ends at a fixed number
of epochs, so no labelled record is needed beside training and test records; only the learning rate
of fine-tuning is chosen, within the training part of the first fold. Unannotated samples (-1) enter
neither loss nor score (paper.md 2.5).
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import KFold
from torch import Tensor, nn

from beatssl.data.records import WAVES
from beatssl.data.store import Store
from beatssl.methods.base import RunSettings, dropout_from
from beatssl.methods.encoder import kernel_samples
from beatssl.progress import progress
from beatssl.settings import one_of, some_rates
from beatssl.tasks.base import Case, Headlines, Pair, Predictions, Task, ids_of
from beatssl.tasks.fit import Fit, Plan, best_rate, device_of, outputs
from beatssl.tasks.scores import MetricError, f1, segmentation_scores, wave_counts

CLASSES = 1 + len(WAVES)
DEPTH = 3  # convolutions of the decoder at the input rate
WEIGHT_DECAY = 1.0e-2
INNER_FOLDS = 5  # one of them chooses the learning rate of fine-tuning
KERNEL_MS = 90.0  # of the decoder's convolutions at the input rate


@dataclass(frozen=True)
class SegmentConfig:
    """Task 2, LUDB waves."""

    lead: str = "II"
    records: str = "all"  # all | first | second: half of LUDB, in the order of its numbers
    folds: int = 5
    epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 2.0e-3  # of the decoder on a frozen encoder
    finetune_learning_rates: tuple[float, ...] = (6.0e-4, 2.0e-3, 6.0e-3)
    decoder_width: int = 32
    tolerance_ms: float = 150.0
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        some_rates(self.finetune_learning_rates)
        one_of("records", self.records, ("all", "first", "second"))


def upsample(x: Tensor, stride: int, time: int) -> Tensor:
    """(batch, channels, steps) -> (batch, channels, time), linear: sample j * stride is step j, and
    beyond the last step its value is held.

    Raises:
        ValueError: the steps do not cover `time` samples.
    """
    if x.shape[-1] * stride < time:
        raise ValueError(f"{x.shape[-1]} encoder steps do not cover {time} samples")
    following = torch.cat([x[..., 1:], x[..., -1:]], dim=-1)
    share = torch.arange(stride, device=x.device, dtype=x.dtype) / stride
    return torch.lerp(x[..., None], following[..., None], share).flatten(-2)[..., :time]


class Decoder(nn.Module):
    """Light decoder without skips: (batch, channels, steps) -> logits (batch, 4, time).

    Per-channel standardisation (so that the scale of an encoder's output does not matter), a 1x1
    convolution to `width`, `upsample` to the input rate; there three convolutions, each with batch
    normalisation and GELU, and a 1x1 convolution to the classes. All but the first convolution is
    the same for every encoder, in weights and in reach.

    Args:
        channels: of the encoder's output.
        stride: input samples per step.
        width: of the decoder.
        sampling_rate: Hz of the input.
    """

    def __init__(self, channels: int, stride: int, width: int, sampling_rate: float = 100):
        super().__init__()
        self.stride, kernel = stride, kernel_samples(KERNEL_MS, sampling_rate)
        inner: list[nn.Module] = []
        for _ in range(DEPTH):
            convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
            inner += [convolution, nn.BatchNorm1d(width), nn.GELU()]
        # made first: one seed gives every encoder the same ones
        self.layers = nn.Sequential(*inner, nn.Conv1d(width, CLASSES, 1))
        norm = nn.BatchNorm1d(channels, affine=False)
        self.narrow = nn.Sequential(norm, nn.Conv1d(channels, width, 1))

    def forward(self, e: Tensor, time: int) -> Tensor:
        return self.layers(upsample(self.narrow(e), self.stride, time))


def build_decoder(
    channels: int, stride: int, width: int, seed: int, sampling_rate: float = 100
) -> Decoder:
    """A decoder with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(channels, stride, width, sampling_rate)


class Segmenter(nn.Module):
    """Decoder on an encoder (fine-tuning), or on stored encoder outputs where `encoder` is None."""

    def __init__(self, encoder: nn.Module | None, decoder: Decoder, time: int):
        super().__init__()
        self.encoder, self.decoder, self.time = encoder, decoder, time

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x if self.encoder is None else self.encoder(x), self.time)


def folds(names: np.ndarray, count: int, split: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training and test item numbers of each fold; all rows of a record stay together.

    Args: names: `record_id` of each item. split: number of the shuffling.

    Raises:
        MetricError: fewer records than folds.
    """
    whole = [name.partition("#")[0] for name in names]  # "7#1": second row of record 7
    records, which = np.unique(whole, return_inverse=True)
    if len(records) < count:
        raise MetricError(
            f"{len(records)} LUDB records cannot fill {count} folds: take more records or fewer "
            "folds (SegmentConfig.folds)"
        )
    for _, test in KFold(count, shuffle=True, random_state=split).split(records):
        in_test = np.isin(which, test)
        yield np.flatnonzero(~in_test), np.flatnonzero(in_test)


def check_waves(truth: np.ndarray, where: str) -> None:
    """Refuse targets (n, time) in which a wave never occurs.

    Raises:
        MetricError: names the wave.
    """
    for k, name in enumerate(WAVES):
        if not (truth == k + 1).any():
            raise MetricError(
                f"{where}: no sample is annotated as {name} in {len(truth)} records: choose "
                "another lead (SegmentConfig.lead), more records or fewer folds"
            )


def _apply(model: nn.Module, inputs: Tensor) -> Tensor:
    return outputs(model, inputs.split(64), lambda piece: piece)


def ludb_rows(store: Store, config: SegmentConfig) -> np.ndarray:
    """Row numbers of the records that the settings choose."""
    rows = np.asarray(store.rows("ludb"))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    return {"all": rows, "first": first, "second": second}[config.records]


def shared(store: Store, config: SegmentConfig, split: int = 0) -> Predictions:
    """What the predictions of all methods have in common; `split` is a number of `folds`.

    Returns:
        truth (n, time) int8, marks (waves, 4) of `Store.wave_marks`, record_id, patient_id (n,),
        fold (n,) int8 from 1, in which the record is tested; scalars sampling_rate (Hz),
        tolerance_ms.

    Raises:
        MetricError: fewer records than folds.
    """
    rows = ludb_rows(store, config)
    ids, fold = ids_of(store, rows), np.zeros(len(rows), dtype=np.int8)
    for k, (_, unseen) in enumerate(folds(ids["record_id"], config.folds, split), start=1):
        fold[unseen] = k
    return {
        "truth": store.wave_targets(rows, lead=config.lead),
        "marks": store.wave_marks(rows, lead=config.lead),
        **ids,
        "fold": fold,
        "sampling_rate": np.array(store.sampling_rate),
        "tolerance_ms": np.array(config.tolerance_ms),
    }


def cross_validate(
    case: Case, *, seed: int, split: int = 0, only: Sequence[int] = (), standardise: bool = True
) -> Predictions:
    """Predict every LUDB record once, by a model that was not trained on it.

    The encoder is left as it is; where it is trainable, each fold trains a copy, with the learning
    rate of `choose_rate` on the training part of fold 1.

    Args:
        seed: of decoder weights, shuffling and dropout.
        split: of the records into folds.
        only: folds to predict, from 1; default all. Records of the others stay background.
        standardise: whether the decoder standardises the encoder's channels.

    Returns:
        `shared`, and prediction (n, time) int8, learning_rate of all folds.

    Raises:
        MetricError: too few records, or a wave without a single annotated sample in a training
            part or in all records.
    """
    store, config = case.store, case.settings
    made = shared(store, config, split)
    truth, fold = made["truth"], made["fold"]
    check_waves(truth, f"LUDB lead {config.lead}")
    target = torch.from_numpy(truth.astype(np.int64))
    inputs = torch.from_numpy(store.load(ludb_rows(store, config)))
    if not case.trainable:
        inputs = _apply(case.encoder, inputs)
    rate = None if case.trainable else config.learning_rate
    prediction = np.zeros_like(truth)
    for k in progress(only or range(1, config.folds + 1), "folds"):
        seen, unseen = fold != k, fold == k
        check_waves(truth[seen], f"LUDB lead {config.lead}, training part of fold {k}")
        number = seed * 1000 + k - 1
        if rate is None:
            rate = choose_rate(case, inputs[seen], target[seen], made["record_id"][seen], number)
        model = fitted(case, inputs[seen], target[seen], rate, number, standardise)
        prediction[unseen] = _apply(model, inputs[unseen]).argmax(dim=1).numpy()
    return made | {"prediction": prediction, "learning_rate": np.array(rate)}


def fitted(
    case: Case, inputs: Tensor, target: Tensor, rate: float, seed: int, standardise: bool = True
) -> Segmenter:
    """A new decoder, and a copy of the encoder where it is trainable, trained by cross-entropy over
    annotated samples.

    Args:
        inputs: (n, 12, time) signals, or (n, channels, steps) where the encoder is frozen.
        target: (n, time) int64, -1 left out.
        rate: learning rate after the warm-up.
    """
    encoder, config = case.encoder, case.settings
    sizes = encoder.channels, encoder.stride, config.decoder_width
    decoder = build_decoder(*sizes, seed, case.store.sampling_rate)
    if not standardise:
        decoder.narrow[0] = nn.Identity()
    own = copy.deepcopy(encoder).requires_grad_(True) if case.trainable else None
    model = Segmenter(own, decoder, target.shape[1]).to(device_of(encoder))
    plan = Plan(len(inputs), config.batch_size, config.epochs, rate, WEIGHT_DECAY)
    loss = functools.partial(nn.functional.cross_entropy, ignore_index=-1)
    fit = Fit(model, lambda items: (inputs[items], target[items]), loss, plan, seed)
    with dropout_from(torch.Generator().manual_seed(seed), device_of(encoder)):
        for _ in progress(range(config.epochs), "epochs of the fold", delay=5):
            fit.epoch()
    return model


def choose_rate(
    case: Case, inputs: Tensor, target: Tensor, record_id: np.ndarray, seed: int
) -> float:
    """The rate of `finetune_learning_rates` with the best macro F1 on a held-out fifth of these
    records, the same fifth for every encoder and seed. Where there is one rate nothing is trained.

    Args: inputs (n, 12, time), target (n, time), record_id (n,): of a training part.

    Raises:
        MetricError: fewer than five records, or a wave that is missing in one of the two parts.
        FloatingPointError: the loss of every rate is NaN or infinite.
    """
    config = case.settings
    rates = config.finetune_learning_rates
    if len(rates) == 1:
        return rates[0]
    seen, held = next(folds(record_id, INNER_FOLDS))
    truth = target[held].numpy()
    for part, name in ((target[seen].numpy(), "training"), (truth, "selection")):
        check_waves(part, f"LUDB lead {config.lead}, {name} part for the learning rate")

    def quality(model: Segmenter) -> float:
        prediction = _apply(model, inputs[held]).argmax(dim=1).numpy()
        return float(f1(wave_counts(truth, prediction).sum(axis=0)).mean())

    return best_rate(rates, lambda r: fitted(case, inputs[seen], target[seen], r, seed), quality)[0]


def first_fold(predictions: Predictions) -> Predictions:
    """Predictions of the records that the first fold tests; all else as it is."""
    tested = predictions["prediction"][predictions["fold"] == 1]
    return {**predictions, "prediction": tested}


def fold_monitor(run: RunSettings, store: Store, config: SegmentConfig) -> Callable:
    """Function encoder -> macro F1 of LUDB's first fold, the encoder frozen; a watch during
    pretraining, from which nothing is chosen."""

    def watch(encoder: nn.Module) -> dict[str, float]:
        made = cross_validate(Case(run, config, store, encoder), seed=0, only=[1])
        tested = made["fold"] == 1
        counts = wave_counts(made["truth"][tested], made["prediction"][tested]).sum(axis=0)
        return {"fold_f1": float(f1(counts).mean())}

    return watch


class Segmentation(Task):
    """LUDB waves, in one cross-validation."""

    key, name, group = "segmentation", "ludb_segmentation", "segment"
    Settings: type = SegmentConfig
    dataset = "ludb"
    trainable = True
    headlines: Headlines = (("LUDB F1", "f1_macro"), ("Dice", "dice"))
    listed = ("f1_macro", "dice")
    made_by: tuple[Callable, ...] = (cross_validate,)
    scores = staticmethod(segmentation_scores)

    def _made(self, case: Case, only: Sequence[int] = ()) -> Predictions:
        return cross_validate(case, seed=case.run.seed, only=only)

    def predictor(self, case: Case) -> Callable[[float], Predictions]:
        return lambda fraction: self._made(case)

    def replay(self, case: Case, fraction: float, stored: Predictions) -> Pair:
        return first_fold(self._made(case, only=[1])), first_fold(stored)
