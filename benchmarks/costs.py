"""`bella costs BACKBONE`: parameters and bytes of its particles, from shapes alone: no data, no weights, no memory for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bella.costs import count_costs, count_parameters
from bella.lowrank import plan_adapters
from benchmarks.backbones import architecture


def backbone_costs(
    name: str, *, particles: int, ranks: Sequence[int], targets: Sequence[str] | None, classes: int | None
) -> dict[str, Any]:
    """Costs of low-rank particles at each rank, beside those of full-rank ones.

    Args:
        name: the backbone's; bare names are enough.
        particles: n.
        ranks: each r.
        targets: patterns of adapted layers; None: the backbone's own.
        classes: C, for a head trained in each particle; None: no head (frozen zero-shot).

    Returns:
        {"backbone", "particles", "targets", "classes", "full_rank": costs, "low_rank": [{"rank", costs}]}
    """
    backbone = architecture(name)
    chosen = list(targets) if targets else list(backbone.targets)
    in_head = 0 if classes is None else classes * (backbone.features + 1)
    numbers, base_bytes = count_parameters(backbone.model)
    total, total_bytes = numbers + in_head, base_bytes + 4 * in_head

    def costs(per_particle: int) -> dict[str, Any]:
        return dataclasses.asdict(count_costs(total, total_bytes, per_particle * particles, particles))

    low_rank = []
    for rank in ranks:
        adapters = plan_adapters(backbone.model, chosen, rank)
        per_particle = sum(adapter.parameters for adapter in adapters) + in_head
        low_rank.append({"rank": rank, "adapted_layers": len(adapters), **costs(per_particle)})
    return {
        "backbone": name,
        "particles": particles,
        "targets": chosen,
        "classes": classes,
        "full_rank": costs(total),
        "low_rank": low_rank,
    }
