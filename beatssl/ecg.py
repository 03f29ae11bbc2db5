"""One's own ECG: from a file or an array to leads under their usual names, in millivolts."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import edfio
import numpy as np
import pydicom
import wfdb

from beatssl.data.records import LEADS, RecordError, read_wfdb
from beatssl.ecg_text import millivolts, read_table

SLOWEST, FASTEST = 50.0, 2000.0  # Hz
SHORTEST, LONGEST = 2.0, 24 * 3600.0  # s
UNUSUAL = 20.0  # mV: no ECG of the surface is as large
NAMES = {lead.lower(): lead for lead in LEADS} | {f"ml{k}": "I" * k for k in (1, 2, 3)}
NAMES |= {f"ml{lead.lower()}": lead for lead in ("I", "II", "III")}
NAMES |= {f"lead{k}": "I" * k for k in (1, 2, 3)}
NAMES |= {f"{first}{lead.lower()}": lead for lead in ("I", "II", "III") for first in "dl"}
OTHERS = re.compile(  # leads of other electrodes: of a Holter, of vectors, right and back ones
    r"(?:e[ck]g|ch|channel|lead)?[\W_]*\d{1,2}|(?:e[ck]g).*|mod\b.*|v[x-z]?|[xyz]|es|as|ai"
    r"|(?:c[mcbs]|m[lv]|mcl)[\W_]*v?(?:\d|r|i{1,3})|d[1-4]|(?:lead )?v[3-9]r?|v\d[\W_]*v\d",
    re.IGNORECASE,
)
REMARK = re.compile(r"\(.*?\)|\[.*?\]|,.*")  # in DICOM's names of leads
WORDS = re.compile(r"mdc|e[ck]g|lead|channel|ableitung|ref$|[^a-z0-9]")


@dataclass(frozen=True)
class ECG:
    """An ECG of some of the twelve leads, or of others.

    Attributes:
        signal: (leads, samples) float32, mV; NaN where a sample is missing.
        leads: names, the twelve in the order of `LEADS`, others (`CM5`, `ECG1`) behind them.
        sampling_rate: Hz.
        name: of the file, for messages.
        notes: what was left out or is unusual, in words.
    """

    signal: np.ndarray
    leads: tuple[str, ...]
    sampling_rate: float
    name: str = "array"
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length."""
        return self.signal.shape[1] / self.sampling_rate


def lead_name(text: str) -> str | None:
    """The usual name of a lead, whatever a device calls it (`ECG avR`, `MDC_ECG_LEAD_V1`, `MLII`,
    `aVL, augmented voltage, left`); None where it is none of the twelve."""
    plain = REMARK.sub("", text).strip().lower()
    return NAMES.get(WORDS.sub("", plain)) or NAMES.get(re.sub(r"[^a-z0-9]", "", plain))


def read_ecg(
    source: str | Path | np.ndarray | Sequence,
    sampling_rate: float | None = None,
    leads: str | Sequence[str] | None = None,
    unit: str | None = None,
) -> ECG:
    """Read an ECG: WFDB (`.hea`, `.dat`, `.mat`), EDF and BDF, DICOM waveform, CSV, or an array.

    Channels that are no ECG leads are left out and named in `notes`; leads of other electrodes (of
    a Holter, of the back) keep their names. Where I and II are there and no other limb lead, III,
    aVR, aVL and aVF are computed from them.

    Args:
        source: a file, with or without its suffix where WFDB's; or an array, (leads, samples),
            (samples, leads) or (samples,).
        sampling_rate: Hz; of an array, and of a CSV that does not say it (`beatssl.ecg_text`).
        leads: their names; of an array, and of a CSV, default its header's.
        unit: mV | uV | V; of an array or CSV, default what the file says, else mV.

    Raises:
        RecordError: there is no such file, or it holds no ECG that can be used; names what was
            found and what helps.
    """
    given = [leads] if isinstance(leads, str) else list(leads or [])
    if not isinstance(source, (str, Path)):
        signal, units = _array(np.asarray(source), given), [unit or "mV"] * len(given)
        return _checked("array", signal, given, sampling_rate, units, ())
    path = Path(source)
    name, kind = path.name, path.suffix.lower()
    if kind in (".hea", ".dat", ".mat", "") and path.with_suffix(".hea").is_file():
        found = _wfdb(path.with_suffix(""), name)
    elif not path.is_file():
        raise RecordError(f"{name}: no such file ({path.parent})")
    elif kind in (".edf", ".bdf"):
        found = _edf(path, edfio.read_edf if kind == ".edf" else edfio.read_bdf)
    elif kind in (".csv", ".tsv", ".txt"):
        found = _text(path, sampling_rate, given, unit)
    elif kind in (".dcm", ".dicom") or pydicom.misc.is_dicom(path):
        found = _dicom(path)
    else:
        kinds = "WFDB (.hea), EDF (.edf, .bdf), DICOM (.dcm), CSV (.csv)"
        raise RecordError(f"{name}: not a file that is known here; known: {kinds}, or an array")
    return _checked(name, *found)


