"""The downloader against a server that behaves badly, on the loopback address."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from beatssl import __main__ as cli
from beatssl.data import download
from beatssl.data.download import PUBLISHED, DownloadError, check, fetch

FILES = {f"records/{i:03}.dat": bytes([i]) * (1000 + i) for i in range(12)}
LUDB = dataclasses.replace(PUBLISHED["ludb"], gb=(1e-5, 1e-5))
SUMS = "".join(f"{hashlib.sha256(data).hexdigest()} {name}\n" for name, data in FILES.items())


def packed(files: dict[str, bytes], top: str = "ludb-1.0.1/") -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, data in files.items():
            archive.writestr(top + name, data)
    return memory.getvalue()


class Server:
    """Files by address. `faults[address]` is a list of what the next answers do wrong: "cut" (half
    of what is asked for, then the end), a status, bytes to send instead; "always" repeats the last.
    """

    def __init__(self):
        self.files = {LUDB.files + name: data for name, data in FILES.items()}
        self.files[LUDB.files + "SHA256SUMS.txt"] = SUMS.encode()
        self.files[LUDB.archive] = packed(FILES)
        self.faults: dict[str, list] = {}
        self.asked: Counter = Counter()
        self.sent = 0
        self.resumes = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        self.asked[path] += 1
        faults = self.faults.get(path, [])
        fault = faults[0] if faults else None
        if faults and faults[-1] != "always":
            faults.pop(0)
        data = fault if isinstance(fault, bytes) else self.files.get(path)
        if data is None or isinstance(fault, int):
            request.send_response(fault or 404)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        start = start if self.resumes else 0
        if start >= len(data) and data:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(data)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        rest = data[start:]
        request.send_response(206 if self.resumes else 200)
        request.send_header("Content-Length", str(len(rest)))
        request.end_headers()
        body = rest[: (len(rest) + 1) // 2] if fault == "cut" else rest
        request.wfile.write(body)
        self.sent += len(body)
        if fault == "cut":
            request.wfile.flush()
            request.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.001)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(params=["archive", "single files"])
def few(request, monkeypatch) -> int:
    """With 0 an archive is fetched, with 300 its twelve files are."""
    number = {"archive": 0, "single files": 300}[request.param]
    monkeypatch.setattr(download, "FEW", number)
    return number


def whole(root: Path) -> bool:
    folder = root / LUDB.folder
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.dat")}
    left = [p for p in root.rglob("*") if p.name.endswith((".part", ".zip"))]
    return found == FILES and not left


def test_a_data_set_comes_whole_and_then_nothing_is_fetched_again(server, few, tmp_path):
    assert fetch(LUDB, tmp_path, server.address) == 12 and whole(tmp_path)
    assert check(LUDB, tmp_path) == (12, [])
    assert (server.asked[LUDB.archive] == 1) == (few == 0)
    before = server.asked.copy()
    fetch(LUDB, tmp_path, server.address)
    assert server.asked - before == Counter({LUDB.files + "SHA256SUMS.txt": 1})


def test_only_what_is_missing_or_wrong_is_fetched(server, tmp_path):
    fetch(LUDB, tmp_path, server.address)
    folder, names = tmp_path / LUDB.folder, list(FILES)
    (folder / names[3]).write_bytes(b"other")
    (folder / names[5]).unlink()
    assert check(LUDB, tmp_path) == (12, [names[3], names[5]])
    server.asked.clear()
    fetch(LUDB, tmp_path, server.address)
    assert set(server.asked) == {LUDB.files + n for n in (names[3], names[5], "SHA256SUMS.txt")}
    assert whole(tmp_path)


def test_cut_connections_are_taken_up_where_they_broke(server, few, tmp_path):
    paths = [LUDB.archive] if few == 0 else [LUDB.files + name for name in FILES]
    for path in paths:
        server.faults[path] = ["cut"] * 9
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path)
    # each byte came once: nine breaks of one file cost nothing but the requests
    assert server.sent == len(SUMS) + sum(len(server.files[path]) for path in paths)


def test_a_stopped_download_goes_on_in_the_next_process(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FEW", 0)
    server.faults[LUDB.archive] = ["cut", 404]
    with pytest.raises(DownloadError, match="404"):
        fetch(LUDB, tmp_path, server.address)
    part = next(tmp_path.rglob(".*.zip.part"))
    kept = part.stat().st_size
    assert 0 < kept < len(server.files[LUDB.archive])
    server.faults.clear()
    server.sent = 0
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path) and server.sent == len(SUMS) + len(server.files[LUDB.archive]) - kept


def test_a_server_that_cannot_resume_and_breaks_off_is_an_error_and_not_an_endless_loop(
    server, tmp_path
):
    server.resumes = False
    name = next(iter(FILES))
    server.faults[LUDB.files + name] = ["cut", "always"]
    with pytest.raises(DownloadError, match=f"1 of 12 files.*{name}.*breaks off after 500 bytes"):
        fetch(LUDB, tmp_path, server.address)
    assert len(check(LUDB, tmp_path)[1]) == 1
    assert server.asked[LUDB.files + name] <= 2 * (download.TRIES + 1)


@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_busy_server_is_asked_again(server, few, tmp_path, status):
    path = LUDB.archive if few == 0 else LUDB.files + "records/003.dat"
    server.faults[path] = [status, status]
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path) and server.asked[path] == 3


def test_a_server_that_stays_busy_is_named(server, tmp_path):
    server.faults[LUDB.files + "SHA256SUMS.txt"] = [503, "always"]
    with pytest.raises(DownloadError, match="SHA256SUMS.txt: the server stays busy; run again"):
        fetch(LUDB, tmp_path, server.address)


def test_a_file_that_is_not_there_leaves_the_others_in_place(server, tmp_path):
    del server.files[LUDB.files + "records/004.dat"]
    with pytest.raises(DownloadError, match=r"1 of 12 files .*records/004.dat.* 404 Not Found"):
        fetch(LUDB, tmp_path, server.address)
    assert check(LUDB, tmp_path)[1] == ["records/004.dat"]


def test_wrong_bytes_are_fetched_once_more_and_never_put_in_place(server, tmp_path):
    name = "records/007.dat"
    server.faults[LUDB.files + name] = [b"wrong"]
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path) and server.asked[LUDB.files + name] == 2
    (tmp_path / LUDB.folder / name).unlink()
    server.faults[LUDB.files + name] = [b"wrong", "always"]
    with pytest.raises(DownloadError, match=f"{name}: its SHA-256 is not the publisher's"):
        fetch(LUDB, tmp_path, server.address)
    assert check(LUDB, tmp_path)[1] == [name]


def test_more_bytes_at_hand_than_the_file_has_are_dropped(server, tmp_path):
    name = "records/002.dat"
    part = tmp_path / LUDB.folder / "records" / ".002.dat.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 5000)
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path) and server.asked[LUDB.files + name] == 2


def test_wrong_files_of_an_archive_come_one_by_one(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FEW", 0)
    names = list(FILES)
    files = {**FILES, names[0]: b"wrong"}
    del files[names[1]]
    server.files[LUDB.archive] = packed(files)
    fetch(LUDB, tmp_path, server.address)
    single = {LUDB.files + name for name in names[:2]}
    assert whole(tmp_path) and single < set(server.asked) and len(server.asked) == 4


def test_an_archive_without_a_folder_around_it_is_unpacked_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FEW", 0)
    server.files[LUDB.archive] = packed(FILES, top="")
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path) and len(server.asked) == 2


def test_a_damaged_archive_is_removed_and_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FEW", 0)
    server.faults[LUDB.archive] = [b"no archive at all"]
    with pytest.raises(DownloadError, match="ludb.zip is damaged and was removed; run again"):
        fetch(LUDB, tmp_path, server.address)
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path)


def test_a_damaged_member_comes_by_itself(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FEW", 0)
    data = bytearray(server.files[LUDB.archive])
    at = data.index(FILES["records/009.dat"])
    data[at + 10] ^= 255  # its checksum in the archive no longer fits
    server.files[LUDB.archive] = bytes(data)
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path) and server.asked[LUDB.files + "records/009.dat"] == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_archive_whose_unpacking_was_stopped_is_not_fetched_again(
    server, tmp_path, monkeypatch, stop
):
    monkeypatch.setattr(download, "FEW", 0)
    copied, copy = [], download.shutil.copyfileobj

    def until_the_fifth(*arguments):
        copied.append(arguments)
        if len(copied) == 5:
            raise stop
        return copy(*arguments)

    monkeypatch.setattr(download.shutil, "copyfileobj", until_the_fifth)
    with pytest.raises(type(stop)):
        fetch(LUDB, tmp_path, server.address)
    assert len(check(LUDB, tmp_path)[1]) == 8 and (tmp_path / "ludb.zip").is_file()
    fetch(LUDB, tmp_path, server.address)
    assert whole(tmp_path) and server.asked[LUDB.archive] == 1 and len(copied) == 5 + 8


@pytest.mark.parametrize("name", ["../../out.dat", "/out.dat", "a/../../../out.dat", "..\\out.dat"])
def test_names_that_leave_the_folder_are_refused(server, tmp_path, monkeypatch, name):
    monkeypatch.setattr(download, "FEW", 0)
    root = tmp_path / "data"
    server.files[LUDB.archive] = packed({**FILES, name: b"evil"}, top="")
    with pytest.raises(DownloadError, match="refused, nothing is unpacked"):
        fetch(LUDB, root, server.address)
    server.files[LUDB.files + "SHA256SUMS.txt"] += f"{'0' * 64} {name}\n".encode()
    with pytest.raises(DownloadError, match="no list of sums"):
        fetch(LUDB, root, server.address)
    assert not list(tmp_path.rglob("*.dat")) and not Path("/out.dat").exists()


@pytest.mark.parametrize(
    "text", ["", "<html>no</html>", "abc records/1.dat\n", "one_word\n", "\xff"]
)
def test_a_list_of_sums_that_is_none_is_refused(server, tmp_path, text):
    server.files[LUDB.files + "SHA256SUMS.txt"] = text.encode("latin-1")
    with pytest.raises(DownloadError, match="is absent or damaged|is no list of sums"):
        fetch(LUDB, tmp_path, server.address)


def test_too_little_room_is_said_before_the_download(server, tmp_path):
    large = dataclasses.replace(LUDB, gb=(1e6, 0.0))
    with pytest.raises(DownloadError, match="1000000.0 GB needed, .* GB free"):
        fetch(large, tmp_path, server.address)
    assert set(server.asked) == {LUDB.files + "SHA256SUMS.txt"}


def test_without_a_connection_one_line_says_what_to_fetch_and_where_to_put_it(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DownloadError) as caught:
        fetch(LUDB, tmp_path, server.address)
    text = str(caught.value)
    for part in (server.address + LUDB.archive, str(tmp_path / LUDB.folder), "VERIFY=1"):
        assert part in text
    assert "\n" not in text


def test_the_challenge_comes_without_its_copy_of_ptbxl(server, tmp_path):
    data = dataclasses.replace(PUBLISHED["challenge2021"], gb=(1e-5, 0))
    names = [f"training/{source}/g1/A.hea" for source in ("georgia", "ptb-xl", "cpsc_2018")]
    names.append("sources/readme.md")
    server.files = {data.files + name: name.encode() for name in names}
    sums = [f"{hashlib.sha256(name.encode()).hexdigest()} {name}" for name in names]
    server.files[data.files + "SHA256SUMS.txt"] = "\n".join(sums).encode()
    assert fetch(data, tmp_path, server.address) == 2
    found = sorted(p.parts[-3] for p in tmp_path.rglob("*.hea"))
    assert found == ["cpsc_2018", "georgia"]


def test_the_command_line_checks_says_and_goes_on(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(download.PUBLISHED, "ludb", LUDB)
    words = ["data", "--into", str(tmp_path), "--mirror", server.address, "--sets", "ptbxl", "ludb"]
    assert cli.main([*words, "--dry-run"]) == 0 and not server.asked
    out = capsys.readouterr().out
    assert out.count("CC BY 4.0") == 1 and "Kalyakulina" in out and "3 GB, archive 1.8 GB" in out
    assert cli.main(words) == 1  # no PTB-XL there, but LUDB came
    said = capsys.readouterr()
    assert "404" in said.err and "12 files, all as published" in said.out and whole(tmp_path)
    (tmp_path / LUDB.folder / "records/001.dat").unlink()
    assert cli.main([*words[:5], "--sets", "ludb", "--verify"]) == 1
    assert (
        "11 of 12 files are as published; not these:\n  records/001.dat" in capsys.readouterr().out
    )
