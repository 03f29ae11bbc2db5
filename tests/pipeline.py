"""The whole chain on a few simulated records, for tests that kill it or fill its disk:
python pipeline.py RUNS_YML. Prints the name of each stage as it begins.
"""

from __future__ import annotations

import sys
from pathlib import Path

from beatssl import compute, evaluate
from beatssl.cache import clear_leftovers
from beatssl.data.beats import prepare_beats
from beatssl.data.store import prepare
from beatssl.profile import Workspace, load_profile

STAGES = ("store", "beats", "training", "classification", "segmentation", "done")
RUNS_YML = """
profiles:
  small:
    data: {synthetic: true, synthetic_ptbxl: 120, synthetic_ludb: 4, synthetic_challenge: 4}
    encoder: {widths: [8, 16], strides: [1, 2], dilations: [1, 2], blocks: 1}
    classify: {label_fractions: [0.5, 1.0], bootstrap: 50, finetune_epochs: 4,
               finetune_learning_rates: [1.0e-3]}
    segment: {folds: 2, epochs: 12, bootstrap: 50, finetune_learning_rates: [2.0e-3]}
    compare: {label_fractions: [0.5, 1.0], draws: 2, folds: 2, repeats: 2}
    pretrain: {epochs: 8, batch_size: 16}
    runs: [{rhythm: soft_1, beat: hard, exponent: 50}]
"""


def main(runs_yml: Path) -> None:
    def begin(stage: str) -> None:
        print(stage, flush=True)

    profile = load_profile("small", runs_yml)
    compute.use(profile.compute)
    begin("store")
    clear_leftovers(profile.work)
    store = prepare(profile.data, profile.work / "store", profile.work, jobs=2)
    begin("beats")
    w = Workspace(profile, store, prepare_beats(store, profile.work / "beats"))
    begin("training")
    run = evaluate.train(w, profile.runs[0])
    for task in ("classification", "segmentation"):
        begin(task)
        evaluate.evaluate_run(w, run, task, finetune=True)
    begin("done")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except OSError as error:  # as the command line does
        sys.exit(f"error: {error}")
