"""A moving-dipole heart that writes small record folders in the published layouts.

It exists so that the whole project runs without a download: the folders go through the very same
readers as PTB-XL, LUDB and the Challenge 2021. The morphologies are caricatures drawn from
textbook descriptions, with made-up frequencies and severities. Nothing here is clinical, and a
number measured on it says only that the code works.

Model. The heart is one dipole p(t) in the body axes X left, Y down, Z back (mV). Every beat adds
bumps, each with a place in time, a width and a 3-D direction (P, Q, R, S, ST, T, and late QRS
parts); the bump is a Gaussian that is cut off at `REACH` standard deviations, so that a wave has
exact borders. Leads are `Dower matrix x p(t)` (Dower 1980; `beatssl.data.vcg.DOWER`), the other
limb leads follow from Einthoven and Goldberger. Noise is added to the eight independent leads
before.
"""

import itertools
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
import wfdb
from numpy.random import Generator, default_rng
from scipy.spatial.transform import Rotation

from beatssl.cache import read_json, replacing_folder, write_json
from beatssl.data.records import LEADS
from beatssl.data.vcg import DOWER, EXPAND
from beatssl.progress import in_processes
from beatssl.settings import read_yaml

VERSION = 1  # raise it when the written bytes change: older folders are written again
REACH = 2.5  # a bump ends this many standard deviations from its centre
VISIBLE = 0.02  # mV: a bump that is smaller in a lead is not annotated there
MANIFEST = "synthetic.json"

STATEMENTS = Path(__file__).with_name("scp_statements.csv")  # superclasses' variants, rhythms
CLASS_OF = pd.read_csv(STATEMENTS, index_col=0)["diagnostic_class"]
MODEL = read_yaml(Path(__file__).with_name("synthetic.yml"))
RHYTHMS = MODEL["rhythms"]


@dataclass
class Bump:
    """One part of a beat: `wave` 0 (not annotated), 1 P, 2 QRS or 3 T."""

    wave: int
    centre: float  # s from the R peak
    rise: float  # s, standard deviation before the centre
    fall: float  # s, standard deviation after it
    vector: np.ndarray  # (3,) mV

    @property
    def start(self) -> float:
        return self.centre - REACH * self.rise

    @property
    def end(self) -> float:
        return self.centre + REACH * self.fall


@dataclass(frozen=True)
class Simulation:
    """A simulated recording.

    Attributes:
        microvolts: (12, time) integers in the order of `LEADS`; II = I + III holds exactly.
        marks: for each lead the waves (symbol, onset, peak, offset), in samples, in time order,
            without the first and the last beat (as in LUDB).
    """

    microvolts: np.ndarray
    marks: list[list[tuple[str, int, int, int]]]


# ---------------------------------------------------------------- the heart


def draw_codes(generator: Generator) -> list[str]:
    """Diagnostic statements of a simulated patient: usually one, sometimes two, rarely none."""
    u = generator.random()
    if u < 0.03:
        return []
    if u < 0.45:
        return ["NORM"]
    count, chances = 1 + int(generator.random() < 0.3), [0.27, 0.3, 0.25, 0.18]
    classes = generator.choice(["MI", "STTC", "CD", "HYP"], count, replace=False, p=chances)
    return [str(generator.choice(CLASS_OF.index[CLASS_OF.eq(name)])) for name in classes]


def draw_heart(codes: list[str], generator: Generator) -> dict[str, Bump]:
    """The bumps of a normally conducted beat of one patient.

    Every diagnosis has a severity from barely there to plain, and a third of the other patients
    carry a trace of one, so that the classes overlap.
    """
    heart = {name: Bump(*shape, np.array(xyz)) for name, (*shape, xyz) in MODEL["heart"].items()}
    for code in codes:
        if code != "NORM":
            _disease(heart, code, generator.uniform(0.15, 0.9))
    if generator.random() < 0.35 and not set(codes) - {"NORM"}:
        trace = generator.choice(["AMI", "IMI", "NST_", "CRBBB", "LAFB", "LVH"])
        _disease(heart, str(trace), generator.uniform(0.0, 0.45))
    turn = Rotation.from_rotvec(np.deg2rad(14) * generator.standard_normal(3)).as_matrix()
    factor = {w: generator.lognormal(0.0, sd) for w, sd in zip((1, 2, 0, 3), (0.25, 0.2, 0.2, 0.3))}
    width = generator.lognormal(0.0, 0.07, 4)
    for part in heart.values():
        part.vector = factor[part.wave] * (turn @ part.vector)
        part.rise *= width[part.wave]
        part.fall *= width[part.wave]
    heart["P"].centre *= generator.uniform(0.85, 1.15)
    heart["T"].centre *= generator.uniform(0.93, 1.07)
    return heart


