"""The hash of the working tree, so that a benchmark can tell whether these very files were tested."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_NOT_CODE = ("bench/results/", "docs/")
_BUILT = {"build", "dist", "wheels", "__pycache__"}


def tree_files(root: Path = ROOT) -> list[str]:
    """Paths of all files that belong to the tree, sorted, relative to root; ignored files are left out.

    Without git (an unpacked archive) everything counts but hidden and built folders.
    """
    try:
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = _walk(root)
    return sorted({name for name in listed if name and (root / name).is_file()})


def _walk(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in _BUILT and not f.startswith(".") and not f.endswith(".egg-info")]
        found += [str((Path(folder) / name).relative_to(root)) for name in files if not name.startswith(".")]
    return found


def tree_hash(root: Path = ROOT) -> str:
    """SHA-256 over names and contents; results and pages are left out, since writing them tests nothing."""
    digest = hashlib.sha256()
    for name in tree_files(root):
        if not name.startswith(_NOT_CODE):
            content = hashlib.sha256((root / name).read_bytes()).hexdigest()
            digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    print(tree_hash())