def bridged(lead: np.ndarray) -> np.ndarray:
    """A lead (samples,) with straight lines over what is NaN; 0 where all is."""
    there = np.isfinite(lead)
    if there.all() or not there.any():
        return lead if there.any() else np.zeros_like(lead)
    return np.interp(np.arange(len(lead)), np.flatnonzero(there), lead[there])


# channels of (time,), names, Hz, units, notes
Found = tuple[Sequence[np.ndarray], list[str], float | None, list[str], Sequence[str]]


def _array(signal: np.ndarray, leads: list[str]) -> np.ndarray:
    if signal.dtype.kind not in "iuf" or signal.ndim not in (1, 2) or signal.size == 0:
        raise RecordError(
            f"array: needs numbers of shape (leads, samples), got {signal.dtype} {signal.shape}"
        )
    signal = np.atleast_2d(signal)
    if not leads:
        raise RecordError(
            f'array: name its leads, leads=["II"] or, where they stand in this order, '
            f"leads={list(LEADS)}"
        )
    fits = [n for n in signal.shape if n == len(leads)]
    if len(fits) != 1:
        raise RecordError(f"array: {len(leads)} lead names for the shape {signal.shape}")
    return signal if signal.shape[0] == len(leads) else signal.T


def _wfdb(path: Path, name: str) -> Found:
    header = path.with_name(f"{path.name}.hea").read_text(errors="replace")
    lines = [line.split() for line in header.splitlines() if line.strip() and line[0] != "#"]
    segments = any("/" in words[0] for words in lines[:1])
    frames = any("x" in words[1] for words in lines[1:] if len(words) > 1)  # 16x4: four a frame
    if not (segments or frames):
        record = read_wfdb(path, name)
        return [*record.dac().T], list(record.sig_name), float(record.fs), list(record.units), ()
    try:
        record = wfdb.rdrecord(str(path), smooth_frames=False)
        rates = [float(record.fs * n) for n in record.samps_per_frame]
    except Exception as error:  # wfdb has no type of its own for it
        raise RecordError(f"{name}: not a readable WFDB record ({error})") from error
    return _of_one_rate(name, record.sig_name, rates, record.units, record.e_p_signal.__getitem__)


def _edf(path: Path, read: Callable[..., edfio.Edf | edfio.Bdf]) -> Found:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = read(path, header_encoding="latin-1")
            if record.reserved.endswith("+D"):
                how = "recorded with interruptions (EDF+D): export it without"
                raise RecordError(f"{path.name}: {how}")
            signals = record.signals
            names, rates, units = zip(
                *((s.label, s.sampling_frequency, s.physical_dimension or "mV") for s in signals)
            )
            return _of_one_rate(path.name, names, rates, units, lambda k: signals[k].data)
    except RecordError:
        raise
    except Exception as error:  # edfio has no type of its own for it
        raise RecordError(f"{path.name}: not a readable EDF file ({error})") from error


def _of_one_rate(
    name: str, names: Sequence[str], rates: Sequence[float], units: Sequence[str],
    read: Callable[[int], np.ndarray],
) -> Found:  # fmt: skip
    """Of channels with different rates the ECG leads of the rate that most of them have, and those
    that are no leads, without their samples.

    Args: read: number of a channel -> its samples."""
    own = [k for k, text in enumerate(names) if _of_heart(text)]
    if not own:
        raise RecordError(f"{name}: none of its channels is an ECG lead: {', '.join(names)}")
    usual = [rates[k] for k in own]
    rate = max(usual, key=usual.count)
    kept = {k: read(k) for k in own if rates[k] == rate}
    silent = np.broadcast_to(np.nan, len(next(iter(kept.values()))))
    used = [k for k in range(len(names)) if k in kept or k not in own]
    notes = [
        f"{names[k]} left out: {rates[k]:g} Hz, where others have {rate:g}"
        for k in own if k not in kept
    ]  # fmt: skip
    names, units = [names[k] for k in used], [units[k] for k in used]
    return [kept.get(k, silent) for k in used], names, rate, units, notes


def _of_heart(name: str) -> bool:
    """Whether a channel is an ECG lead, by its name."""
    return bool(lead_name(name) or OTHERS.fullmatch(name.strip()))