def _disease(heart: dict[str, Bump], code: str, s: float) -> None:
    """Change `heart` in place; `s` is the severity 0..1."""
    for name, (added, lost, rise, fall, later) in MODEL["diseases"][code].items():
        bump = heart[name]
        bump.vector = (bump.vector + s * np.array(added)) * (1 - lost * s)
        bump.rise *= 1 + rise * s
        bump.fall *= 1 + fall * s
        bump.centre += later


def draw_ectopic(generator: Generator) -> dict[str, Bump]:
    """The bumps of a patient's ventricular ectopic beat: wide QRS, opposite T, no P."""
    turn = Rotation.from_quat(generator.standard_normal(4)).as_matrix()  # uniform
    main, side = turn @ np.array([1.3, 0.0, 0.0]), turn @ np.array([0.0, 0.5, 0.0])
    early, late = Bump(2, 0.010, 0.026, 0.026, main), Bump(2, 0.055, 0.022, 0.022, side)
    return {"R": early, "late": late, "T": Bump(3, 0.290, 0.044, 0.036, -0.4 * main)}


def draw_beats(rhythm: str, seconds: float, generator: Generator) -> tuple[np.ndarray, ...]:
    """When the beats come.

    Returns:
        R times in s, from before the start to after the end; the RR interval before each, in s;
        whether each is ectopic.
    """
    _, low, high, _ = RHYTHMS[rhythm]
    mean = 60 / generator.uniform(low, high)
    breath_hz, breath = generator.uniform(0.18, 0.32), generator.uniform(0.01, 0.06)
    phase = generator.uniform(0, 2 * np.pi)
    time, pause, beats = -2.5 + generator.uniform(0, mean), False, []
    while time < seconds + 1.0:
        if rhythm == "fibrillation":
            rr = max(0.40, mean * generator.gamma(20, 1 / 20))
        else:
            wave = 1 + breath * np.sin(2 * np.pi * breath_hz * time + phase)
            rr = mean * wave * (1 + 0.012 * generator.standard_normal())
        early = rhythm == "ectopic" and not pause and generator.random() < 0.18
        if early:
            rr *= generator.uniform(0.62, 0.72)
        elif pause:
            rr *= generator.uniform(1.25, 1.38)
        time += rr
        beats.append((time, rr, early))
        pause = early
    return tuple(np.array(column) for column in zip(*beats))


# ---------------------------------------------------------------- a recording


def simulate(
    codes: list[str],
    rhythm: str,
    seconds: float,
    sampling_rate: int,
    patient: Generator,
    recording: Generator,
) -> Simulation:
    """Simulate one 12-lead recording.

    Args:
        codes: diagnostic statements (keys of `CLASS_OF`).
        rhythm: a key of `RHYTHMS`.
        seconds: length.
        sampling_rate: Hz.
        patient: draws what belongs to the patient: the same seed gives the same heart.
        recording: draws what differs between recordings: beat times, variation, noise.
    """
    normal, wide = draw_heart(codes, patient), draw_ectopic(patient)
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    beats = [
        _one_beat(wide if early else normal, r_time, rr, rhythm, recording)
        for r_time, rr, early in zip(*draw_beats(rhythm, seconds, recording))
    ]
    dipole = np.zeros((3, len(time)))
    for bump in itertools.chain(*beats):
        _add(dipole, bump, sampling_rate)
    if rhythm == "fibrillation":  # an irregular oscillation of 5 to 7 Hz in place of the P waves
        drift = np.cumsum(recording.standard_normal(len(time))) * 0.6 * np.sqrt(time[1])
        wave = np.sin(2 * np.pi * recording.uniform(5, 7) * time + drift)
        direction = np.array([0.3, 0.5, -0.6]) + 0.2 * recording.standard_normal(3)
        dipole += recording.uniform(0.02, 0.07) * direction[:, None] * wave
    eight = np.rint((DOWER @ dipole + _noise(time, sampling_rate, recording)) * 1000)
    microvolts = np.rint(EXPAND @ eight).astype(np.int64)  # so that II = I + III exactly
    return Simulation(microvolts, _annotate(beats, seconds, sampling_rate))


