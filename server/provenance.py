"""Where a run's checkpoints come from, and whether its audit log holds, as its report says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedkd.checkpoints.audit_chain import AuditError
from fedkd.checkpoints.audit_check import verify_log
from fedkd.checkpoints.lineage import Ancestor, diff, lineage
from fedkd.checkpoints.manifest import CheckpointError
from fedkd.checkpoints.registry import Registry
from fedkd.checkpoints.signing import signer_of


def family(registry: Registry, references: list[str]) -> list[dict[str, Any]]:
    """The versions `references` and all that they descend from, newest first, each once; unknown ones are left out."""
    found: dict[str, dict[str, Any]] = {}
    for reference in reversed(references):
        try:
            ancestors = lineage(registry, reference)
        except CheckpointError:
            continue
        for ancestor in ancestors:
            found.setdefault(ancestor.reference, described(registry, ancestor))
    return list(found.values())


def described(registry: Registry, ancestor: Ancestor) -> dict[str, Any]:
    """One version: parents, round, edges that taught it, scores, bytes in all and against its parent, signer."""
    manifest = ancestor.manifest
    facts: dict[str, Any] = {"reference": ancestor.reference, "state": ancestor.state}
    if manifest is None:
        return facts
    here = ancestor.state == "here"
    facts |= {
        "digest": manifest.digest,
        "parents": list(manifest.parents),
        "round": manifest.round,
        "edges": list(manifest.edges),
        "known": manifest.metrics.get("known"),
        "taught": manifest.metrics.get("taught"),
        "size_bytes": manifest.size_bytes,
        "signer": signer_of(registry.folder(ancestor.reference)) if here else "",
    }
    if here and manifest.parents:
        try:
            facts["fetch_bytes"] = diff(registry, manifest.parents[0], ancestor.reference).fetched_bytes
        except CheckpointError:
            facts["fetch_bytes"] = None  # the parent was collected
    return facts


def audit_state(run: Path) -> dict[str, Any] | None:
    """The audit log's number of lines, its head, and whether it is as it was written; None without a log."""
    try:
        verdict = verify_log(run)
    except AuditError:
        return None
    facts = {"lines": verdict.lines, "head": verdict.last, "verified": not verdict.problem, "problem": verdict.problem}
    return {**facts, "signer": verdict.signer, "signed": verdict.signed}
