"""Whether a pipeline folder has all that its model_index.json names: no half model gets a name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedkd.checkpoints.manifest import CheckpointError

WITHOUT_WEIGHTS = ("Tokenizer", "TokenizerFast", "Processor", "Extractor", "Scheduler")  # ends of class names


def check_complete(folder: Path, reference: str) -> None:
    """CheckpointError when a component of the pipeline is missing, has no weights, or lacks a shard of them.

    Components are the pairs [library, class] of model_index.json; those that are [null, null] are left out on purpose.
    """
    for name, pair in _table(folder / "model_index.json").items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            continue
        part = folder / name
        if not part.is_dir():
            raise CheckpointError(f"{reference}: model_index.json names '{name}', and there is no such folder")
        weights = {path.name for path in part.glob("*.safetensors")}
        if (part / "config.json").is_file() and not pair[1].endswith(WITHOUT_WEIGHTS) and not weights:
            raise CheckpointError(
                f"{reference}: '{name}' has no weights; save them as safetensors (pipe.save_pretrained(FOLDER))"
            )
        for index in part.glob("*.safetensors.index.json"):
            shards = _table(index).get("weight_map")
            lacking = sorted({str(shard) for shard in shards.values()} - weights) if isinstance(shards, dict) else []
            if lacking:
                raise CheckpointError(
                    f"{reference}: '{name}/{lacking[0]}' is missing, which {index.name} names; add it"
                )


def _table(path: Path) -> dict[str, Any]:
    """A JSON file's table; empty when it is none, which `check_file` tells of."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
