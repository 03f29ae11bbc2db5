"""One's own ECG: every kind of file gives the same leads in millivolts, bad ones a clear error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import edfio
import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage, generate_uid

from beatssl.data.records import LEADS, RecordError
from beatssl.ecg import ECG, lead_name, read_ecg

RATE, STEP = 250, 0.005  # Hz, mV a digit


def signal(leads: int = 12, seconds: float = 4.0) -> np.ndarray:
    """(leads, samples) mV, in whole digits, so that every file holds it exactly."""
    rng = np.random.default_rng(0)
    return rng.integers(-400, 400, (leads, int(seconds * RATE))) * STEP


def write_wfdb(path: Path, x: np.ndarray, names: list[str], units: str = "mV") -> Path:
    scale = {"mV": 1.0, "uV": 1e3}.get(units, 1.0)
    n = len(x)
    wfdb.wrsamp(
        path.stem, RATE, [units] * n, names, p_signal=(x * scale).T, fmt=["16"] * n,
        adc_gain=[1 / STEP / scale] * n, baseline=[0] * n, write_dir=str(path.parent),
    )  # fmt: skip
    return path.with_suffix(".hea")


def write_edf(path: Path, x: np.ndarray, names: list[str], units: str = "uV") -> Path:
    """By the specification of EDF (Kemp et al. 1992), in records of one second."""
    n, records = len(x), x.shape[1] // RATE

    def fields(width: int, *values: object) -> bytes:
        return b"".join(str(value).ljust(width)[:width].encode("ascii") for value in values)

    limit = 32767 * STEP * 1e3
    head = fields(8, "0") + fields(80, "patient", "recording") + fields(8, "01.01.20", "00.00.00")
    head += fields(8, 256 * (n + 1)) + fields(44, "") + fields(8, records, 1) + fields(4, n)
    head += fields(16, *names) + fields(80, *[""] * n) + fields(8, *[units] * n)
    head += fields(8, *[f"-{limit:.0f}"] * n) + fields(8, *[f"{limit:.0f}"] * n)
    head += fields(8, *[-32767] * n) + fields(8, *[32767] * n)
    head += fields(80, *[""] * n) + fields(8, *[RATE] * n) + fields(32, *[""] * n)
    digits = np.rint(x / STEP).astype("<i2").reshape(n, records, RATE)
    path.write_bytes(head + digits.transpose(1, 0, 2).tobytes())
    return path


def write_dicom(path: Path, x: np.ndarray, names: list[str], units: str = "uV") -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = TwelveLeadECGWaveformStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta, dataset.Modality = meta, "ECG"
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    group = Dataset()
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = len(x), x.shape[1]
    group.SamplingFrequency, group.WaveformBitsAllocated = RATE, 16
    group.WaveformSampleInterpretation, group.ChannelDefinitionSequence = "SS", []
    for name in names:
        channel, source, unit = Dataset(), Dataset(), Dataset()
        source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = "2:1", "MDC", name
        unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = units, "UCUM", units
        channel.ChannelSourceSequence = [source]
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = STEP * 1e3, 1
        channel.ChannelBaseline, channel.WaveformBitsStored = 0, 16
        channel.ChannelSensitivityUnitsSequence = [unit]
        group.ChannelDefinitionSequence.append(channel)
    group.WaveformData = np.rint(x / STEP).astype("<i2").T.tobytes()
    dataset.WaveformSequence = [group]
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_csv(path: Path, x: np.ndarray, names: list[str], **more: object) -> Path:
    table = pd.DataFrame(x.T, columns=names)
    table.insert(0, "time [s]", np.arange(x.shape[1]) / RATE)
    table.to_csv(path, index=False, **more)
    return path


WRITERS = {"hea": write_wfdb, "edf": write_edf, "dcm": write_dicom, "csv": write_csv}
SPELLINGS = {
    "hea": ["i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6"],
    "edf": [f"ECG {lead}" for lead in LEADS],
    "dcm": [  # as the standard words them (PS3.16, CID 3001)
        "Lead I (Einthoven)",
        "Lead II",
        "Lead III",
        "aVR, augmented voltage, right",
        "aVL, augmented voltage, left",
        "aVF, augmented voltage, foot",
        *(f"Lead V{k}" for k in range(1, 7)),
    ],
    "csv": [lead.upper() for lead in LEADS],
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same(tmp_path: Path, kind: str) -> None:
    order = np.random.default_rng(1).permutation(12)
    x = signal()
    path = WRITERS[kind](tmp_path / f"mine.{kind}", x[order], [SPELLINGS[kind][k] for k in order])
    found = read_ecg(path)
    assert found.leads == LEADS and found.sampling_rate == RATE and found.seconds == 4.0
    np.testing.assert_allclose(found.signal, x, atol=2e-4)
    assert found.signal.dtype == np.float32 and found.notes == ()
    if kind == "hea":
        for other in (path.with_suffix(""), path.with_suffix(".dat"), str(path)):
            assert np.array_equal(read_ecg(other).signal, found.signal)


@pytest.mark.parametrize("turned", [False, True])
def test_an_array_needs_its_rate_and_its_leads(turned: bool) -> None:
    x = signal(2)
    given = x.T * 1e3 if turned else x * 1e3
    found = read_ecg(given, RATE, ["V5", "II"], unit="uV")
    assert found.leads == ("II", "V5")
    np.testing.assert_allclose(found.signal, x[::-1], atol=1e-5)
    one = read_ecg(x[0], RATE, "II")
    assert one.signal.shape == (1, 1000) and one.leads == ("II",)
    with pytest.raises(RecordError, match="sampling_rate"):
        read_ecg(x, leads=["I", "II"])
    with pytest.raises(RecordError, match="name its leads"):
        read_ecg(x, RATE)
    with pytest.raises(RecordError, match="3 lead names for the shape"):
        read_ecg(x, RATE, ["I", "II", "III"])
    for bad in (np.array([["a", "b"]]), np.zeros((2, 3, 4)), np.zeros(0)):
        with pytest.raises(RecordError, match="needs numbers of shape"):
            read_ecg(bad, RATE, "II")


def test_limb_leads_are_computed_by_einthoven_and_goldberger() -> None:
    x = signal(2)
    found = read_ecg(x, RATE, ["I", "II"])
    assert found.leads == LEADS[:6] and "computed" in found.notes[0]
    of = dict(zip(found.leads, found.signal.astype(float), strict=True))
    np.testing.assert_allclose(of["I"] + of["III"], of["II"], atol=1e-5)
    np.testing.assert_allclose(of["aVR"] + of["aVL"] + of["aVF"], 0, atol=1e-5)
    np.testing.assert_allclose(of["aVF"], (of["II"] + of["III"]) / 2, atol=1e-5)
    given = read_ecg(signal(3), RATE, ["I", "II", "aVF"])
    assert given.leads == ("I", "II", "aVF") and given.notes == ()


def test_what_is_no_lead_is_named_and_what_is_missing_stays_missing(tmp_path: Path) -> None:
    path = write_wfdb(tmp_path / "holter.hea", signal(3), ["MLII", "RESP", "V5"])
    found = read_ecg(path)
    assert found.leads == ("II", "V5") and found.notes == ("left out, no ECG leads: RESP",)
    x = signal(1)
    x[0, :3], x[0, 5] = np.nan, np.inf
    found = read_ecg(x, RATE, "II")
    assert np.flatnonzero(np.isnan(found.signal[0])).tolist() == [0, 1, 2, 5]
    assert "infinite" in found.notes[0]
    assert "is the unit right" in read_ecg(100 * signal(1), RATE, "II").notes[0]


def test_a_table_without_a_header_and_other_separators(tmp_path: Path) -> None:
    x = signal(2)
    for separator in (",", ";", "\t"):
        path = write_csv(tmp_path / "a.csv", x, ["I", "v2"], sep=separator)
        assert read_ecg(path).leads == ("I", "V2") and read_ecg(path).sampling_rate == RATE
    milli = pd.DataFrame({"ms": np.arange(1000) * 4, "II": x[0]})
    milli.to_csv(tmp_path / "ms.csv", index=False)
    assert read_ecg(tmp_path / "ms.csv").sampling_rate == RATE
    bare = tmp_path / "bare.csv"
    pd.DataFrame(x.T).to_csv(bare, index=False, header=False)
    found = read_ecg(bare, RATE, ["I", "V2"])
    np.testing.assert_allclose(found.signal, x, atol=1e-5)
    with pytest.raises(RecordError, match="without names"):
        read_ecg(bare, RATE)
    other = text(tmp_path / "other.csv", "t,a,b\n" + bare.read_text().replace("\n", ",0\n"))
    assert read_ecg(other, RATE, ["V5", "II"]).leads == ("II", "V5")
    with pytest.raises(RecordError, match="1 lead names for the columns a, b"):
        read_ecg(other, RATE, "II")


def broken_dicom(path: Path) -> Path:
    write_dicom(path, signal(1), ["Lead I"])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def no_waveform(path: Path) -> Path:
    import pydicom

    write_dicom(path, signal(1), ["Lead I"])
    dataset = pydicom.dcmread(path)
    del dataset.WaveformSequence
    dataset.Modality = "CT"
    dataset.save_as(path)
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


APPLE = (
    'Name,A B\nDate of Birth,"Jan 1, 1990"\nRecorded Date,2026-08-26 18:15:35 +0100\n'
    "Classification,Sinus Rhythm\nSymptoms,\nSoftware Version,1.90\n"
    'Device,"Watch7,11"\nSample Rate,512 hertz\n\n\nLead,Lead I\nUnit,µV\n\n'
)
DEVICES = {  # what stands above, a line of the table (k its number, v in mV), rate, leads
    "Apple Watch": (APPLE, lambda k, v: f"{1e3 * v:.3f}", 512, ("I",)),
    "Apple Watch, decimal comma": (
        APPLE, lambda k, v: f"{1e3 * v:.3f}".replace(".", ","), 512, ("I",)),
    "Polar": (
        "Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]\n",
        lambda k, v: f"2026-08-15T02:40:{k // 130:02d}.{k % 130:03d};"
        f"{599636646177065964 + k * 10**9 // 130};{k * 1e3 / 130:.6f};{1e3 * v:.0f}",
        130, ("ecg",)),
    "rdsamp": (
        "'Elapsed time','MLII','V5'\n'hh:mm:ss.mmm','μV','mV'\n",
        lambda k, v: f"'{k // 21600}:{k % 21600 / 360:06.3f}',{1e3 * v:.0f},{v:.3f}",
        360, ("II", "V5")),
    "semicolons, decimal comma": (
        "Zeit (ms);I;II\n",
        lambda k, v: f"{k * 4};{v:.3f};{v:.3f}".replace(".", ","), 250, ("I", "II")),
    "whole milliseconds": (
        "time_ms,II,event\n", lambda k, v: f"{round(k * 1e3 / 360)},{v:.3f},N", 360, ("II",)),
    "date and time": (
        "timestamp,II\n",
        lambda k, v: f"2024-01-01 23:59:{k * 0.002:06.3f},{v:.3f}", 500, ("II",)),
    "rate in a comment, blanks": (
        "# sampling rate: 250 Hz\nV1 V2\n", lambda k, v: f"{v:.3f}   {v:.3f}", 250, ("V1", "V2")),
    "a column of numbers without a name": (
        ",II\n# sampling frequency = 500\n", lambda k, v: f"{k},{v:.3f}", 500, ("II",)),
    "a lead by the name of V is in no volts": (
        "time_s,ECG V\n", lambda k, v: f"{k / 250},{v:.3f}", 250, ("ECG V",)),
    "unit in the name": ("II_uV,\n", lambda k, v: f"{1e3 * v:.3f},", None, ("II",)),
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_tables_as_devices_write_them(tmp_path: Path, device: str) -> None:
    above, line, rate, leads = DEVICES[device]
    x = np.rint(1e3 * np.sin(np.arange(1500) / 9)) / 1e3
    path = text(tmp_path / "a.csv", above + "\n".join(line(k, v) for k, v in enumerate(x)))
    found = read_ecg(path) if rate else read_ecg(path, 300)
    assert found.sampling_rate == (rate or 300)
    assert [lead for lead in found.leads if lead not in ("III", "aVR", "aVL", "aVF")] == [*leads]
    np.testing.assert_allclose(found.signal[0], x, atol=1e-6)
    assert ("left out, no ECG leads: event" in found.notes) == (device == "whole milliseconds")


def edf_with(path: Path, channels: dict[str, tuple[int, str]], **more: object) -> dict:
    """An EDF+ or BDF+ file of 12 s with a sine of 1.2 Hz in each channel (label -> Hz, unit)."""
    bdf = path.suffix == ".bdf"
    kind, whole = (edfio.BdfSignal, edfio.Bdf) if bdf else (edfio.EdfSignal, edfio.Edf)
    of = {name: np.sin(2.4 * np.pi * np.arange(12 * hz) / hz) for name, (hz, _) in channels.items()}
    signals = [
        kind(of[name], hz, label=name, physical_dimension=unit, physical_range=(-3, 3))
        for name, (hz, unit) in channels.items()
    ]
    whole(signals, **more).write(path)
    return of


@pytest.mark.parametrize("suffix", ["edf", "bdf"])
def test_channels_of_other_rates_change_nothing(tmp_path: Path, suffix: str) -> None:
    """So are nights in a sleep laboratory; and the events of EDF+ are a channel of their own."""
    channels = {"EEG C3-A2": (100, "mV"), "ECG II": (256, "mV"), "ECG V1": (256, "mV"),
                "ECG III": (128, "mV"), "SpO2": (1, "%")}  # fmt: skip
    events = [edfio.EdfAnnotation(2, None, "Lights off")]
    of = edf_with(tmp_path / f"a.{suffix}", channels, annotations=events)
    found = read_ecg(tmp_path / f"a.{suffix}")
    assert found.leads == ("II", "V1") and found.sampling_rate == 256
    np.testing.assert_allclose(found.signal, [of["ECG II"], of["ECG V1"]], atol=1e-4)
    assert found.notes == (
        "ECG III left out: 128 Hz, where others have 256",
        "left out, no ECG leads: EEG C3-A2, SpO2",
    )


def test_wfdb_with_several_samples_a_frame(tmp_path: Path) -> None:
    rates, names = [500, 125, 500], ["II", "RESP", "V5"]
    own = [np.rint(200 * np.sin(2.4 * np.pi * np.arange(12 * hz) / hz)).astype(int) for hz in rates]
    wfdb.Record(
        record_name="icu", n_sig=3, fs=125, sig_len=1500, samps_per_frame=[4, 1, 4], fmt=["16"] * 3,
        adc_gain=[200.0] * 3, baseline=[0] * 3, units=["mV"] * 3, sig_name=names,
        file_name=["icu.dat"] * 3, adc_res=[16] * 3, adc_zero=[0] * 3, block_size=[0] * 3,
        init_value=[0] * 3, checksum=[int(x.sum() % 65536) for x in own], e_d_signal=own,
    ).wrsamp(expanded=True, write_dir=str(tmp_path))  # fmt: skip
    found = read_ecg(tmp_path / "icu")
    assert found.leads == ("II", "V5") and found.sampling_rate == 500
    np.testing.assert_allclose(found.signal, np.stack([own[0], own[2]]) / 200, atol=1e-6)
    assert found.notes == ("left out, no ECG leads: RESP",)


def test_wfdb_in_segments_with_a_gap(tmp_path: Path) -> None:
    x = signal(1)
    for name in ("a", "b"):
        write_wfdb(tmp_path / f"{name}.hea", x, ["II"])
    n = x.shape[1]
    (tmp_path / "all.hea").write_text(f"all/4 1 {RATE} {2 * n + 100}\nlay 0\na {n}\n~ 100\nb {n}\n")
    (tmp_path / "lay.hea").write_text(f"lay 1 {RATE} 0\n~ 16 200/mV 16 0 0 0 0 II\n")
    found = read_ecg(tmp_path / "all.hea")
    assert found.leads == ("II",) and found.signal.shape == (1, 2 * n + 100)
    np.testing.assert_allclose(found.signal[0, :n], x[0], atol=1e-6)
    np.testing.assert_allclose(found.signal[0, n + 100 :], x[0], atol=1e-6)
    assert np.isnan(found.signal[0, n : n + 100]).all()
    (tmp_path / "b.dat").unlink()
    with pytest.raises(RecordError, match="not a readable WFDB record"):
        read_ecg(tmp_path / "all.hea")


def test_an_interrupted_edf_is_refused(tmp_path: Path) -> None:
    edf_with(tmp_path / "a.edf", {"ECG II": (256, "mV")}, annotations=[])
    content = (tmp_path / "a.edf").read_bytes()
    assert content[192:197] == b"EDF+C"
    (tmp_path / "a.edf").write_bytes(content[:196] + b"D" + content[197:])
    with pytest.raises(RecordError, match="with interruptions"):
        read_ecg(tmp_path / "a.edf")


def test_a_gap_in_the_times_is_one_of_missing_samples(tmp_path: Path) -> None:
    x = np.arange(2000) / 1e3
    kept = np.delete(np.arange(2000), np.r_[500:700, 1500])
    path = text(tmp_path / "a.csv", "t,II\n" + "\n".join(f"{k / 250:.3f},{x[k]}" for k in kept))
    found = read_ecg(path)
    assert found.sampling_rate == 250 and found.signal.shape == (1, 2000)
    np.testing.assert_allclose(found.signal[0, kept], x[kept], atol=1e-6)
    assert np.isnan(found.signal[0]).sum() == 201
    assert found.notes == ("'t' leaves out 201 samples in 2 places: they are missing",)


BAD = {
    "nothing there": (lambda d: d / "none.edf", "no such file"),
    "a picture": (lambda d: text(d / "a.png", "png"), "not a file that is known"),
    "EDF that is none": (lambda d: text(d / "a.edf", "x" * 300), "not a readable EDF"),
    "EDF cut off": (
        lambda d: text(d / "a.edf", write_edf(d / "b.edf", signal(), list(LEADS)).read_bytes()[:900]
                       .decode("latin1")),
        "not a readable EDF",
    ),
    "EDF without ECG": (
        lambda d: write_edf(d / "a.edf", signal(2), ["EEG Fpz-Cz", "Temp rectal"]),
        "none of its channels is an ECG lead: EEG Fpz-Cz, Temp rectal",
    ),
    "no voltage": (
        lambda d: write_edf(d / "a.edf", signal(1), ["ECG I"], units="degreeC"),
        "'degreeC', which is no voltage",
    ),
    "DICOM without a waveform": (lambda d: no_waveform(d / "a.dcm"), r"modality CT"),
    "DICOM cut off": (lambda d: broken_dicom(d / "a.dcm"), "DICOM"),
    "DICOM that is none": (lambda d: text(d / "a.dcm", "no"), "not a readable DICOM"),
    "text in a table": (
        lambda d: text(d / "a.csv", "I,II\n1,2\n1,bad\n" * 300), "column 'I' holds text"),
    "no lead in a table": (lambda d: text(d / "a.csv", "a,b\n" + "1,2\n" * 900), "give its samp"),
    "times without their unit": (
        lambda d: text(d / "a.csv", "t,I\n" + "".join(f"{k},2\n" for k in range(900))),
        "1 Hz by what stands in it: name the unit"),
    "times that jump": (
        lambda d: text(d / "a.csv", "t,I\n" + "".join(f"{k},2\n" for k in (0, 0.002, 0.004, 1e6))),
        "goes on for"),
    "time stands still": (
        lambda d: text(d / "a.csv", "t,I\n" + "1,2\n" * 900), "does not rise"),
    "not UTF-8": (lambda d: (d / "a.csv", (d / "a.csv").write_bytes(b"\xff\xfe,\n1,2\n"))[0],
                  "not a readable table"),
    "empty table": (lambda d: text(d / "a.csv", ""), "not a readable table|without names"),
    "a lead twice": (
        lambda d: write_wfdb(d / "a.hea", signal(2), ["II", "MLII"]), "lead II stands twice"),
    "too short": (lambda d: write_csv(d / "a.csv", signal(1, 1.0), ["I"]), "1 s long"),
    "WFDB cut off": (
        lambda d: (write_wfdb(d / "a.hea", signal(2), ["I", "II"]),
                   (d / "a.dat").write_bytes(b"12"))[0], "truncated|disagrees"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_say_what_was_found(tmp_path: Path, kind: str) -> None:
    make, said = BAD[kind]
    with pytest.raises(RecordError, match=said):
        read_ecg(make(tmp_path))


@pytest.mark.parametrize(
    "names",
    [
        ["ECG1", "ECG2"], ["ML5", "CM5"], ["mod.V1", "CC5"], ["D3", "D4"], ["ECG", "ECG"],
        ["X", "Y"], ["V4R", "V7"], ["V2-V3", "CM2"], ["ch1", "Channel 2"],
    ],
)  # fmt: skip
def test_leads_of_other_electrodes_keep_their_names(tmp_path: Path, names: list[str]) -> None:
    found = read_ecg(write_edf(tmp_path / "holter.edf", signal(2), names))
    assert found.leads[0] == names[0] and found.leads[1].rstrip("'") == names[1]
    assert len(set(found.leads)) == 2 and "none of the twelve" in found.notes[0]
    np.testing.assert_allclose(found.signal, signal(2), atol=1.01 * STEP)
    mixed = read_ecg(signal(3), RATE, ["CM5", "V1", "II"])
    assert mixed.leads == ("II", "V1", "CM5")
    np.testing.assert_allclose(mixed.signal, signal(3)[[2, 1, 0]], atol=1e-6)


def test_rates_outside_of_the_range_are_refused() -> None:
    for rate in (49.0, 2001.0):
        with pytest.raises(RecordError, match="between 50 and 2000 Hz"):
            read_ecg(np.zeros(100_000), rate, "II")


FORMS = [
    "{}",
    "ECG {}",
    "Lead {}",
    "MDC_ECG_LEAD_{}",
    "ECG {}-Ref",
    "{} (filtered)",
    "Ableitung {}",
]


@given(st.sampled_from(LEADS), st.sampled_from(FORMS),
       st.sampled_from([str, str.upper, str.lower]))  # fmt: skip
def test_usual_spellings_are_known(lead: str, form: str, case) -> None:
    assert lead_name(case(form.format(lead))) == lead


@given(st.text(max_size=12))
def test_other_names_are_no_leads(name: str) -> None:
    found = lead_name(name)
    assert found is None or found in LEADS
    assert not any(lead_name(other) for other in ("V7", "RESP", "EEG", "aVX", "X", "Pleth", ""))


def test_an_ecg_is_what_it_says() -> None:
    found = read_ecg(signal(12), RATE, LEADS)
    assert isinstance(found, ECG) and found.name == "array" and len(found.leads) == 12


def test_the_package_offers_it_and_loads_nothing_before() -> None:
    code = (
        "import sys, beatssl; assert 'pydicom' not in sys.modules and 'torch' not in sys.modules; "
    )
    code += "assert beatssl.read_ecg.__module__ == 'beatssl.ecg'; beatssl.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in done.stderr
