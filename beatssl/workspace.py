"""The way into a profile for a notebook: settings, store and beats, made where missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from beatssl import compute
from beatssl.beats import Beats, prepare_beats
from beatssl.config import Profile, cores, load_profile
from beatssl.files import clear_leftovers
from beatssl.store import Store, prepare


@dataclass(frozen=True)
class Workspace:
    """A profile with everything that all its runs share."""

    profile: Profile
    store: Store
    beats: Beats


def data_root(profile: Profile) -> Path:
    """Where the record folders lie: BEATSSL_DATA (synthetic records are written by the store).

    Raises:
        FileNotFoundError: BEATSSL_DATA is not set or no folder; says how to set it.
    """
    if profile.data.synthetic:
        return profile.work
    root = Path(os.environ.get("BEATSSL_DATA") or "")
    if not os.environ.get("BEATSSL_DATA") or not root.is_dir():
        names = filter(None, (profile.data.ptbxl, profile.data.ludb, profile.data.challenge))
        raise FileNotFoundError(
            f"profile {profile.name!r} reads real recordings: name the folder that holds "
            f"{', '.join(names)} with `make book PROFILE=... DATA=folder` or the environment "
            "variable BEATSSL_DATA"
        )
    return root


def open_workspace(name: str, jobs: int | None = None) -> Workspace:
    """Read the profile, prepare records and beats (or reuse them), and hand all of it over.

    From then on the process computes with the profile's threads and precision.

    Args:
        name: tiny | subset | full.
        jobs: processes for the preparation; default: the cores of the machine.
    """
    profile = load_profile(name)
    compute.use(profile.compute)
    clear_leftovers(profile.work)
    jobs = jobs or cores()
    store = prepare(profile.data, profile.work / "store", data_root(profile), jobs)
    return Workspace(profile, store, prepare_beats(store, profile.work / "beats", jobs))
