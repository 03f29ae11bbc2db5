"""Writing so that a killed run leaves the old file or the new one, never half of one."""

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = re.sub(r"\W", "", socket.gethostname())
PART = re.compile(rf"\..*\.{HOST}-(\d+)\.part")
NO_ROOM, NO_ACCESS = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES)


def part_of(path: Path) -> Path:
    """Where this process writes what is to become `path`, a file or a folder."""
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}.part")


@contextmanager
def _told(path: Path, part: Path) -> Iterator[None]:
    """Where there is no room or no access, the error names `path` and what helps, whatever a
    library called it (torch, safetensors and NumPy have words of their own for a full disk)."""
    try:
        yield
    except Exception as error:
        number, named = (
            getattr(error, "errno", None),
            Path(getattr(error, "filename", None) or part),
        )
        if number is None and shutil.disk_usage(part.parent).free < 2**16:
            number = errno.ENOSPC
        ours = part.is_relative_to(named) or named.is_relative_to(part)  # else it could not be read
        if number not in (*NO_ROOM, *NO_ACCESS) or not ours:
            raise
        needed = "make room on its disk" if number in NO_ROOM else "make its folder writable"
        told = f"{os.strerror(number)} ({needed}, or set BEATSSL_WORK to another folder)"
        raise OSError(number, told, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well.

    The folder is made where it is missing; what an error leaves behind is removed.
    """
    part = part_of(path)
    try:
        with _told(path, part):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.touch()  # here no library has words of its own for a locked folder
            yield part
            os.replace(part, path)
    finally:
        with suppress(OSError):  # there is none, or the folder is locked
            part.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; it takes the place of `path` when the block ends well.

    The folder at `path` stays whole until then, and stays where the block removes its own again
    (another process was faster).
    """
    part, old = part_of(path), part_of(path.with_name(f"{path.name}.old"))
    shutil.rmtree(part, ignore_errors=True)
    try:
        with _told(path, part):
            part.mkdir(parents=True)
            yield part
            if part.exists():
                if path.exists():
                    os.replace(path, old)
                os.replace(part, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for leftover in (part, old):
            shutil.rmtree(leftover, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, atomically."""
    with replacing(path) as part:
        part.write_bytes(text.encode())


def write_json(path: Path, content: dict) -> None:
    """`content` as JSON with sorted keys, atomically."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict:
    """What `write_json` wrote: empty where there is none or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def clear_leftovers(folder: Path) -> None:
    """Remove what killed writers of this machine left anywhere under `folder`; those of living
    processes and of other machines are left alone."""
    for path in sorted(folder.rglob(".*.part")):
        written = PART.fullmatch(path.name)
        if written and not _lives(int(written[1])):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it is another user's
    return True
