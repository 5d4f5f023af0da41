"""Real pictures that fidelity is measured against: a folder of them, or their statistics in one .npz."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ...data.pictures import list_pictures
from ...draw.answers import Scorer
from ...draw.records import Record, picture_hashes, write_records
from ...files import atomic_path
from ..scoring import score_records
from .distance import Moments, moments_of


def write_statistics(path: Path, moments: Moments, scorer: Scorer) -> None:
    """Mean, covariance and count of real pictures' features, with the extractor that made them, as one .npz."""
    extractor = json.dumps(scorer.fingerprint(), sort_keys=True)  # its weights' sha256, how it resizes
    with atomic_path(path) as temporary:
        np.savez(temporary, mu=moments.mean, sigma=moments.covariance, n=moments.n, extractor=extractor)


def read_statistics(path: Path, scorer: Scorer) -> Moments:
    """The statistics in `path`. ValueError when they are damaged, or of another extractor than `scorer`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be read as statistics ({error}); make it again from the pictures.") from error
    if lacking := [name for name in ("mu", "sigma", "n", "extractor") if name not in stored]:
        raise ValueError(
            f"{path} has {', '.join(sorted(stored)) or 'nothing'} but not {', '.join(lacking)}: nobody can tell which "
            "network, resize and number of pictures made it. Give the folder of real pictures instead; its statistics "
            "are then kept."
        )
    then, now = json.loads(str(stored["extractor"])), scorer.fingerprint()
    if then != now:
        raise ValueError(f"{path} was made by another extractor; give the folder of real pictures, or its weights.\n"
                         f"  statistics: {then}\n  now:        {now}")  # fmt: skip
    mu, sigma, n = stored["mu"], stored["sigma"], int(stored["n"])
    if sigma.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()) or n < 2:
        raise ValueError(f"{path} holds mu {mu.shape}, sigma {sigma.shape}, n = {n}: not the moments of real pictures.")
    return Moments.of_statistics(mu, sigma, n)


@dataclass(frozen=True)
class Reference:
    """Real pictures: a folder of them (of any sizes), or the .npz statistics of one."""

    path: Path
    """Folder or .npz file."""
    cache_dir: Path
    """Where a folder's features and statistics are kept, so that they are made once."""

    def __post_init__(self) -> None:
        if self.path.suffix == ".npz" and self.path.is_file():
            return
        try:
            count = len(self.pictures)
        except ValueError as error:
            raise ValueError(f"{error} {self._wanted}") from error
        if count < 2:
            raise ValueError(f"The reference {self.path} holds a single picture. {self._wanted}")

    @property
    def _wanted(self) -> str:
        return ("--fid_reference takes an .npz of statistics, or a folder with at least two real pictures (for COCO "
                "those of val2014).")  # fmt: skip

    @cached_property
    def pictures(self) -> list[Path]:
        """The folder's pictures, in order."""
        return list_pictures(self.path)

    @cached_property
    def records(self) -> list[Record]:
        """A record of each, with the sha256 of its file."""
        names = [path.relative_to(self.path).as_posix() for path in self.pictures]
        rows = zip(names, self.pictures, picture_hashes(self.pictures))
        return [{"id": name, "file": str(path.resolve()), "prompt": "", "sha256": sha} for name, path, sha in rows]

    def moments(self, scorer: Scorer) -> Moments:
        """Mean and covariance of the pictures' features."""
        if self.path.is_file():
            return read_statistics(self.path, scorer)
        kept = self._folder(scorer) / f"{scorer.name}.npz"
        if not kept.exists():
            write_statistics(kept, moments_of(self.features(scorer)), scorer)
        return read_statistics(kept, scorer)

    def features(self, scorer: Scorer) -> np.ndarray:
        """(M, d) features, mapped from disk; a statistics file has none."""
        if self.path.is_file():
            raise ValueError(f"{self.path} holds means and covariances, but KID and CMMD compare single pictures: "
                             "give the folder of real pictures.")  # fmt: skip
        folder = self._folder(scorer)
        write_records(folder, self.records)
        return score_records(folder, self.records, [scorer]).features[scorer.name]

    def _folder(self, scorer: Scorer) -> Path:
        """Another extractor, or pictures of other names or contents, are kept elsewhere."""
        digest = hashlib.sha256(json.dumps(scorer.fingerprint(), sort_keys=True).encode())
        for record in self.records:
            digest.update(f"{record['id']}:{record['sha256']}\n".encode())
        return self.cache_dir.expanduser() / f"reference-{digest.hexdigest()[:16]}"
