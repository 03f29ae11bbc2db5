"""A moving-dipole heart that writes small record folders in the published layouts.

It exists so that the whole project runs without a download: the folders go through the very same
readers as PTB-XL, LUDB and the Challenge 2021. The morphologies are caricatures drawn from
textbook descriptions, with made-up frequencies and severities. Nothing here is clinical, and a
number measured on it says only that the code works.

Model. The heart is one dipole p(t) in the body axes X left, Y down, Z back (mV). Every beat adds
bumps, each with a place in time, a width and a 3-D direction (P, Q, R, S, ST, T, and late QRS
parts); the bump is a Gaussian that is cut off at `REACH` standard deviations, so that a wave has
exact borders. Leads are `Dower matrix x p(t)` (Dower 1980; `beatssl.methods.views.DOWER`), the other limb
leads follow from Einthoven and Goldberger. Noise is added to the eight independent leads before.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
import wfdb
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from beatssl.data.records import LEADS
from beatssl.data.vcg import DOWER, EXPAND

VERSION = 1  # raise it when the written bytes change: older folders are written again
RHYTHMS = {  # and how often each is drawn
    "sinus": 0.6,
    "bradycardia": 0.1,
    "tachycardia": 0.1,
    "fibrillation": 0.1,
    "ectopic": 0.1,
}
REACH = 2.5  # a bump ends this many standard deviations from its centre
VISIBLE = 0.02  # mV: a bump that is smaller in a lead is not annotated there
MANIFEST = "synthetic.json"

# Statement of each superclass variant, and of each rhythm: SCP-ECG code, description.
STATEMENTS = {
    "NORM": ("NORM", "normal ECG"),
    "AMI": ("MI", "anterior myocardial infarction"),
    "IMI": ("MI", "inferior myocardial infarction"),
    "NST_": ("STTC", "non-specific ST changes"),
    "ISC_": ("STTC", "non-specific ischemic"),
    "CRBBB": ("CD", "complete right bundle branch block"),
    "CLBBB": ("CD", "complete left bundle branch block"),
    "LAFB": ("CD", "left anterior fascicular block"),
    "LVH": ("HYP", "left ventricular hypertrophy"),
    "PVC": ("", "ventricular premature complex"),
    "SR": ("", "sinus rhythm"),
    "SBRAD": ("", "sinus bradycardia"),
    "STACH": ("", "sinus tachycardia"),
    "AFIB": ("", "atrial fibrillation"),
}
RHYTHM_CODES = {
    "sinus": ("SR",),
    "bradycardia": ("SBRAD",),
    "tachycardia": ("STACH",),
    "fibrillation": ("AFIB",),
    "ectopic": ("SR", "PVC"),
}


@dataclass
class Bump:
    """One part of a beat: `wave` 0 (not annotated), 1 P, 2 QRS or 3 T."""

    wave: int
    centre: float  # s from the R peak
    rise: float  # s, standard deviation before the centre
    fall: float  # s, standard deviation after it
    vector: np.ndarray  # (3,) mV


@dataclass(frozen=True)
class Simulation:
    """A simulated recording.

    Attributes:
        microvolts: (12, time) integers in the order of `LEADS`; II = I + III holds exactly.
        marks: for each lead the waves (symbol, onset, peak, offset), in samples, in time order,
            without the first and the last beat (as in LUDB).
        r_peaks: (beats,) s, all beats inside the recording.
    """

    microvolts: np.ndarray
    marks: tuple[list[tuple[str, int, int, int]], ...]
    r_peaks: np.ndarray


# ---------------------------------------------------------------- the heart


def draw_codes(generator: np.random.Generator) -> list[str]:
    """Diagnostic statements of a simulated patient: usually one, sometimes two, rarely none."""
    u = generator.random()
    if u < 0.03:
        return []
    if u < 0.45:
        return ["NORM"]
    classes = generator.choice(
        ["MI", "STTC", "CD", "HYP"],
        size=1 + int(generator.random() < 0.3),
        replace=False,
        p=[0.27, 0.3, 0.25, 0.18],
    )
    return [str(generator.choice([k for k, v in STATEMENTS.items() if v[0] == c])) for c in classes]


def draw_heart(codes: list[str], generator: np.random.Generator) -> dict[str, Bump]:
    """The bumps of a normally conducted beat of one patient.

    Every diagnosis has a severity from barely there to plain, and a third of the other patients
    carry a trace of one, so that the classes overlap.
    """

    def bump(wave: int, centre: float, rise: float, vector: tuple, fall: float = 0.0) -> Bump:
        return Bump(wave, centre, rise, fall or rise, np.array(vector, float))

    heart = {
        "P": bump(1, -0.165, 0.020, (0.07, 0.10, -0.02)),
        "Q": bump(2, -0.028, 0.008, (-0.10, 0.00, -0.22)),
        "R": bump(2, 0.000, 0.012, (1.00, 0.75, 0.30)),
        "S": bump(2, 0.028, 0.010, (-0.15, -0.15, 0.50)),
        "late": bump(2, 0.055, 0.016, (0.0, 0.0, 0.0)),
        "ST": bump(0, 0.120, 0.040, (0.0, 0.0, 0.0)),
        "T": bump(3, 0.265, 0.044, (0.28, 0.22, -0.12), fall=0.032),
    }
    for code in codes:
        if code != "NORM":
            _disease(heart, code, generator.uniform(0.15, 0.9))
    if generator.random() < 0.35 and not set(codes) - {"NORM"}:
        trace = generator.choice(["AMI", "IMI", "NST_", "CRBBB", "LAFB", "LVH"])
        _disease(heart, str(trace), generator.uniform(0.0, 0.45))
    turn = Rotation.from_rotvec(np.deg2rad(14) * generator.standard_normal(3)).as_matrix()
    size = {1: 0.25, 2: 0.2, 0: 0.2, 3: 0.3}
    factor = {w: generator.lognormal(0.0, sd) for w, sd in size.items()}
    width = {w: generator.lognormal(0.0, 0.07) for w in (0, 1, 2, 3)}
    for part in heart.values():
        part.vector = factor[part.wave] * (turn @ part.vector)
        part.rise *= width[part.wave]
        part.fall *= width[part.wave]
    heart["P"].centre *= generator.uniform(0.85, 1.15)
    heart["T"].centre *= generator.uniform(0.93, 1.07)
    return heart


def _disease(heart: dict[str, Bump], code: str, s: float) -> None:
    """Change `heart` in place; `s` is the severity 0..1."""
    q, r, late, st, t = (heart[k] for k in ("Q", "R", "late", "ST", "T"))
    if code == "AMI":  # loss of anterior forces: no r in V1-V3, ST up and T down there
        q.vector *= 1 - s
        r.vector += s * np.array([-0.15, 0.0, 0.55])
        st.vector += s * np.array([0.04, 0.0, -0.13])
        t.vector += s * np.array([-0.2, 0.0, 0.3])
    elif code == "IMI":  # broad Q and T inversion in II, III, aVF
        q.vector += s * np.array([0.1, -0.6, 0.1])
        q.rise, q.fall, q.centre = q.rise * (1 + 0.4 * s), q.fall * (1 + 0.2 * s), q.centre - 0.004
        st.vector += s * np.array([0.0, 0.1, 0.0])
        t.vector += s * np.array([0.0, -0.42, 0.0])
    elif code == "NST_":  # flat T
        t.vector *= 1 - 1.2 * s
        st.vector += s * np.array([-0.05, -0.04, 0.02])
    elif code == "ISC_":  # ST down, T inverted
        t.vector *= 1 - 1.7 * s
        st.vector += s * np.array([-0.10, -0.08, 0.05])
    elif code == "CRBBB":  # late forces to the right and front: R' in V1, broad S in I, V6
        late.vector += s * np.array([-0.5, -0.05, -0.65])
        t.vector += s * np.array([0.05, 0.0, 0.15])
    elif code == "CLBBB":  # no septal q, broad and notched R to the left and back, T opposite
        q.vector *= 1 - s
        r.rise, r.fall = r.rise * (1 + 0.6 * s), r.fall * (1 + 0.6 * s)
        r.vector += s * np.array([0.0, -0.2, 0.3])
        late.vector += s * np.array([0.6, 0.15, 0.4])
        t.vector += s * np.array([-0.5, -0.2, -0.25])
    elif code == "LAFB":  # forces swing up and to the left
        r.vector += s * np.array([0.1, -0.35, 0.0])
        heart["S"].vector += s * np.array([0.2, -0.75, 0.0])
    elif code == "LVH":  # tall forces to the left and back, strain
        r.vector += s * np.array([0.6, 0.1, 0.6])
        r.rise, r.fall = r.rise * (1 + 0.15 * s), r.fall * (1 + 0.15 * s)
        st.vector += s * np.array([-0.07, -0.02, 0.02])
        t.vector += s * np.array([-0.38, -0.1, 0.0])


def draw_ectopic(generator: np.random.Generator) -> dict[str, Bump]:
    """The bumps of a patient's ventricular ectopic beat: wide QRS, opposite T, no P."""
    turn = Rotation.from_quat(generator.standard_normal(4)).as_matrix()  # uniform
    main = turn @ np.array([1.3, 0.0, 0.0])
    side = turn @ np.array([0.0, 0.5, 0.0])
    return {
        "R": Bump(2, 0.010, 0.026, 0.026, main),
        "late": Bump(2, 0.055, 0.022, 0.022, side),
        "T": Bump(3, 0.290, 0.044, 0.036, -0.4 * main),
    }


