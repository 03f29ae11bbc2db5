"""Beat-SSL, reproduced: two-context contrastive learning of ECG encoders with soft targets."""

import importlib

__version__ = "0.1.0"
# for one's own ECGs, loaded when asked for
OWN = {
    "ECG": "beatssl.ecg",
    "read_ecg": "beatssl.ecg",
    "plot": "beatssl.paper",
    "delineate": "beatssl.delineator",
    "intervals": "beatssl.delineator",
    "embed": "beatssl.embedder",
    "BeatSSLEmbedder": "beatssl.embedder",
}


def __getattr__(name: str) -> object:
    if name in OWN:
        return getattr(importlib.import_module(OWN[name]), name)
    raise AttributeError(f"module 'beatssl' has no attribute {name!r}")
