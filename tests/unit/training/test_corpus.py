"""What the models learnt from is permissively licensed and written down."""

import hashlib
import json
from importlib import metadata
from pathlib import Path

import pytest

from tiermesh.models import starter
from tiermesh.training.corpus import PERMISSIVE, Corpus, Package, licence_of, write_manifest

MANIFEST = json.loads((starter() / "manifest.json").read_text())["packages"]


def test_manifest_names_only_permissive_licences() -> None:
    assert len(MANIFEST) > 20
    assert {row["licence"] for row in MANIFEST} <= PERMISSIVE
    for row in MANIFEST:
        assert set(row) == {"name", "version", "licence", "files", "bytes", "sha256"}
        assert row["files"] > 0
        assert len(bytes.fromhex(row["sha256"])) == hashlib.sha256().digest_size


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("License-Expression: MIT", "MIT"),
        ("License-Expression: MPL-2.0", None),
        ("License-Expression: MIT AND GPL-3.0-only", None),
        ("Classifier: License :: OSI Approved :: BSD License", "BSD"),
        ("Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)", None),
        ("Classifier: License :: OSI Approved :: MIT License\nClassifier: License :: Other/Proprietary License", None),
        ("License: a long text", None),
        ("Summary: none stated", None),
    ],
)
def test_unclear_or_other_licences_are_refused(tmp_path: Path, fields: str, expected: str | None) -> None:
    folder = tmp_path / "some-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: some\nVersion: 1.0\n{fields}\n")
    assert licence_of(metadata.PathDistribution(folder)) == expected


def test_manifest_is_written_as_json(tmp_path: Path) -> None:
    package = Package("some", "1.0", "MIT", 2, 800, "00" * 32)
    write_manifest(Corpus((package, package), (), ()), tmp_path / "manifest.json")
    rows = json.loads((tmp_path / "manifest.json").read_text())["packages"]
    assert [row["name"] for row in rows] == ["some", "some"]