def draw_beats(
    rhythm: str, seconds: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When the beats come.

    Returns:
        R times in s, from before the start to after the end; the RR interval before each, in s;
        whether each is ectopic.
    """
    low, high = {
        "sinus": (58, 95),
        "ectopic": (58, 90),
        "bradycardia": (40, 54),
        "tachycardia": (104, 125),
        "fibrillation": (65, 115),
    }[rhythm]
    mean = 60 / generator.uniform(low, high)
    breath_hz, breath = generator.uniform(0.18, 0.32), generator.uniform(0.01, 0.06)
    phase = generator.uniform(0, 2 * np.pi)
    time, pause = -2.5 + generator.uniform(0, mean), False
    times, intervals, ectopic = [], [], []
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
        times.append(time)
        intervals.append(rr)
        ectopic.append(early)
        pause = early
    return np.array(times), np.array(intervals), np.array(ectopic)


# ---------------------------------------------------------------- a recording


def simulate(
    codes: list[str],
    rhythm: str,
    seconds: float,
    sampling_rate: int,
    patient: np.random.Generator,
    recording: np.random.Generator,
) -> Simulation:
    """Simulate one 12-lead recording.

    Args:
        codes: diagnostic statements (keys of `STATEMENTS`).
        rhythm: a key of `RHYTHMS`.
        seconds: length.
        sampling_rate: Hz.
        patient: draws what belongs to the patient: the same seed gives the same heart.
        recording: draws what differs between recordings: beat times, variation, noise.
    """
    normal, wide = draw_heart(codes, patient), draw_ectopic(patient)
    r_times, intervals, ectopic = draw_beats(rhythm, seconds, recording)
    length = round(seconds * sampling_rate)
    time = np.arange(length) / sampling_rate
    dipole = np.zeros((3, length))
    beats = []
    for r_time, rr, early in zip(r_times, intervals, ectopic):
        beat = _one_beat(wide if early else normal, r_time, rr, rhythm, recording)
        for bump in beat:
            _add(dipole, bump, sampling_rate)
        beats.append(beat)
    if rhythm == "fibrillation":
        dipole += _fibrillation_waves(time, recording)
    eight = DOWER @ dipole + _noise(time, sampling_rate, recording)
    return Simulation(
        microvolts=_twelve_integers(eight * 1000),
        marks=_annotate(beats, r_times, length, sampling_rate),
        r_peaks=r_times[(r_times >= 0) & (r_times < seconds)],
    )


def _one_beat(
    heart: dict[str, Bump], r_time: float, rr: float, rhythm: str, generator: np.random.Generator
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
        late = part.wave in (0, 3)
        centre = part.centre * stretch if late else part.centre
        centre += generator.normal(0, {1: 0.003, 2: 0.0, 0: 0.003, 3: 0.004}[part.wave])
        width = (stretch if late else 1.0) * generator.lognormal(0, 0.02)
        size = (1 + 0.04 * breath) * generator.lognormal(0, 0.04)
        beat.append(
            Bump(
                part.wave,
                r_time + centre,
                part.rise * width,
                part.fall * width,
                size * (turn @ part.vector),
            )
        )
    return beat


def _add(dipole: np.ndarray, bump: Bump, sampling_rate: int) -> None:
    """Add one bump to the dipole (3, time) in place."""
    start = max(0, int(np.ceil((bump.centre - REACH * bump.rise) * sampling_rate)))
    stop = int(np.floor((bump.centre + REACH * bump.fall) * sampling_rate)) + 1
    if stop <= start or start >= dipole.shape[1]:
        return
    stop = min(stop, dipole.shape[1])
    u = np.arange(start, stop) / sampling_rate - bump.centre
    u /= np.where(u < 0, bump.rise, bump.fall)
    floor = np.exp(-(REACH**2) / 2)
    shape = (np.exp(-(u**2) / 2) - floor) / (1 - floor)
    dipole[:, start:stop] += bump.vector[:, None] * shape


def _fibrillation_waves(time: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(3, time) mV: irregular oscillation of 5 to 7 Hz in place of the P waves."""
    drift = np.cumsum(generator.standard_normal(len(time))) * 0.6 * np.sqrt(time[1])
    wave = np.sin(2 * np.pi * generator.uniform(5, 7) * time + drift)
    direction = np.array([0.3, 0.5, -0.6]) + 0.2 * generator.standard_normal(3)
    return generator.uniform(0.02, 0.07) * direction[:, None] * wave


def _noise(time: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
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


def _twelve_integers(eight: np.ndarray) -> np.ndarray:
    """Whole microvolts of 12 leads from the eight independent ones; II = I + III exactly."""
    twelve = np.rint(EXPAND @ np.rint(eight)).astype(np.int64)
    return np.clip(twelve, -32767, 32767)  # far outside what the model makes


def _annotate(
    beats: list[list[Bump]], r_times: np.ndarray, length: int, sampling_rate: int
) -> tuple[list[tuple[str, int, int, int]], ...]:
    """Waves of each lead: those bumps that reach `VISIBLE` in it, from first start to last end."""
    inside = [
        i
        for i, beat in enumerate(beats)
        if min(b.centre - REACH * b.rise for b in beat) >= 0
        and max(b.centre + REACH * b.fall for b in beat) < length / sampling_rate
    ][1:-1]
    projection = EXPAND @ DOWER  # (12, 3)
    marks = tuple([] for _ in LEADS)
    for i in inside:
        for wave, symbol in ((1, "p"), (2, "N"), (3, "t")):
            parts = [b for b in beats[i] if b.wave == wave]
            if not parts:
                continue
            height = np.abs([projection @ b.vector for b in parts])  # (parts, 12)
            seen = height >= VISIBLE
            starts = np.array([[b.centre - REACH * b.rise] for b in parts])
            ends = np.array([[b.centre + REACH * b.fall] for b in parts])
            centres = np.array([b.centre for b in parts])
            borders = (
                np.where(seen, starts, np.inf).min(axis=0),
                centres[height.argmax(axis=0)],
                np.where(seen, ends, -np.inf).max(axis=0),
            )
            for lead in np.flatnonzero(seen.any(axis=0)):
                at = (round(float(edge[lead]) * sampling_rate) for edge in borders)
                marks[lead].append((symbol, *at))
    return tuple(_no_overlap(lead) for lead in marks)


def _no_overlap(waves: list[tuple[str, int, int, int]]) -> list[tuple[str, int, int, int]]:
    """End a wave before the next begins (a T may run into the next P when the heart is fast)."""
    waves = sorted(waves, key=lambda w: w[1])
    ends = [w[1] - 1 for w in waves[1:]] + [np.inf]
    return [(s, on, peak, int(min(off, end))) for (s, on, peak, off), end in zip(waves, ends)]


# ---------------------------------------------------------------- folders


def write_folders(folder: Path, n_ptbxl: int, n_ludb: int, n_challenge: int, seed: int) -> Path:
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

    Returns:
        `folder`.

    Raises:
        FileExistsError: the folder holds files that were not written here.
    """
    folder = Path(folder)
    wanted = {"version": VERSION, "records": [n_ptbxl, n_ludb, n_challenge], "seed": seed}
    if _complete(folder, wanted):
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise FileExistsError(
            f"{folder.name!r} holds other files: choose another folder for simulated records"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        total = n_ptbxl + n_ludb + n_challenge
        with tqdm(total=total, desc="simulated records", unit="rec", mininterval=1.0) as bar:
            _write_ptbxl(part / "ptbxl", n_ptbxl, seed, bar)
            _write_ludb(part / "ludb", n_ludb, seed, bar)
            _write_challenge(part / "challenge", n_challenge, seed, bar)
        wanted |= {"files": _sizes(part)}
        (part / MANIFEST).write_text(json.dumps(wanted, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def _complete(folder: Path, wanted: dict) -> bool:
    try:
        there = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    files = there.pop("files", None)
    return there == wanted and files == _sizes(folder)


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def _draw_rhythm(generator: np.random.Generator) -> str:
    return str(generator.choice(list(RHYTHMS), p=list(RHYTHMS.values())))


def _write_ptbxl(folder: Path, n: int, seed: int, bar: tqdm) -> None:
    """PTB-XL layout: every eighth patient has two records; folds are stratified by patient."""
    if not n:
        return
    folder.mkdir()
    patients = []  # codes and number of records of each
    while sum(p["records"] for p in patients) < n:
        chance = _generator(seed, 0, len(patients))
        room = n - sum(p["records"] for p in patients)
        count = 2 if chance.random() < 0.125 and room > 1 else 1
        patients.append({"codes": draw_codes(chance), "records": count})
    folds = _stratified_folds([p["codes"] for p in patients], _generator(seed, 1))
    rows = []
    for number, (patient, fold) in enumerate(zip(patients, folds)):
        facts = _generator(seed, 2, number)
        age, sex = round(float(np.clip(facts.normal(60, 15), 18, 89))), int(facts.integers(2))
        for visit in range(patient["records"]):
            ecg_id = len(rows) + 1
            recording = _generator(seed, 4, ecg_id)
            rhythm = _draw_rhythm(recording)
            heart = _generator(seed, 3, number)
            made = simulate(patient["codes"], rhythm, 10.0, 100, heart, recording)
            name = f"records100/{ecg_id // 1000 * 1000:05d}/{ecg_id:05d}_lr"
            _write_samples(folder / name, made.microvolts, 100, _upper(LEADS))
            codes = dict.fromkeys(patient["codes"], 100.0)
            codes |= dict.fromkeys(RHYTHM_CODES[rhythm], 0.0)
            rows.append(_ptbxl_row(ecg_id, number + 1, age, sex, codes, fold, name))
            bar.update()
    pd.DataFrame(rows).to_csv(folder / "ptbxl_database.csv", index=False, lineterminator="\n")
    _write_statements(folder / "scp_statements.csv")


def _upper(leads: tuple[str, ...]) -> list[str]:
    """PTB-XL spells the augmented leads AVR, AVL, AVF."""
    return [lead.upper() for lead in leads]


def _stratified_folds(codes: list[list[str]], generator: np.random.Generator) -> list[int]:
    """Fold 1..10 of each patient: patients sorted by superclasses are dealt out in turn."""
    groups = ["+".join(sorted({STATEMENTS[c][0] for c in some})) for some in codes]
    shuffled = generator.permutation(len(codes))
    order = sorted(shuffled, key=lambda i: groups[i])
    folds = [0] * len(codes)
    for place, i in enumerate(order):
        folds[i] = place % 10 + 1
    return folds


def _ptbxl_row(
    ecg_id: int, patient_id: int, age: int, sex: int, codes: dict, fold: int, name: str
) -> dict:
    """A row of `ptbxl_database.csv` with the columns of the official file."""
    return {
        "ecg_id": ecg_id,
        "patient_id": float(patient_id),
        "age": float(age),
        "sex": sex,
        **dict.fromkeys(("height", "weight", "nurse", "site"), ""),
        "device": "simulated",
        **dict.fromkeys(("recording_date", "report"), ""),
        "scp_codes": str(codes),
        **dict.fromkeys(("heart_axis", "infarction_stadium1", "infarction_stadium2"), ""),
        "validated_by": "",
        "second_opinion": False,
        "initial_autogenerated_report": False,
        "validated_by_human": False,
        **dict.fromkeys(("baseline_drift", "static_noise", "burst_noise"), ""),
        **dict.fromkeys(("electrodes_problems", "extra_beats", "pacemaker"), ""),
        "strat_fold": fold,
        "filename_lr": name,
        "filename_hr": "",
    }


def _write_statements(path: Path) -> None:
    """`scp_statements.csv`: the codes used here, with the official file's column names."""
    forms = ("NST_", "PVC")
    rows = []
    for code, (superclass, description) in STATEMENTS.items():
        rows.append(
            {
                "": code,
                "description": description,
                "diagnostic": 1.0 if superclass else "",
                "form": 1.0 if code in forms else "",
                "rhythm": 1.0 if not superclass and code not in forms else "",
                "diagnostic_class": superclass,
                "diagnostic_subclass": code if superclass else "",
                "Statement Category": "",
                "SCP-ECG Statement Description": description,
                **dict.fromkeys(("AHA code", "aECG REFID", "CDISC Code", "DICOM Code"), ""),
            }
        )
    pd.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")


def _write_ludb(folder: Path, n: int, seed: int, bar: tqdm) -> None:
    """LUDB layout: raw microvolts under a header that scales each lead by its peak-to-peak."""
    if not n:
        return
    folder.mkdir()
    rows = []
    for number in range(1, n + 1):
        patient, recording = _generator(seed, 5, number), _generator(seed, 6, number)
        codes, rhythm = draw_codes(patient), _draw_rhythm(recording)
        made = simulate(codes, rhythm, 10.0, 500, patient, recording)
        path = folder / "data" / str(number)
        _write_samples(
            path,
            made.microvolts,
            500,
            [lead.lower() for lead in LEADS],
            gain=np.ptp(made.microvolts, axis=1).astype(float).tolist(),
            comments=[f"simulated, rhythm: {rhythm}"],
        )
        for lead, waves in zip(LEADS, made.marks):
            _write_marks(path, lead.lower(), waves)
        rows.append({"ID": number, "Sex": "", "Age": "", "Rhythms": rhythm})
        bar.update()
    (folder / "RECORDS").write_text("".join(f"data/{k}\n" for k in range(1, n + 1)))
    pd.DataFrame(rows).to_csv(folder / "ludb.csv", index=False, lineterminator="\n")


def _write_marks(path: Path, extension: str, waves: list[tuple[str, int, int, int]]) -> None:
    """Write `( symbol )` triples as a WFDB annotation file.

    wfdb writes extensions of letters only, so the file gets its name (`1.v1`) afterwards.
    """
    samples = [at for _, onset, peak, offset in waves for at in (onset, peak, offset)]
    symbols = [s for symbol, *_ in waves for s in ("(", symbol, ")")]
    wfdb.wrann(path.name, "marks", np.array(samples, int), symbols, write_dir=str(path.parent))
    os.replace(path.with_name(f"{path.name}.marks"), path.with_name(f"{path.name}.{extension}"))


def _write_challenge(folder: Path, n: int, seed: int, bar: tqdm) -> None:
    """Challenge 2021 layout: `training/<source>/g1/<record>.hea|.mat`, lengths vary."""
    lengths = (10, 8, 12, 25, 10, 10, 15, 20, 10, 11)
    for number in range(n):
        place = number % 10
        source = {5: "ptb-xl"}.get(place, "cpsc_2018" if place % 2 else "georgia")
        patient, recording = _generator(seed, 7, number), _generator(seed, 8, number)
        codes, rhythm = draw_codes(patient), _draw_rhythm(recording)
        made = simulate(codes, rhythm, lengths[place], 500, patient, recording)
        microvolts = made.microvolts
        if place == 4:  # a fault seen in the real sample: some chest leads are flat
            microvolts[[7, 9, 11]] = 0
        path = folder / "training" / source / "g1" / f"S{number + 1:04d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_mat(path, microvolts, 500)
        bar.update()


def _write_samples(
    path: Path,
    microvolts: np.ndarray,
    sampling_rate: int,
    names: list[str],
    gain: list[float] | None = None,
    comments: list[str] | None = None,
) -> None:
    """Write a `.hea`, `.dat` pair; `microvolts` is (12, time), `gain` in units per mV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    leads = len(microvolts)
    wfdb.wrsamp(
        path.name,
        fs=sampling_rate,
        units=["mV"] * leads,
        sig_name=names,
        d_signal=np.ascontiguousarray(microvolts.T),
        fmt=["16"] * leads,
        adc_gain=gain or [1000.0] * leads,
        baseline=[0] * leads,
        comments=comments or [],
        write_dir=str(path.parent),
    )


def _write_mat(path: Path, microvolts: np.ndarray, sampling_rate: int) -> None:
    """Write the Challenge's `.mat` (MATLAB 4, 24 bytes before the samples) and its header."""
    leads, length = microvolts.shape
    scipy.io.savemat(path.with_suffix(".mat"), {"val": microvolts.astype(np.int16)}, format="4")
    header = wfdb.Record(
        record_name=path.name,
        n_sig=leads,
        fs=sampling_rate,
        sig_len=length,
        file_name=[f"{path.name}.mat"] * leads,
        fmt=["16"] * leads,
        byte_offset=[24] * leads,
        adc_gain=[1000.0] * leads,
        baseline=[0] * leads,
        units=["mV"] * leads,
        adc_res=[16] * leads,
        adc_zero=[0] * leads,
        init_value=microvolts[:, 0].tolist(),
        checksum=(microvolts.sum(axis=1) % 65536).tolist(),
        block_size=[0] * leads,
        sig_name=list(LEADS),
        comments=["Dx: simulated"],
    )
    header.wrheader(write_dir=str(path.parent))
