"""A cheap probe during pretraining: does what the loss teaches help the task?"""

from __future__ import annotations

from collections.abc import Callable

from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from beatssl.data.store import Store
from beatssl.methods.encoder import Encoder
from beatssl.tasks.classify import embed, macro_auroc, split


def probe_monitor(store: Store) -> Callable[[Encoder], dict[str, float]]:
    """Function encoder -> {"probe_auroc": macro AUROC on fold 9 of a linear probe of folds 1-8}.

    A watch, not a result: C is fixed at 0.01, and fold 10 is not touched.
    """
    parts = split(store)
    train, val = parts["train"], parts["validation"]

    def probe(encoder: Encoder) -> dict[str, float]:
        model = make_pipeline(
            StandardScaler(),
            OneVsRestClassifier(LogisticRegression(C=0.01, solver="newton-cholesky")),
        )
        model.fit(embed(encoder, store, train.rows), train.labels)
        score = model.predict_proba(embed(encoder, store, val.rows))
        return {"probe_auroc": macro_auroc(val.labels, score)}

    return probe
