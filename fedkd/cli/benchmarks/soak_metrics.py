"""An edge's /metrics as numbers."""

from __future__ import annotations


def metrics_of(text: str) -> dict[str, float]:
    """{sample name: value}; samples with labels are summed, and listed with their labels too."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
            if sample.labels:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found
