"""The starter pair as package data: a cloud model and the edge artifact that shares its trunk."""

from importlib.resources import files
from pathlib import Path


def starter() -> Path:
    """Folder with `cloud/`, `edge/`, `heldout.jsonl` and the card; the package is always installed unzipped."""
    return Path(str(files(__name__))) / "starter"
