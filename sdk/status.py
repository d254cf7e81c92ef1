"""What a service says about itself over HTTP, read and laid out."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of a metrics page."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service: whether it can be reached, whether it is ready, and its numbers."""

    address: str
    reachable: bool
    ready: bool = False
    samples: list[Sample] = field(default_factory=list)


def read_all(addresses: Iterable[str]) -> list[ServiceStatus]:
    """One status per metrics address; a service that can't be reached is told as such."""
    return [_read(address) for address in addresses]


def _read(address: str) -> ServiceStatus:
    try:
        _, page = _get(address, "/metrics")
        status, _ = _get(address, "/readyz")
    except (OSError, http.client.HTTPException):
        return ServiceStatus(address, reachable=False)
    return ServiceStatus(address, True, status == 200, parse(page))


def _get(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Accept": "text/plain"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def parse(page: str) -> list[Sample]:
    """Our own samples of a Prometheus text page: no comments, creation times or numbers of the Python runtime."""
    samples = []
    for line in page.splitlines():
        match = _SAMPLE.match(line)
        if match and match["name"].startswith("tiermesh_") and not match["name"].endswith("_created"):
            labels = dict(_LABEL.findall(match["labels"] or ""))
            samples.append(Sample(match["name"], labels, float(match["value"])))
    return samples


def tables(services: Iterable[ServiceStatus]) -> RenderableType:
    """One table per service; a histogram is shown as its count and mean."""
    return Group(*(_table(service) for service in services))


def _table(service: ServiceStatus) -> RenderableType:
    if not service.reachable:
        return f"{service.address}: can't be reached"
    state = "ready" if service.ready else "not ready"
    table = Table("what", "of", "value", title=f"{service.address}: {state}", title_justify="left", min_width=60)
    for sample in _readable(service.samples):
        labels = ", ".join(f"{key} {value}" for key, value in sample.labels.items())
        name = sample.name.removeprefix("tiermesh_").removesuffix("_total").replace("_", " ")
        table.add_row(name, labels, f"{sample.value:g}")
    return table


def _readable(samples: list[Sample]) -> list[Sample]:
    """Samples without buckets; the sum of a histogram becomes its mean."""
    counts = {_key(s, "_count"): s.value for s in samples if s.name.endswith("_count")}
    shown = []
    for sample in samples:
        count = counts.get(_key(sample, "_sum")) if sample.name.endswith("_sum") else None
        if sample.name.endswith("_bucket"):
            continue
        if count is None:
            shown.append(sample)
        elif count:
            shown.append(Sample(sample.name.removesuffix("_sum") + "_mean", sample.labels, sample.value / count))
    return shown


def _key(sample: Sample, suffix: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return sample.name.removesuffix(suffix), frozenset(sample.labels.items())