def _one_beat(
    heart: dict[str, Bump], r_time: float, rr: float, rhythm: str, generator: Generator
) -> list[Bump]:
    """The bumps of one beat at absolute times, with beat-to-beat variation.

    The QT interval follows the square root of RR (Bazett). Breathing turns and scales the beat.
    """
    stretch = np.sqrt(np.clip(rr, 0.42, 1.3) / 0.85)
    breath = np.sin(2 * np.pi * 0.25 * r_time)
    turn = Rotation.from_rotvec(np.deg2rad([2.0, 1.0, 4.0]) * breath).as_matrix()
    beat = []
    for part in heart.values():
        if (part.wave == 1 and rhythm == "fibrillation") or not part.vector.any():
            continue
        longer = stretch if part.wave in (0, 3) else 1.0
        centre = part.centre * longer + generator.normal(0, (0.003, 0.003, 0.0, 0.004)[part.wave])
        width = longer * generator.lognormal(0, 0.02)
        vector = (1 + 0.04 * breath) * generator.lognormal(0, 0.04) * (turn @ part.vector)
        beat.append(Bump(part.wave, r_time + centre, part.rise * width, part.fall * width, vector))
    return beat


def _add(dipole: np.ndarray, bump: Bump, sampling_rate: int) -> None:
    """Add one bump to the dipole (3, time) in place."""
    sample = np.arange(dipole.shape[1])
    inside = (sample >= bump.start * sampling_rate) & (sample <= bump.end * sampling_rate)
    u = sample[inside] / sampling_rate - bump.centre
    u /= np.where(u < 0, bump.rise, bump.fall)
    floor = np.exp(-(REACH**2) / 2)
    dipole[:, inside] += bump.vector[:, None] * (np.exp(-(u**2) / 2) - floor) / (1 - floor)


def _noise(time: np.ndarray, sampling_rate: int, generator: Generator) -> np.ndarray:
    """(8, time) mV: baseline wander, mains and muscle noise, each at the recording's own level.

    Mains (50 Hz) is there above 100 Hz only: at 100 Hz a recorder's filter has taken it out.
    """
    hertz = generator.uniform(0.05, 0.4, (8, 3, 1))
    phase = generator.uniform(0, 2 * np.pi, (8, 3, 1))
    wander = np.sin(2 * np.pi * hertz * time + phase).sum(axis=1)
    noise = generator.uniform(0.005, 0.05) * wander
    noise += generator.uniform(0.004, 0.022) * generator.standard_normal((8, len(time)))
    level, start = generator.uniform(0, 0.012, (8, 1)), generator.uniform(0, 2 * np.pi)
    if sampling_rate > 100:
        noise += level * np.sin(2 * np.pi * 50 * time + start)
    return noise


def _annotate(beats: list[list[Bump]], seconds: float, sampling_rate: int) -> list[list[tuple]]:
    """Waves of each lead: those bumps that reach `VISIBLE` in it, from first start to last end."""
    whole = [beat for beat in beats if all(b.start >= 0 and b.end < seconds for b in beat)]
    marks = [[] for _ in LEADS]
    for beat in whole[1:-1]:
        for wave, symbol in enumerate("pNt", 1):
            parts = [bump for bump in beat if bump.wave == wave]
            heights = np.transpose([np.abs(EXPAND @ DOWER @ bump.vector) for bump in parts])
            for lead, of_lead in enumerate(heights):
                seen = [bump for bump, height in zip(parts, of_lead) if height >= VISIBLE]
                if seen:
                    peak = parts[of_lead.argmax()].centre
                    at = min(bump.start for bump in seen), peak, max(bump.end for bump in seen)
                    marks[lead].append((symbol, *(round(float(s) * sampling_rate) for s in at)))
    return [_no_overlap(lead) for lead in marks]


def _no_overlap(waves: list[tuple]) -> list[tuple]:
    """End a wave before the next begins (a T may run into the next P when the heart is fast)."""
    waves = sorted(waves, key=lambda w: w[1])
    ends = [w[1] - 1 for w in waves[1:]] + [np.inf]
    return [(s, on, peak, int(min(off, end))) for (s, on, peak, off), end in zip(waves, ends)]


# ---------------------------------------------------------------- folders


