"""ECG-FM's recipe (W2V + CMSC + RLM) in plain PyTorch, at any size; its network at its own.

The published model is wav2vec 2.0 (arXiv 2006.11477) on 12-lead ECG at 500 Hz with two additions:
the two halves of a record attract each other (CMSC, arXiv 2005.13249) and leads are left out at
random (RLM, arXiv 2203.06889). Its released weights are read by `ecg_fm_weights`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from beatssl.methods.base import (
    Batch, Entry, Method, OwnNetwork, RunSettings, Setup, TrainSettings, dropout_from,
    step_losses,
)  # fmt: skip
from beatssl.methods.cmsc import cmsc_loss, halves
from beatssl.methods.encoder import autocast

SEGMENT = 5  # s: what ECG-FM was pretrained on


@dataclass(frozen=True)
class W2VConfig:
    """Sizes of a wav2vec 2.0 encoder; the defaults are those of the released ECG-FM weights
    (`methods.ecg_fm`).

    Attributes:
        sampling_rate: Hz of what the convolutions see.
        conv_blocks: convolutions (kernel 2, stride 2), each halves the time axis.
        conv_channels: of the convolutions.
        width, layers, heads, ffn: of the transformer.
        position_kernel, position_groups: of the positional convolution.
        dropout: everywhere (input, targets, attention, residual branches).
        codebooks, entries: groups of the quantiser and vectors in each.
        target_dim: length of a quantised target, all codebooks together.
    """

    sampling_rate: int = 500
    conv_blocks: int = 4
    conv_channels: int = 256
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    dropout: float = 0.1
    codebooks: int = 2
    entries: int = 320
    target_dim: int = 256

    @property
    def stride(self) -> int:
        """Samples a token."""
        return 2**self.conv_blocks

    def build(self, sampling_rate: int) -> EcgFm:
        return EcgFm(W2VEncoder(self), sampling_rate)


# The recipe in small, called W2V+CMSC+RLM (small), never ECG-FM: 40 ms a token, a vector as long as
# the ResNet's, a size that trains on two cores.
W2V_SMALL = W2VConfig(
    sampling_rate=100, conv_blocks=2, conv_channels=128, width=128, layers=4, heads=4, ffn=512,
    position_kernel=64,
)  # fmt: skip


@dataclass(frozen=True)
class UntrainedW2V(OwnNetwork, RunSettings):
    """Its network with random weights; there is no batch normalisation in it."""

    untrained = True
    network: W2VConfig = W2V_SMALL


@dataclass(frozen=True)
class W2VSettings(OwnNetwork, TrainSettings):
    """The defaults are those of ECG-FM, its optimiser apart."""

    method: str = "w2v"
    network: W2VConfig = W2V_SMALL
    lead_mask: float = 0.5  # probability that a lead is zeroed
    mask_probability: float = 0.65  # share of the tokens that spans would cover without overlap
    span: int = 10  # tokens of a masked span
    negatives: int = 100  # for each masked token, from its own segment
    temperature: float = 0.1  # of both contrastive losses
    diversity_weight: float = 0.1
    penalty_weight: float = 10.0
    feature_gradient: float = 0.1  # the convolutions learn with a tenth of the gradient
    tau_start: float = 2.0  # Gumbel temperature of the quantiser
    tau_end: float = 0.5
    tau_decay: float = 0.999995  # a step

    limits = (
        (0, 1, "lead_mask", "mask_probability", "tau_decay"),
        (1e-6, math.inf, "temperature", "span", "negatives", "tau_start", "tau_end"),
    )


# ---------------------------------------------------------------- the encoder


def feature_extractor(channels: int, blocks: int) -> nn.Sequential:
    """Convolutions: (batch, 12, time) -> (batch, conv_channels, time // stride).

    The first is followed by a group norm with one group a channel, that is, each channel is
    standardised over the time of the segment.
    """
    layers = []
    for block in range(blocks):
        conv = nn.Conv1d(channels if block else 12, channels, 2, 2, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        # Identity: the norm is number 2 in the published names.
        norm = [nn.Identity(), nn.GroupNorm(channels, channels)] if block == 0 else []
        layers.append(nn.Sequential(conv, *norm, nn.GELU()))
    return nn.Sequential(OrderedDict(conv_layers=nn.Sequential(*layers)))


def positional_convolution(width: int, kernel: int, groups: int) -> nn.Sequential:
    """Where a token is, from its neighbours: (batch, width, tokens) -> the same shape; an even
    kernel gives one token more."""
    conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
    nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * width)))
    nn.init.zeros_(conv.bias)
    return nn.Sequential(OrderedDict(pos_conv=nn.Sequential(weight_norm(conv, dim=2))))


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a layer norm (post-LN): (batch, tokens,
    width) -> the same shape."""

    def __init__(self, config: W2VConfig):
        super().__init__()
        width, projections = config.width, ["q_proj", "k_proj", "v_proj", "out_proj"]
        self.heads = config.heads
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in projections})
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def attention(self, x: Tensor) -> Tensor:
        *of_tokens, out = self.self_attn.values()
        q, k, v = (  # (batch, heads, tokens, ..)
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in of_tokens
        )
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout.p * self.training)
        return out(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.dropout(self.attention(x)))
        return self.final_layer_norm(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


def transformer(config: W2VConfig) -> nn.Sequential:
    """Layer norm, dropout and the layers: (batch, tokens, width) -> the same shape."""
    layers = nn.Sequential(*(TransformerLayer(config) for _ in range(config.layers)))
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    norm, dropout = nn.LayerNorm(config.width), nn.Dropout(config.dropout)
    return nn.Sequential(OrderedDict(layer_norm=norm, dropout=dropout, layers=layers))


class W2VEncoder(nn.Module):
    """Encoder of ECG-FM; parameters are named as in the released files.

    Attributes: channels: of the output. stride: samples a token (published: 16, 32 ms at 500 Hz);
    token j is centred on sample `(j + 0.5) * stride - 0.5`.
    """

    def __init__(self, config: W2VConfig):
        super().__init__()
        c = self.config = config
        self.channels, self.stride = c.width, c.stride
        self.feature_extractor = feature_extractor(c.conv_channels, c.conv_blocks)
        self.layer_norm = nn.LayerNorm(c.conv_channels)
        self.post_extract_proj = nn.Linear(c.conv_channels, c.width)
        self.dropout = nn.Dropout(c.dropout)
        self.conv_pos = positional_convolution(c.width, c.position_kernel, c.position_groups)
        self.encoder = transformer(c)

    def forward(self, signals: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens of segments; the last `time % stride` samples are not used.

        Args:
            signals: (batch, 12, time) at the encoder's own rate, each lead with zero mean and unit
                sd.
            mask: (batch, tokens) bool, tokens to hide behind the learnt mask embedding, which only
                `W2VPretraining` has.

        Returns:
            (batch, channels, time // stride).
        """
        return self.tokens(self.feature_extractor(signals), mask)

    def tokens(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """`forward` from what the convolutions give: (batch, conv_channels, tokens)."""
        x = self.dropout(self.post_extract_proj(self.layer_norm(features.transpose(1, 2))))
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_emb.to(x.dtype), x)
        position = F.gelu(self.conv_pos(x.transpose(1, 2))[..., : x.shape[1]])
        return self.encoder(x + position.transpose(1, 2)).transpose(1, 2)


# ---------------------------------------------------------------- pretraining


class Quantizer(nn.Module):
    """Picks one vector from each codebook, with Gumbel noise (arXiv 1611.01144)."""

    def __init__(self, config: W2VConfig):
        super().__init__()
        self.codebooks, self.entries = config.codebooks, config.entries
        total = config.codebooks * config.entries
        self.vars = nn.Parameter(torch.rand(1, total, config.target_dim // config.codebooks))
        self.weight_proj = nn.Linear(config.conv_channels, total)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(self, x: Tensor, tau: float, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Hard choices whose gradient is that of the softmax (straight-through).

        Args:
            x: (.., conv_channels) normalised features.
            tau: temperature of the softmax, > 0.
            generator: CPU, for the noise.

        Returns:
            vectors (.., target_dim), choices (.., codebooks), and the perplexity of the mean
            softmax without noise, summed over the codebooks: 2 to 640 for the published size.
        """
        logits = self.weight_proj(x).float().unflatten(-1, (self.codebooks, self.entries))
        over = tuple(range(logits.ndim - 2))
        share = logits.softmax(dim=-1).mean(dim=over)  # (codebooks, entries)
        perplexity = (-(share * (share + 1e-7).log()).sum(dim=1)).exp().sum()
        noise = -torch.empty(logits.shape).exponential_(generator=generator).log()
        soft = ((logits + noise.to(logits.device)) / tau).softmax(dim=-1)
        chosen = soft.argmax(dim=-1)  # (.., codebooks)
        hard = F.one_hot(chosen, self.entries) + (soft - soft.detach())  # exactly one-hot
        books = self.vars.view(self.codebooks, self.entries, -1)
        return torch.einsum("...ge,ged->...gd", hard, books).flatten(-2), chosen, perplexity


class W2VPretraining(W2VEncoder):
    """The encoder with what only pretraining needs; 215 tensors and 90,883,072 parameters in the
    published size, of which the encoder has 207 and 90,373,248."""

    def __init__(self, config: W2VConfig):
        super().__init__(config)
        self.mask_emb = nn.Parameter(torch.rand(config.width))
        self.quantizer = Quantizer(config)
        self.project_q = nn.Linear(config.target_dim, config.target_dim)
        self.final_proj = nn.Linear(config.width, config.target_dim)


def mask_leads(signals: Tensor, probability: float, generator: Generator) -> Tensor:
    """Each lead of each segment zeroed with a probability: (batch, 12, time), same shape."""
    keep = torch.rand(signals.shape[:2], generator=generator) >= probability
    return signals * keep[..., None].to(signals)


def span_mask(
    rows: int, tokens: int, probability: float, span: int, generator: Generator
) -> Tensor:
    """Which tokens are masked: spans that may overlap, the same number in every row.

    All rows get n = probability * tokens / span spans, rounded at random to a neighbouring integer
    (at least 2), at n different starts. Rows with more masked tokens than the poorest row then lose
    some at random (as in wav2vec 2.0), so that every segment counts the same. Of 156 tokens 49.6 %
    are expected to be masked before this step; after it about 40 % of 16 rows, 35 % of 128 rows
    (64 records). Of 31 tokens (5 s at 100 Hz): 53 %, and 36 % of 16 and of 128 rows.

    Returns:
        (rows, tokens) bool on the CPU.

    Raises:
        ValueError: no more tokens than a span.
    """
    starts = tokens - span + 1
    if starts < 2:
        raise ValueError(f"{tokens} tokens, masking needs more than {span}: take longer segments")
    chance = torch.rand((), generator=generator).item()
    spans = max(2, int(probability * tokens / span + chance))
    start = torch.rand(rows, starts, generator=generator).argsort(dim=1)[:, :spans]
    covered = (start[..., None] + torch.arange(span)).flatten(1)  # (rows, spans * span)
    mask = torch.zeros(rows, tokens, dtype=torch.bool).scatter(1, covered, True)
    order = torch.rand(rows, tokens, generator=generator).masked_fill(~mask, -1.0)
    kept = order.topk(int(mask.sum(dim=1).min()), dim=1).indices
    return torch.zeros_like(mask).scatter(1, kept, True)


def draw_negatives(rows: int, masked: int, number: int, generator: Generator) -> Tensor:
    """For each masked token so many others of its segment, with repetition.

    Args: masked: tokens of a segment, two or more.

    Returns:
        (rows, masked, number) integer on the CPU, positions among the masked tokens.
    """
    others = torch.randint(masked - 1, (rows, masked, number), generator=generator)
    return others + (others >= torch.arange(masked)[:, None])  # skips the token itself


def info_nce(
    predicted: Tensor, target: Tensor, codes: Tensor, negatives: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of finding the right target among the negatives; cosine / temperature.

    A negative that was quantised to the same codes as the positive is left out (wav2vec 2.0).

    Args:
        predicted, target: (rows, masked, dim).
        codes: (rows, masked, codebooks) choices of the quantiser behind `target`.
        negatives: (rows, masked, number) positions among the masked tokens.

    Returns:
        Scalar, mean over rows and masked tokens.
    """
    cosine = F.normalize(predicted, dim=2) @ F.normalize(target, dim=2).transpose(1, 2)
    logits = cosine / temperature  # (rows, masked, masked)
    same = (codes[:, :, None] == codes[:, None]).all(dim=3)
    positive = logits.diagonal(dim1=1, dim2=2)  # (rows, masked)
    negative = logits.masked_fill(same, -math.inf).gather(2, negatives)
    return (torch.cat([positive[..., None], negative], dim=2).logsumexp(dim=2) - positive).mean()


class W2VCmscRlm(Method):
    """Pretraining by the recipe of ECG-FM, for a network of any size.

    `total = InfoNCE + 0.1 * (640 - perplexity) / 640 + 10 * mean(features^2) + CMSC`, with the
    halves of a record as its two segments. Published optimiser: Adam (.9, .98), eps 1e-6, weight
    decay .01, constant 5e-5. Positives of CMSC are records here, patients in the original.

    Attributes: model: encoder, with the weights of the setup's, and pretraining heads.
    steps: training steps done.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        del self.encoder  # the model holds a copy
        self.model = W2VPretraining(setup.encoder.config)
        self.model.load_state_dict(setup.encoder.encoder.state_dict(), strict=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def kept(self) -> EcgFm:
        """A copy of the present encoder, without the pretraining heads."""
        own = W2VEncoder(self.model.config)
        own.load_state_dict(self.model.state_dict(), strict=False)
        return EcgFm(own, self.sampling_rate)

    @property
    def tau(self) -> float:
        """Temperature of the quantiser, which falls with every step."""
        c = self.config
        return max(c.tau_start * c.tau_decay ** int(self.steps), c.tau_end)

    def encode(self, signals: Tensor) -> Tensor:
        """(batch, 12, time) as in the store -> (batch, channels, steps)."""
        return EcgFm(self.model, self.sampling_rate)(signals)

    def training_step(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """`losses` of one batch; of `batch` only the signals are used."""
        rate = self.model.config.sampling_rate
        return self.losses(model_input(batch.signals, self.sampling_rate, rate), generator)

    def losses(self, signals: Tensor, generator: Generator) -> dict[str, Tensor]:
        """Losses of one batch and what is worth watching.

        Args:
            signals: (batch, 12, time) at the encoder's rate, standardised: see `model_input`. The
                two halves need more than ten tokens each.
            generator: CPU; all draws hang on it, dropout too.

        Returns:
            `total` (to differentiate), and detached: info_nce, diversity, penalty, cmsc (not yet
            weighted), perplexity, tau, masked (share of the tokens).
        """
        c, model, device = self.config, self.model, signals.device
        segments = mask_leads(halves(signals), c.lead_mask, generator)  # (2N, 12, half)
        rows, length = len(segments), segments.shape[2] // model.stride
        mask = span_mask(rows, length, c.mask_probability, c.span, generator)
        masked, mask = int(mask[0].sum()), mask.to(device)  # every row has as many masked tokens
        with dropout_from(generator, device), autocast(device):
            features = model.feature_extractor(segments)
            tokens = model.tokens(features, mask)
            hidden = model.dropout(model.layer_norm(features.transpose(1, 2)))
        if features.requires_grad:
            features.register_hook(lambda gradient: c.feature_gradient * gradient)
        tokens = tokens.float()  # (2N, C, tokens)
        hidden = hidden.float()[mask].unflatten(0, (rows, masked))
        target, codes, perplexity = model.quantizer(hidden, self.tau, generator)
        predicted = model.final_proj(tokens.transpose(1, 2)[mask].unflatten(0, (rows, masked)))
        negatives = draw_negatives(rows, masked, c.negatives, generator).to(device)
        contrast = info_nce(predicted, model.project_q(target), codes, negatives, c.temperature)
        size = model.config.codebooks * model.config.entries
        diversity = (size - perplexity) / size
        penalty = features.float().pow(2).mean()
        first, second = tokens.mean(dim=2).chunk(2)
        between = cmsc_loss(first, second, c.temperature)
        total = contrast + c.diversity_weight * diversity + c.penalty_weight * penalty + between
        tau = torch.tensor(self.tau, device=device)
        self.steps += 1
        return step_losses(
            total, info_nce=contrast, diversity=diversity, penalty=penalty, cmsc=between,
            perplexity=perplexity, tau=tau, masked=mask.float().mean(),
        )  # fmt: skip


# ---------------------------------------------------------------- our records


class EcgFm(nn.Module):
    """An encoder of tokens on records of any rate, with one step every `stride` samples.

    ECG-FM was pretrained on MIMIC-IV-ECG and PhysioNet 2021, which contains PTB-XL: its released
    weights have seen the signals of PTB-XL, test folds included, without their labels.

    A record becomes tokens in segments of 5 s, the length of pretraining. Where the time is no
    multiple of 5 s the last segment ends with the record and overlaps the one before; a record
    shorter than 5 s is one segment.

    Args:
        encoder: `load_ecg_fm(..)`, or a `W2VEncoder` of another size.
        sampling_rate: Hz of the signals.

    Attributes: stride: input samples a step, the largest power of two within 40 ms: 4 at 100 Hz.
    """

    def __init__(self, encoder: nn.Module, sampling_rate: float):
        super().__init__()
        self.encoder, self.sampling_rate, self.config = encoder, sampling_rate, encoder.config
        self.stride = 2 ** max(0, int(math.log2(0.04 * sampling_rate)))
        self.channels = encoder.channels

    def forward(self, signals: Tensor) -> Tensor:
        """(batch, 12, time) -> (batch, channels, ceil(time / stride)).

        Step j lies on input sample `j * stride`, interpolated between the nearest tokens (token k
        of a segment is centred on its sample `(k + 0.5) * encoder.stride - 0.5`); beyond the
        outermost tokens their value is kept.

        Raises:
            ValueError: a record shorter than two tokens (64 ms for ECG-FM).
        """
        rate = self.config.sampling_rate
        x = model_input(signals, self.sampling_rate, rate)
        time, place = x.shape[2], x.device
        length = min(SEGMENT * rate, time)
        tokens = length // self.encoder.stride
        if tokens < 2:
            raise ValueError(f"a record of {time} samples at {rate} Hz is shorter than two tokens")
        starts = [*range(0, time - length, length), time - length]
        segments = torch.stack([x[..., s : s + length] for s in starts], dim=1)
        e = self.encoder(segments.flatten(0, 1)).unflatten(0, (len(x), len(starts)))
        e = e.transpose(1, 2).flatten(2)  # (batch, channels, segments * tokens)
        middle = (torch.arange(tokens, device=place) + 0.5) * self.encoder.stride - 0.5
        at = (torch.tensor(starts, device=place)[:, None] + middle.double()).flatten()
        new = torch.ones_like(at, dtype=torch.bool)  # not: what an overlap has already given
        new[1:] = at[1:] > at.cummax(dim=0).values[:-1]
        step = torch.arange(0, signals.shape[2], self.stride, device=place).double()
        return interpolate(e[..., new], at[new], step * (rate / self.sampling_rate))


def model_input(signals: Tensor, sampling_rate: float, rate: float) -> Tensor:
    """What the encoder expects (ECG-FM: 500 Hz): resampled by linear interpolation, each lead of
    zero mean and unit sd over the whole record, constant leads 0.

    Args:
        signals: (batch, 12, time).
        sampling_rate: Hz of the signals.
        rate: Hz wanted.

    Returns:
        (batch, 12, round(time * rate / sampling_rate)); sample k is at k / rate s, and the value
        after the last given sample is kept.
    """
    if sampling_rate != rate:
        ratio = sampling_rate / rate
        given = torch.arange(signals.shape[2], device=signals.device).double()
        wanted = torch.arange(round(signals.shape[2] / ratio), device=signals.device).double()
        signals = interpolate(signals, given, wanted * ratio)
    sd = signals.std(dim=2, unbiased=False, keepdim=True)
    varies = sd > 1e-6 * signals.abs().amax(dim=2, keepdim=True)  # above the rounding of float32
    centred = signals - signals.mean(dim=2, keepdim=True)
    return torch.where(varies, centred / torch.where(varies, sd, 1.0), 0.0)


def interpolate(values: Tensor, at: Tensor, where: Tensor) -> Tensor:
    """Linear interpolation on the last axis, constant beyond the ends.

    Args:
        values: (.., n), n >= 2.
        at: (n,) increasing positions of the values, float64.
        where: (m,) wanted positions.

    Returns:
        (.., m).
    """
    where = where.to(at).clamp(at[0], at[-1])
    right = torch.searchsorted(at, where).clamp(1, len(at) - 1)
    share = (where - at[right - 1]) / (at[right] - at[right - 1])
    return torch.lerp(values[..., right - 1], values[..., right], share.to(values))


ENTRY = Entry("W2V+CMSC+RLM (small)", W2VSettings, W2VCmscRlm, ("total", "info_nce", "cmsc"))
