"""A tokenizer's files and what identifies them; needs no tokenizer library."""

import hashlib
import json
from pathlib import Path
from typing import Any

TOKENIZER_JSON = "tokenizer.json"
CONFIG_JSON = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
FILES = (TOKENIZER_JSON, CONFIG_JSON, "special_tokens_map.json", CHAT_TEMPLATE)
"""The files that make a tokenizer, as `transformers` writes them; only the first must exist."""


def fingerprint(data: bytes, source: str | Path) -> str:
    """Return the SHA-256 of a tokenizer.json, independent of spacing and order of keys.

    Raises:
        ValueError: it is not JSON.
    """
    canonical = json.dumps(parse_json(data, str(source)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def parse_json(data: bytes, source: str) -> Any:
    """Parse a JSON file.

    Args:
        data: its bytes.
        source: its name, for messages.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: is not JSON: {error}; restore the file") from None