def _dicom(path: Path) -> Found:
    try:
        dataset = pydicom.dcmread(path)
    except Exception as error:  # pydicom raises several unrelated types
        raise RecordError(f"{path.name}: not a readable DICOM file ({error})") from error
    groups = dataset.get("WaveformSequence") or []
    if not groups:
        kind = dataset.get("Modality", "unknown")
        raise RecordError(f"{path.name}: a DICOM file without a waveform (modality {kind})")
    longest = max(range(len(groups)), key=lambda k: int(groups[k].NumberOfWaveformSamples))
    try:
        signal = dataset.waveform_array(longest).T
        channels = groups[longest].ChannelDefinitionSequence
        names = [str(channel.ChannelSourceSequence[0].CodeMeaning) for channel in channels]
        units = [
            str(channel.ChannelSensitivityUnitsSequence[0].CodeValue)
            if "ChannelSensitivityUnitsSequence" in channel
            else "no unit"
            for channel in channels
        ]
    except Exception as error:
        raise RecordError(f"{path.name}: a damaged DICOM waveform ({error})") from error
    return signal, names, float(groups[longest].SamplingFrequency), units, ()


def _text(path: Path, sampling_rate: float | None, leads: list[str], unit: str | None) -> Found:
    table = read_table(path, leads, sampling_rate, LONGEST)
    for column, first in table.texts.items():
        if _of_heart(column):
            raise RecordError(f"{path.name}: column {column!r} holds text, not numbers: {first!r}")
    rate = table.sampling_rate
    if sampling_rate is None and rate and not SLOWEST <= rate <= FASTEST:
        help_ = "name the unit of its times (time_ms), or give sampling_rate"
        raise RecordError(f"{path.name}: {rate:g} Hz by what stands in it: {help_}")
    units = [unit or own or "mV" for own in table.units]
    return table.signal, table.names, rate, units, table.notes


def _checked(name: str, signal: Sequence[np.ndarray], names: list[str], rate: float | None,
             units: list[str], said: Sequence[str]) -> ECG:  # fmt: skip
    """Leads in their usual order and in mV, or an error that says what was found."""
    if rate is None:
        raise RecordError(f"{name}: give its sampling_rate in Hz")
    if not SLOWEST <= rate <= FASTEST:
        raise RecordError(
            f"{name}: {rate:g} Hz; between {SLOWEST:g} and {FASTEST:g} Hz can be read"
        )
    seconds = len(signal[0]) / rate
    if not SHORTEST <= seconds <= LONGEST:
        length = f"{seconds:g} s long"
        raise RecordError(f"{name}: {length}; between {SHORTEST:g} s and 24 h can be read")
    of_lead: dict[str, np.ndarray] = {}
    notes, passed, others = [*said], [], []
    for channel, own, unit in zip(signal, names, units, strict=True):
        lead = lead_name(own)
        if lead in of_lead:
            raise RecordError(f"{name}: lead {lead} stands twice ({', '.join(names)})")
        if lead is None:
            if not OTHERS.fullmatch(own.strip()):
                passed.append(own)
                continue
            lead = own.strip()
            while lead in of_lead:
                lead += "'"
            others.append(lead)
        scale = millivolts(unit)
        if scale is None:
            raise RecordError(f"{name}: lead {own} is in {unit!r}, which is no voltage")
        of_lead[lead] = np.asarray(channel, np.float32) * np.float32(scale)
    if not of_lead:
        raise RecordError(f"{name}: none of its channels is an ECG lead: {', '.join(names)}")
    if passed:
        notes.append(f"left out, no ECG leads: {', '.join(passed)}")
    if {"I", "II"} <= of_lead.keys() and not {"III", "aVR", "aVL", "aVF"} & of_lead.keys():
        one, two = of_lead["I"], of_lead["II"]
        of_lead |= {"III": two - one, "aVR": -(one + two) / 2}
        of_lead |= {"aVL": one - two / 2, "aVF": two - one / 2}
        notes.append("III, aVR, aVL and aVF computed from I and II")
    if others:
        notes.append(f"none of the twelve leads: {', '.join(others)}")
    leads = (*(lead for lead in LEADS if lead in of_lead), *others)
    stacked = np.stack([of_lead[lead] for lead in leads])
    if np.isinf(stacked).any():
        stacked[np.isinf(stacked)] = np.nan
        notes.append("infinite samples count as missing")
    if not np.isfinite(stacked).any():
        raise RecordError(f"{name}: every sample of {', '.join(leads)} is missing")
    largest = float(np.nanmax(np.abs(stacked)))
    if largest > UNUSUAL:
        notes.append(f"up to {largest:.0f} mV: is the unit right?")
    return ECG(stacked, leads, float(rate), name, tuple(notes))
