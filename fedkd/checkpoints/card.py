"""The model card of a published checkpoint: what the hub reads from its head, and what a person wants to know."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from fedkd.checkpoints.manifest import Manifest

LORA = "pytorch_lora_weights.safetensors"
HUB_ID = re.compile(r"[\w-]+(?:[\w.-]*)/[\w.-]+")
_LICENCES = (  # what the hub knows by name
    "afl-3.0 agpl-3.0 apache-2.0 bigscience-openrail-m bsd-2-clause bsd-3-clause bsd-3-clause-clear cc cc0-1.0 "
    "cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 "
    "creativeml-openrail-m ecl-2.0 epl-2.0 eupl-1.1 eupl-1.2 gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit "
    "mpl-2.0 openrail openrail++ osl-3.0 unlicense wtfpl zlib"
)
KNOWN_LICENCES = frozenset(_LICENCES.split())


def model_card(manifest: Manifest, *, repository: str = "", samples: Sequence[str] = ()) -> str:
    """A README.md for the Hugging Face Hub; `samples` are the pictures' paths inside the repository."""
    parts = [
        f"---\n{_head(manifest)}\n---",
        f"# {manifest.name} {manifest.version}\n\n{_summary(manifest)}",
        _pictures(samples),
        _use(manifest, repository or f"path/to/{manifest.name}"),
        _scores(manifest.metrics),
        _lineage(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(manifest: Manifest) -> str:
    """The card's YAML: library, task, base model, licence, tags and scores in the hub's own words."""
    from huggingface_hub import EvalResult, ModelCardData

    lora = any(entry.path == LORA for entry in manifest.files)
    tags = ["fedkd", "federated-learning", "distillation", "diffusers", "text-to-image"]
    tags += ["lora"] if lora else []
    tags += ["few-step"] if manifest.sampling else []
    facts: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}
    licence = manifest.licence.strip().casefold()
    if licence in KNOWN_LICENCES:
        facts["license"] = licence
    elif licence:
        facts |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", licence).strip("-")}
    if HUB_ID.fullmatch(manifest.base_model):
        facts |= {"base_model": manifest.base_model, "base_model_relation": "finetune"}
    scores = {key: value for key, value in manifest.metrics.items() if _is_number(value)}
    if scores:
        facts["model_name"] = f"{manifest.name} {manifest.version}"
        facts["eval_results"] = [
            EvalResult(
                task_type="text-to-image",
                dataset_type="held-out",
                dataset_name="held-out prompts of the federation",
                metric_type=key,
                metric_name=key,
                metric_value=value,
            )
            for key, value in scores.items()
        ]
    return ModelCardData(**facts).to_yaml().strip()


def _summary(manifest: Manifest) -> str:
    lines = ["A Stable Diffusion checkpoint published with fedkd."]
    if manifest.round:
        taught = f", taught by {', '.join(manifest.edges)}" if manifest.edges else ""
        lines.append(f"It is the student of round {manifest.round} of a federated distillation{taught}.")
    if manifest.base_model:
        lines.append(f"Its base model is `{manifest.base_model}`.")
    lines.append(f"Licence: {manifest.licence}." if manifest.licence else "It names no licence.")
    return "\n".join(lines)


def _pictures(samples: Sequence[str]) -> str:
    if not samples:
        return ""
    return "## Samples\n\n" + "\n".join(f"![{_title(path)}]({path})" for path in samples)


def _title(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0].replace("-", " ").replace("_", " ")


def _use(manifest: Manifest, repository: str) -> str:
    drawn = {"num_inference_steps": manifest.sampling.get("num_inference_steps")}
    drawn["guidance_scale"] = manifest.sampling.get("guidance_scale")
    options = "".join(f", {key}={value}" for key, value in drawn.items() if _is_number(value))
    code = (
        "from diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{repository}")\n'
        f"picture = pipe(prompt{options}).images[0]"
    )
    text = f"## Use\n\n```python\n{code}\n```"
    if any(entry.path == LORA for entry in manifest.files):
        base = manifest.base_model or "the base model"
        text += (
            f"\n\nThe same student as a LoRA for `{base}` is `{LORA}`: "
            f'`pipe.load_lora_weights("{repository}")` on a pipeline of that model.'
        )
    return text


def _scores(metrics: dict[str, Any]) -> str:
    rows = [f"| {key} | {_number(value)} |" for key, value in metrics.items() if _is_number(value)]
    for key, value in metrics.items():
        if isinstance(value, dict):
            rows += [f"| {key}: {name} | {_number(score)} |" for name, score in value.items() if _is_number(score)]
    return "## Scores\n\n| Metric | Value |\n|---|---|\n" + "\n".join(rows) if rows else ""


def _lineage(manifest: Manifest) -> str:
    facts = {
        "Version": manifest.reference,
        "Content digest": f"sha256:{manifest.digest}",
        "Parents": ", ".join(manifest.parents),
        "Round": str(manifest.round) if manifest.round else "",
        "Edges": ", ".join(manifest.edges),
        "Recipe digest": f"sha256:{manifest.recipe_digest}" if manifest.recipe_digest else "",
        "Created": manifest.created,
        "Sampling": f"`{json.dumps(manifest.sampling)}`" if manifest.sampling else "",
        "Size": f"{manifest.size_bytes} bytes in {len(manifest.files)} files",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    return (
        f"## Lineage\n\n| Fact | Value |\n|---|---|\n{rows}\n\n"
        "`manifest.json` has the sha256 of every file; `model.sig`, where there is one, signs them all."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float) -> str:
    return f"{value:.4g}"
