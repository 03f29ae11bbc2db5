"""The published data sets, from PhysioNet or a mirror of it, every file checked by its SHA-256.

`SHA256SUMS.txt` of a data set says which files it has. PTB-XL and LUDB come as one archive, because
87,000 requests take hours; what is missing or wrong after that, and the Challenge's sources, which
have no archive of their own, come file by file. A file stands in its place only when its sum fits,
so a stopped download goes on where it was, and a folder that came by another way is checked alike.

`requests` and not pooch fetches them: pooch starts a broken download from its beginning, and what
it would add is a sum of the archive, which PhysioNet does not publish.
"""

import os
import shutil
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from beatssl.cache import replacing
from beatssl.data.records import inside
from beatssl.data.store import sha256_of
from beatssl.progress import progress
from beatssl.settings import ConfigError, read_yaml

HOST = "https://physionet.org"
SUMS = "SHA256SUMS.txt"
BLOCK = 1 << 20  # bytes
FEW = 300  # files that are fetched one by one where there is an archive
AT_ONCE = 8  # files in flight
TRIES = 5  # in a row that bring no byte more
WAIT = 0.5  # s before a second try, doubled at each
BUSY = (429, 500, 502, 503, 504)  # answers after which a server is asked again


class DownloadError(ConfigError):
    """A data set could not be fetched whole; what is good of it stays."""


class WrongSumError(DownloadError):
    """A file came with other bytes than the publisher's."""


@dataclass(frozen=True)
class Published:
    """A data set at PhysioNet; see `published.yml`. Without an archive it comes file by file."""

    title: str
    files: str
    folder: str
    gb: tuple[float, float]
    licence: str
    citation: str
    archive: str = ""
    only: str = ""
    without: str = ":"  # no name begins so


PUBLISHED = {
    name: Published(**entry)
    for name, entry in read_yaml(Path(__file__).with_name("published.yml")).items()
}


def about(data: Published, root: Path, host: str = HOST) -> str:
    """Size, licence, citation and addresses of a data set, and where it goes."""
    packed = f", archive {data.gb[1]:g} GB" if data.archive else ""
    return (
        f"{data.title}: {data.gb[0]:g} GB{packed}; {data.licence}; {data.citation}\n"
        f"  from {host}{data.archive or data.files}\n  to   {root / data.folder}"
    )


def fetch(data: Published, root: Path, host: str = HOST) -> int:
    """Bring a data set whole into `root`; only what is not there yet is fetched.

    Args: host: address of PhysioNet or of a mirror with the same paths.

    Returns:
        Number of its files, all of them checked.

    Raises:
        DownloadError: no connection, no such file, too little room on the disk, a damaged archive,
            or sums that do not fit after a second try. What was good stays.
    """
    folder, files = root / data.folder, f"{host}{data.files}"
    with requests.Session() as session:
        session.headers["Accept-Encoding"] = "identity"  # lengths and ranges are those of the file
        again = Retry(TRIES, backoff_factor=WAIT, status_forcelist=BUSY)
        session.mount(host, HTTPAdapter(pool_maxsize=AT_ONCE, max_retries=again))
        try:
            _download(session, f"{files}{SUMS}", folder / SUMS)
            sums = read_sums(folder, data)
            lost = differing(folder, sums, data.title)
            pack = bool(data.archive) and len(lost) > FEW
            packed = folder.with_name(f"{data.folder}.zip")
            fetched = pack and not packed.is_file()  # else a stopped unpacking left it
            _check_room(folder, (data.gb[0] + fetched * data.gb[1]) * 1e9 * len(lost) / len(sums))
            if fetched:
                _download(session, f"{host}{data.archive}", packed)
            if pack:
                lost = _unpack(packed, folder, {name: sums[name] for name in lost})
            _fetch_each(session, files, folder, {name: sums[name] for name in lost})
        except (requests.ConnectionError, requests.Timeout) as error:
            raise DownloadError(
                f"no connection to {host} ({type(error).__name__}): run again to go on, or fetch "
                f"{host}{data.archive or data.files} elsewhere, put its files into {folder} and "
                f"run `make data VERIFY=1`"
            ) from error
    return len(sums)


def check(data: Published, root: Path) -> tuple[int, list[str]]:
    """Number of files that the sums in the folder name, and those that are missing or differ.

    Raises:
        DownloadError: no sums there, or unreadable ones.
    """
    sums = read_sums(root / data.folder, data)
    return len(sums), differing(root / data.folder, sums, data.title)


def read_sums(folder: Path, data: Published) -> dict[str, str]:
    """File name -> SHA-256, of the wanted files in the folder's SHA256SUMS.txt.

    Raises:
        DownloadError: there is none, it is no list of sums, or a name in it leaves the folder.
    """
    path = folder / SUMS
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
        sums = {
            name: digits
            for digits, name in lines
            if name.startswith(data.only) and not name.startswith(data.without)
        }
    except (OSError, ValueError) as error:
        fault = f"{path} is absent or damaged: fetch it from {HOST}{data.files}{SUMS}"
        raise DownloadError(fault) from error
    bad = [name for name, digits in sums.items() if len(digits) != 64 or not _safe(name)]
    if bad or not sums:
        raise DownloadError(f"{path} is no list of sums of {data.title}: {bad[:3] or 'none in it'}")
    return sums


