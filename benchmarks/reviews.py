"""10,605 movie-review sentences with a mean rating (-4..4): C. J. Hutto's set, shipped in vaderSentiment 0.5 (MIT)."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from compress.files import write_atomically

PACKAGE = "vaderSentiment==0.5"
ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "movieReviewSnippets_GroundTruth.txt"
FILE_NAME = "movie_reviews.tsv"


def fetch_reviews(folder: Path) -> Path:
    """``folder``/movie_reviews.tsv (columns: number, mean rating, text; no header), fetched with pip where missing."""
    target = folder / FILE_NAME
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--no-binary", ":all:", "-d", scratch]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        write_atomically(target, _sentences(next(Path(scratch).iterdir()), Path(scratch)))
    return target


def _sentences(package: Path, scratch: Path) -> bytes:
    """The text file inside the archive inside the source package, as UTF-8."""
    opener = zipfile.ZipFile if package.suffix == ".zip" else tarfile.open
    with opener(package) as outer:
        names = outer.namelist() if isinstance(outer, zipfile.ZipFile) else outer.getnames()
        outer.extract(next(name for name in names if name.endswith(ARCHIVE)), scratch)
    with tarfile.open(next(scratch.rglob(Path(ARCHIVE).name))) as inner:
        member = next(m for m in inner.getmembers() if m.name.endswith(MEMBER) and "/._" not in m.name)
        content = inner.extractfile(member)
        assert content is not None
        raw = content.read()
    try:
        return raw.decode("utf-8").encode()
    except UnicodeDecodeError:
        return raw.decode("latin-1").encode()