def write_folders(
    folder: Path, n_ptbxl: int, n_ludb: int, n_challenge: int, seed: int, jobs: int = 1
) -> Path:
    """Write `ptbxl`, `ludb` and `challenge` below `folder` in the published layouts.

    The same arguments give the same bytes. A complete folder written with the same arguments is
    left as it is; an older one is replaced once the new one is complete, so what is there is
    always whole.

    Args:
        folder: where to write.
        n_ptbxl: 100 Hz, 10 s records with superclasses and folds (no 500 Hz files).
        n_ludb: 500 Hz, 10 s records with exact wave marks in all 12 leads.
        n_challenge: 500 Hz records of 8 to 25 s. Of every ten, one is too short, one has flat
            leads and one lies in the source folder `ptb-xl`: they are there to be set aside.
        seed: of everything.
        jobs: processes; the bytes do not depend on it.

    Returns:
        `folder`.

    Raises:
        FileExistsError: the folder holds files that were not written here.
    """
    folder = Path(folder)
    counts = [n_ptbxl, n_ludb, n_challenge]
    wanted = {"version": VERSION, "records": counts, "seed": seed}
    if read_json(folder / MANIFEST) == wanted | {"files": _sizes(folder)}:
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise FileExistsError(f"{folder.name!r} holds other files: choose another folder")
    with replacing_folder(folder) as part:
        for write, count in zip((_write_ptbxl, _write_ludb, _write_challenge), counts):
            if count:
                write(part, count, seed, jobs)
        write_json(part / MANIFEST, wanted | {"files": _sizes(part)})
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def _draw_rhythm(generator: Generator) -> str:
    return str(generator.choice(list(RHYTHMS), p=[share for share, *_ in RHYTHMS.values()]))


def _write_ptbxl(root: Path, n: int, seed: int, jobs: int) -> None:
    """PTB-XL layout: every eighth patient has two records; folds are stratified by patient."""
    codes, counts = [], []  # statements and number of records of each patient
    while sum(counts) < n:
        chance, room = default_rng([seed, 0, len(codes)]), n - sum(counts)
        counts.append(2 if chance.random() < 0.125 and room > 1 else 1)
        codes.append(draw_codes(chance))
    folds = _stratified_folds(codes, default_rng([seed, 1]))
    patients = np.repeat(range(len(codes)), counts)
    items = [(i, k, codes[k], folds[k]) for i, k in enumerate(patients.tolist(), start=1)]
    rows = list(in_processes(partial(_write_ptbxl_record, root, seed), items, jobs, "PTB-XL"))
    columns = ["ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr"]
    table = pd.DataFrame(rows, columns=columns).reindex(columns=MODEL["ptbxl_columns"].split())
    table["device"] = "simulated"
    table[["second_opinion", "initial_autogenerated_report", "validated_by_human"]] = False
    table.to_csv(root / "ptbxl" / "ptbxl_database.csv", index=False, lineterminator="\n")
    shutil.copyfile(STATEMENTS, root / "ptbxl" / STATEMENTS.name)


def _write_ptbxl_record(root: Path, seed: int, item: tuple) -> tuple:
    """Write one record; returns its line of the table."""
    ecg_id, patient, codes, fold = item
    facts, recording = default_rng([seed, 2, patient]), default_rng([seed, 4, ecg_id])
    rhythm, heart = _draw_rhythm(recording), default_rng([seed, 3, patient])
    made = simulate(codes, rhythm, 10.0, 100, heart, recording)
    name = f"records100/{ecg_id // 1000 * 1000:05d}/{ecg_id:05d}_lr"
    _write_record(root / "ptbxl" / name, made.microvolts, "ptbxl")
    age, sex = np.clip(facts.normal(60, 15), 18, 89).round(), facts.integers(2)
    stated = dict.fromkeys(codes, 100.0) | dict.fromkeys(RHYTHMS[rhythm][3], 0.0)
    return ecg_id, patient + 1.0, age, sex, str(stated), fold, name


def _stratified_folds(codes: list[list[str]], generator: Generator) -> np.ndarray:
    """Fold 1..10 of each patient: patients sorted by superclasses are dealt out in turn."""
    groups = ["+".join(sorted({CLASS_OF[c] for c in some})) for some in codes]
    order = sorted(generator.permutation(len(codes)), key=lambda i: groups[i])
    return np.argsort(order) % 10 + 1  # each patient's place in that order