def differing(folder: Path, sums: dict[str, str], title: str) -> list[str]:
    """Names of the files that are missing or have another sum."""

    def fits(name: str) -> bool:
        return (folder / name).is_file() and sha256_of(folder / name) == sums[name]

    with ThreadPoolExecutor() as pool:
        checked = progress(pool.map(fits, sums), f"checking {title}", len(sums))
        return [name for name, good in zip(sums, checked, strict=True) if not good]


def _safe(name: str) -> bool:
    return inside(name) and ":" not in name.replace("\\", "/").partition("/")[0]  # no drive


def _check_room(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(f"{folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _get(session: requests.Session, url: str, start: int = 0) -> requests.Response:
    """The answer to a request for a file from byte `start` on."""
    try:
        answer = session.get(url, headers={"Range": f"bytes={start}-"}, stream=True, timeout=60)
    except requests.exceptions.RetryError as error:
        raise DownloadError(f"{url}: the server stays busy; run again later to go on") from error
    if answer.status_code not in (200, 206, 416):
        raise DownloadError(f"{url}: the server says {answer.status_code} {answer.reason}")
    return answer


def _download(session: requests.Session, url: str, path: Path, digits: str = "") -> None:
    """A file, put in its place if its sum is `digits`. What came of it before a break stays beside
    `path`, and the next try, or the next process, goes on there."""
    part = path.with_name(f".{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    furthest, failures, whole = 0, 0, False
    while not whole and failures < TRIES:
        time.sleep(WAIT * (2**failures - 1))
        start = part.stat().st_size if part.exists() else 0
        answer = _get(session, url, start)
        if answer.status_code == 416:  # nothing after `start`: all is there, or too much
            whole = answer.headers.get("Content-Range") == f"bytes */{start}"
            if not whole:
                part.unlink()
                failures += 1
            continue
        kept = start if answer.status_code == 206 else 0
        length = kept + int(answer.headers.get("Content-Length", 0))
        bar = progress((), path.name, length, delay=2.0, unit="B", initial=kept)
        try:
            with bar, part.open("ab" if kept else "wb") as file:
                while block := answer.raw.read1(BLOCK):  # what is there, not a whole block
                    bar.update(file.write(block))
            whole = True
        except HTTPError:
            size = part.stat().st_size
            failures = 0 if size > furthest else failures + 1
            furthest = max(size, furthest)
    if not whole:
        raise DownloadError(f"{url}: breaks off after {furthest} bytes; run again to go on")
    if digits and sha256_of(part) != digits:
        part.unlink()
        raise WrongSumError(f"{url}: its SHA-256 is not the publisher's")
    os.replace(part, path)


def _unpack(packed: Path, folder: Path, sums: dict[str, str]) -> list[str]:
    """Take the files of these names from an archive; returns the names that it has not right."""
    try:
        with zipfile.ZipFile(packed) as archive:
            members = archive.namelist()
            outside = [name for name in members if not _safe(name)]
            if outside:
                packed.unlink()
                raise DownloadError(f"{packed} holds {outside[0]!r}: refused, nothing is unpacked")
            at = {name.partition("/")[2]: name for name in members} | {n: n for n in members}
            lost = []
            for name in progress(sums, f"unpacking {packed.name}"):
                if name not in at or not _placed(archive, at[name], folder / name, sums[name]):
                    lost.append(name)
    except zipfile.BadZipFile as error:
        packed.unlink()
        raise DownloadError(f"{packed} is damaged and was removed; run again") from error
    packed.unlink()
    return lost


def _placed(archive: zipfile.ZipFile, member: str, path: Path, digits: str) -> bool:
    """Whether a member could be put in its place with the right sum."""
    try:
        with replacing(path) as part:
            with archive.open(member) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, BLOCK)
            if sha256_of(part) != digits:
                raise WrongSumError(member)
    except (zipfile.BadZipFile, zlib.error, WrongSumError):
        return False
    return True


def _fetch_each(session: requests.Session, files: str, folder: Path, sums: dict[str, str]) -> None:
    """Files one by one; those that cannot be had are named at the end."""

    def fault(name: str) -> str:
        for _ in range(2):
            try:
                _download(session, f"{files}{quote(name)}", folder / name, sums[name])
                return ""
            except DownloadError as error:
                found = str(error)
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            faults = list(progress(pool.map(fault, sums), f"fetching {folder.name}", len(sums)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    found = [fault for fault in faults if fault]
    if found:
        raise DownloadError(
            f"{len(found)} of {len(sums)} files could not be had, the others are in place. "
            f"First: {found[0]}"
        )
