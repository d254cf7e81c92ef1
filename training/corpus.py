"""Python sources installed with this project, as training text, with a manifest of what was taken and its licences.

The manifest is written when the corpus is first read for training, so it tells what a model has learnt from.
"""

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import cast

PERMISSIVE = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "HPND",
        "ISC",
        "MIT",
        "MIT-CMU",
        "PSF-2.0",
        "Unlicense",
    }
)
"""SPDX names (and the classifiers' unversioned BSD) under which text may be learnt from and statistics passed on."""

_CLASSIFIERS = {
    "MIT License": "MIT",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "ISC License (ISCL)": "ISC",
}
_PACKAGE_BYTES = 1_500_000
"""Share of one package, so that the largest (over 20 MB of source) don't set the style alone."""
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "_vendor", "vendor"}
    | {"pydoc_data", "encodings", "unidata", "data", "turtledemo", "ensurepip", "_vendored"}
)
_HELDOUT_SHARE = 3  # percent of the files


@dataclass(frozen=True, slots=True)
class Package:
    """What the corpus took from one installed package; `sha256` is over the files' hashes in order."""

    name: str
    version: str
    licence: str
    files: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """One file's text and the package that it is from."""

    package: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Whole files, split by the hash of their content."""

    packages: tuple[Package, ...]
    train: tuple[Source, ...]
    heldout: tuple[Source, ...]


def licence_of(distribution: metadata.Distribution) -> str | None:
    """The permissive SPDX name of a distribution's licence; None when it has another, several or no clear one."""
    fields = cast(Message, distribution.metadata)  # what it is; its declared type promises less
    expression = fields.get("License-Expression") or fields.get("License") or ""
    if expression in PERMISSIVE:
        return expression
    if fields.get("License-Expression"):
        return None
    named = [line.split(" :: ")[-1] for line in fields.get_all("Classifier", []) if line.startswith("License ::")]
    known = {_CLASSIFIERS.get(name) for name in named if name != "OSI Approved"}
    return known.pop() if len(known) == 1 else None


def read_corpus() -> Corpus:
    """Read all sources of this environment that the rules let in, in a fixed order."""
    packages: list[Package] = []
    splits: dict[bool, list[Source]] = {False: [], True: []}
    seen: set[str] = set()
    for name, version, licence, paths in _distributions():
        digest, files, size = hashlib.sha256(), 0, 0
        for key, text in sorted((hashlib.sha256(text.encode()).hexdigest(), text) for text in _texts(paths)):
            if key in seen or size + len(text) > _PACKAGE_BYTES:
                continue
            seen.add(key)
            digest.update(bytes.fromhex(key))
            files, size = files + 1, size + len(text)
            splits[int(key[:8], 16) % 100 < _HELDOUT_SHARE].append(Source(name, text))
        if files:
            packages.append(Package(name, version, licence, files, size, digest.hexdigest()))
    return Corpus(tuple(packages), tuple(splits[False]), tuple(splits[True]))


def _distributions() -> Iterator[tuple[str, str, str, list[Path]]]:
    """Name, version, licence and Python files of the standard library and of every permissive distribution."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    yield "python", ".".join(map(str, sys.version_info[:3])), "PSF-2.0", sorted(stdlib.rglob("*.py"))
    found = {dist.metadata["Name"].lower(): dist for dist in metadata.distributions()}
    for name in sorted(set(found) - {"tiermesh"}):
        licence = licence_of(found[name])
        if licence is not None:
            paths = [Path(str(file.locate())) for file in found[name].files or () if file.suffix == ".py"]
            yield name, found[name].version, licence, sorted(paths)


def _texts(paths: list[Path]) -> Iterator[str]:
    """The texts of the files that people wrote for people: no tests, tables, stubs' output or vendored copies."""
    root = Path(sysconfig.get_paths()["purelib"])
    for path in paths:
        inside = (
            path.relative_to(root) if path.is_relative_to(root) else path.relative_to(sysconfig.get_paths()["stdlib"])
        )
        if (
            _SKIPPED_FOLDERS & set(inside.parts)
            or path.stem.startswith("test_")
            or path.stem.endswith(("_pb2", "_pb2_grpc"))
        ):
            continue
        if not path.is_file() or not 400 <= path.stat().st_size <= 60_000:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        longest = max(map(len, text.splitlines()))
        if text.isascii() and longest <= 200 and "enerated by" not in text[:800]:
            yield text.expandtabs(4).replace("\r\n", "\n")


def write_manifest(corpus: Corpus, out: Path) -> None:
    """One line of JSON per package."""
    rows = ",\n  ".join(json.dumps(asdict(package)) for package in corpus.packages)
    out.write_text(f'{{"packages": [\n  {rows}\n]}}\n')