def _patient(seed: int, streams: tuple, number: int, seconds: float) -> tuple[str, Simulation]:
    """Rhythm and 500 Hz recording of another patient."""
    patient, recording = (default_rng([seed, stream, number]) for stream in streams)
    codes, rhythm = draw_codes(patient), _draw_rhythm(recording)
    return rhythm, simulate(codes, rhythm, seconds, 500, patient, recording)


def _write_ludb(root: Path, n: int, seed: int, jobs: int) -> None:
    """LUDB layout: raw microvolts under a header that scales each lead by its peak-to-peak."""
    folder, numbers = root / "ludb", range(1, n + 1)
    rhythms = list(in_processes(partial(_write_ludb_record, folder, seed), numbers, jobs, "LUDB"))
    (folder / "RECORDS").write_text("".join(f"data/{k}\n" for k in range(1, n + 1)))
    table = pd.DataFrame({"ID": range(1, n + 1), "Sex": "", "Age": "", "Rhythms": rhythms})
    table.to_csv(folder / "ludb.csv", index=False, lineterminator="\n")


def _write_ludb_record(folder: Path, seed: int, number: int) -> str:
    """Write one record with its marks; returns its rhythm."""
    rhythm, made = _patient(seed, (5, 6), number, 10.0)
    path = folder / "data" / str(number)
    _write_record(path, made.microvolts, "ludb", f"simulated, rhythm: {rhythm}")
    for lead, waves in zip(LEADS, made.marks):
        _write_marks(path.with_suffix(f".{lead.lower()}"), waves)
    return rhythm


def _write_marks(path: Path, waves: list[tuple]) -> None:
    """Write `( symbol )` triples as a WFDB annotation file.

    wfdb writes extensions of letters only, so the file gets its name (`1.v1`) afterwards.
    """
    samples = np.array([at for _, *times in waves for at in times], int)
    symbols = [mark for symbol, *_ in waves for mark in ("(", symbol, ")")]
    wfdb.wrann(path.stem, "marks", samples, symbols, write_dir=str(path.parent))
    os.replace(path.with_suffix(".marks"), path)


def _write_challenge(root: Path, n: int, seed: int, jobs: int) -> None:
    """Challenge 2021 layout: `training/<source>/g1/<record>.hea|.mat`, lengths vary."""
    write = partial(_write_challenge_record, root / "challenge" / "training", seed)
    list(in_processes(write, range(n), jobs, "Challenge"))


def _write_challenge_record(folder: Path, seed: int, number: int) -> None:
    place, lengths = number % 10, (10, 8, 12, 25, 10, 10, 15, 20, 10, 11)
    source = "ptb-xl" if place == 5 else ("georgia", "cpsc_2018")[place % 2]
    _, made = _patient(seed, (7, 8), number, lengths[place])
    if place == 4:  # a fault seen in the real sample: some chest leads are flat
        made.microvolts[[7, 9, 11]] = 0
    path = folder / source / "g1" / f"S{number + 1:04d}"
    _write_record(path, made.microvolts, "challenge", "Dx: simulated")


def _write_record(path: Path, microvolts: np.ndarray, layout: str, *comments: str) -> None:
    """Write a WFDB header and its signals: `.dat`, or the Challenge's `.mat` (MATLAB 4, 24 bytes
    before the samples).

    Args:
        path: without suffix; its folder is made.
        microvolts: (12, time) integers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    spelt = {"ptbxl": str.upper, "ludb": str.lower, "challenge": str}[layout]
    hertz, names = 100 if layout == "ptbxl" else 500, [spelt(lead) for lead in LEADS]
    gains = np.ptp(microvolts, axis=1) if layout == "ludb" else np.full(12, 1000)
    form = {"fmt": ["16"] * 12, "baseline": [0] * 12, "adc_gain": gains.astype(float).tolist()}
    form |= {"comments": list(comments), "write_dir": str(path.parent)}
    wfdb.wrsamp(path.name, hertz, ["mV"] * 12, names, d_signal=microvolts.T, **form)
    if layout == "challenge":
        scipy.io.savemat(path.with_suffix(".mat"), {"val": microvolts.astype("<i2")}, format="4")
        path.with_suffix(".dat").unlink()
        header = path.with_suffix(".hea")
        header.write_text(header.read_text().replace(".dat 16", ".mat 16+24"))
