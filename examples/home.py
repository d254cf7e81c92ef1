"""Turns spoken commands into device calls, and shows which model gave each of them.

python examples/home.py [HOST:PORT]
"""

import json
import sys

from tiermesh import Client, TiermeshError

COMMANDS = (
    "dim the kitchen lights to 40 %",
    "turn off the fan in the nursery and open the blinds of the living room",
    "switch on the porch light, no, the garage light",
)


def main() -> None:
    """Asks each command and prints its calls."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
    with Client(address, api_key="demo-key") as client:
        for command in COMMANDS:
            try:
                answer = client.generate(command + "\n", max_tokens=96, tier="realtime", quality="bounded")
            except TiermeshError as error:
                sys.exit(f"{error.reason}: {error.message}")
            origins = ", ".join(f"{span.tokens} tokens from the {span.origin.value}" for span in answer.spans)
            print(f"{command}\n  {calls(answer.text)}\n  {origins}, {answer.total_s * 1000:.0f} ms")


def calls(text: str) -> str:
    """The device calls, one per line; the text itself when the model wrote no valid JSON."""
    try:
        return "\n  ".join(f"{call['device']}: {call['set']}" for call in json.loads(text))
    except (ValueError, TypeError, KeyError):
        return text


if __name__ == "__main__":
    main()
