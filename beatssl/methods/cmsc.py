"""CMSC, a compared method: contrast of the two halves of a record (CLOCS).

Source: Kiyasseh, Zhu and Clifton 2021, "CLOCS: Contrastive Learning of Cardiac Signals Across
Space, Time, and Patients", ICML, arXiv 2005.13249, its "contrastive multi-segment coding". Written
from its equations.

Adjacent segments, without overlap, are a positive pair. There is no augmentation: CLOCS contrasts
the raw segments, and what changes from one to the next takes its place. CLOCS pairs all segments of
one patient; here a record stands for its patient, though a few patients of PTB-XL have several
records, which then count as negatives. Ours, too: all 12 leads in one encoder, and the projector of
the Beat-SSL baseline, so that the two differ in their pairs.
"""

from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from beatssl.methods.base import (
    Batch, Entry, Method, Setup, ResNetSettings, TrainSettings, step_losses,
)  # fmt: skip
from beatssl.methods.encoder import autocast, projector
from beatssl.methods.losses import view_health


@dataclass(frozen=True)
class CMSCSettings(ResNetSettings, TrainSettings):
    """The temperature is CLOCS's."""

    method: str = "cmsc"
    temperature: float = 0.1
    projector_hidden: int = 256
    projector_out: int = 128

    limits = ((1e-6, inf, "temperature", "projector_hidden", "projector_out"),)


def halves(signals: Tensor) -> Tensor:
    """(N, leads, time) -> (2N, leads, time // 2): all first halves, then all second halves; the
    last sample of an odd number is left out."""
    half = signals.shape[2] // 2
    return torch.cat([signals[:, :, :half], signals[:, :, half : 2 * half]])


def cmsc_loss(z_1: Tensor, z_2: Tensor, temperature: float) -> Tensor:
    """Find the second half by the first among all second halves, and the other way round.

    With `p_ij = softmax_j(cos(z_1i, z_2j) / temperature)` and q the same with 1 and 2 exchanged,
    `L = -mean_i (log p_ii + log q_ii) / 2`. Unlike in NT-Xent, halves of the same side are not
    contrasted.

    Args:
        z_1, z_2: (N, dim), N >= 2, embeddings of the first and of the second halves, of any length.
        temperature: > 0.
    """
    cosine = F.normalize(z_1.float(), dim=1) @ F.normalize(z_2.float(), dim=1).T
    logits, own = cosine / temperature, torch.arange(len(z_1), device=z_1.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class CMSC(Method):
    """Encoder and projector; only the encoder, which takes records of any length, is kept."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        c = self.config
        self.projector = projector(self.encoder.channels, c.projector_hidden, c.projector_out)

    def training_step(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Loss of one batch, `total` (to differentiate), and detached: alignment, uniformity. Of
        the batch only the signals are used; nothing is drawn."""
        n = len(batch.signals)
        with autocast(batch.signals.device):
            e = self.encode(halves(batch.signals))  # (2N, C, steps)
            z = self.projector(e.mean(dim=2)).float()  # (2N, dim)
        loss = cmsc_loss(z[:n], z[n:], self.config.temperature)
        return step_losses(loss, **view_health(z[:n], z[n:]))


ENTRY = Entry("CMSC (CLOCS)", CMSCSettings, CMSC)
