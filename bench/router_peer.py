"""LiteLLM."""
from pathlib import Path
from typing import Any
def beside_litellm(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    return {"why_not": "todo"}
