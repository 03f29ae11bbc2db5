"""Pretraining methods, all behind the two verbs of `base.Method`, and the references beside them.

A new method is one file (its settings, label, losses, `Method`) and one line here.
"""

import dataclasses
from collections.abc import Mapping

from beatssl.methods import beatssl, cmsc, domain_ssl, ecg_fm_weights, masked, ts2vec, w2v
from beatssl.methods.base import Entry, NoEncoder, RunSettings, Untrained, UntrainedWithStatistics
from beatssl.settings import from_dict, one_of

RESNET = ("beatssl", "cmsc", "domain_ssl", "masked")  # methods that train the profile's ResNet
METHODS: dict[str, Entry] = {
    "random": Entry("Untrained, as initialised", Untrained, network_of=RESNET),
    "random_data": Entry("Untrained, data statistics", UntrainedWithStatistics, network_of=RESNET),
    "random_ts2vec": Entry("Untrained TS2Vec", ts2vec.UntrainedTS2Vec, network_of=("ts2vec",)),
    "random_w2v": Entry("Untrained W2V (small)", w2v.UntrainedW2V, network_of=("w2v",)),
    "features": Entry("ECG features, logistic regression", NoEncoder),
    "beatssl": beatssl.ENTRY,
    "cmsc": cmsc.ENTRY,
    "domain_ssl": domain_ssl.ENTRY,
    "masked": masked.ENTRY,
    "ts2vec": ts2vec.ENTRY,
    "w2v": w2v.ENTRY,
    "ecg_fm": ecg_fm_weights.ENTRY,
    "neurokit_dwt": Entry("NeuroKit2, dwt", NoEncoder),
    "neurokit_peak": Entry("NeuroKit2, peak", NoEncoder),
    "neurokit_prominence": Entry("NeuroKit2, prominence", NoEncoder),
}
UNTRAINED = {name: entry.network_of for name, entry in METHODS.items() if entry.network_of}
DELINEATORS = tuple(name for name in METHODS if name.startswith("neurokit_"))


def make_run(method: str = "beatssl", where: str = "run", **settings: object) -> RunSettings:
    """Settings of a run; what is not given has the method's default.

    Raises:
        ConfigError: an unknown method or setting (the known ones are listed), a wrong value.
    """
    one_of("method", method, METHODS)
    return from_dict(METHODS[method].settings, {"method": method, **settings}, where)


def known_settings(method: str) -> list[str]:
    """Names of the settings of a method."""
    return [field.name for field in dataclasses.fields(METHODS[method].settings)]


def stored_run(mapping: Mapping[str, object]) -> RunSettings:
    """A run as it was saved; settings that its method does not have (any more) are left out."""
    names = known_settings(str(mapping["method"]))
    return make_run(**{name: value for name, value in mapping.items() if name in names})
