"""The tables of a benchmark: what stands in which column, under which heading, and which way is better.

The first ones are laid out as in the CDAM paper (correctness, class discrimination, compactness).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A table: title, its columns as (metric, heading, higher is better, None: neither), what it is about."""

    title: str
    columns: tuple[tuple[str, str, bool | None], ...]
    about: str


LAYOUTS = (
    Layout(
        "Correctness",
        (
            ("fidelity/area_mif", "A MIF", False),
            ("fidelity/area_lif", "A LIF", True),
            ("fidelity/area", "A LIF − A MIF", True),
            ("box/area", "A box", True),
            ("fidelity/at_stake", "f(x) − f(all replaced)", None),
        ),
        "Score (logit or SD) × % of pixels, which are blurred, most (MIF) or least (LIF) relevant first; box: Pearson "
        "× box side in units of 8 px at 224.",
    ),
    Layout(
        "Correctness, removed pixels become lung",
        (
            ("fidelity_lung/area_mif", "A MIF", False),
            ("fidelity_lung/area_lif", "A LIF", True),
            ("fidelity_lung/area", "A LIF − A MIF", True),
            ("box_lung/area", "A box", True),
            ("fidelity_lung/at_stake", "f(x) − f(all replaced)", None),
        ),
        "Score (logit or SD) × % of pixels, which become lung as around the nodule, most (MIF) or least (LIF) relevant "
        "first; box: Pearson × box side in units of 8 px at 224.",
    ),
    Layout(
        "Class discrimination",
        (
            ("discrimination/fidelity", "Δ fidelity", True),
            ("discrimination/box", "Δ box", True),
            ("discrimination_lung/fidelity", "Δ fidelity (lung)", True),
            ("discrimination_lung/box", "Δ box (lung)", True),
        ),
        "Own map minus other maps, both on the own output. A map that ignores the class scores exactly 0.",
    ),
    Layout(
        "SaCo",
        (("saco/saco", "SaCo", True), ("saco_lung/saco", "SaCo (lung)", True)),
        "Does more relevance mean more effect: 1 always, 0 as a random map, −1 the other way round.",
    ),
    Layout(
        "Compactness",
        (("compactness/value", "share below 5 %", True), ("compactness/on_grid", "the same, patch means", True)),
        "Share of cells with |S| < 0.05 max S: pixels of pixel maps, patches of others.",
    ),
    Layout(
        "ADCC",
        (
            ("adcc/adcc", "ADCC", True),
            ("adcc/average_drop", "average drop", False),
            ("adcc/coherency", "coherency", True),
            ("adcc/complexity", "complexity", False),
            ("adcc/increase", "increase in confidence", True),
        ),
        "Outputs with a probability only. The centred disc does not look at the image: its coherency is 1.",
    ),
    Layout(
        "Deletion, insertion, Sensitivity-n",
        (
            ("deletion/area_deletion", "deletion", False),
            ("deletion/area_insertion", "insertion", True),
            ("sensitivity_n/mean", "Sensitivity-n", True),
        ),
        "Deletion and insertion: area of the probability (raw output of a regression) over the share of cells.",
    ),
    Layout(
        "Localisation against the consensus",
        (
            ("localisation/positive_mass", "positive mass", True),
            ("localisation/absolute_mass", "absolute mass", True),
            ("localisation/rank_accuracy", "rank accuracy", True),
            ("localisation/iou", "IoU", True),
            ("localisation/auprc", "AUPRC", True),
            ("localisation/pointing", "pointing", True),
            ("localisation/pointing_2mm", "pointing, 2 mm", True),
        ),
        "Shares from 0 to 1. Agreement with the readers' contours does not prove that a map is faithful.",
    ),
    Layout(
        "Localisation against single readers",
        (
            ("readers/positive_mass", "positive mass", True),
            ("readers/rank_accuracy", "rank accuracy", True),
            ("readers/iou", "IoU", True),
            ("readers/auprc", "AUPRC", True),
        ),
        "Mean over the readers who marked the plane.",
    ),
    Layout(
        "Known causes",
        (
            ("causes/positive_mass", "positive mass", True),
            ("causes/absolute_mass", "absolute mass", True),
            ("causes/rank_accuracy", "rank accuracy", True),
            ("causes/auprc", "AUPRC", True),
            ("causes/pointing_2mm", "pointing, 2 mm", True),
        ),
        "Simulated CT: the voxels that carry the rating are known. Maps are read with the sign of the cause.",
    ),
    Layout(
        "Radial zones",
        (("radial/body", "body", None), ("radial/edge", "edge", None), ("radial/outside", "outside", None)),
        "Mean relevance, scaled by the case's largest, inside the nodule, at its boundary and around it.",
    ),
    Layout(
        "Sanity",
        (
            ("randomisation/spearman", "random weights: ρ", False),
            ("randomisation/spearman_abs", "random weights: ρ of |S|", False),
            ("randomisation/ssim", "random weights: SSIM", False),
            ("noise/spearman", "input noise: ρ", True),
            ("runs/spearman", "other seed: ρ", True),
        ),
        "Similarity with the original map: low is right with random weights, high with noise or another seed.",
    ),
    Layout(
        "Robustness",
        (
            ("attack/spearman", "attack on the output: ρ", True),
            ("map_attack/spearman", "attack on the map, output kept: ρ", True),
            ("window_up_20hu/spearman", "window +20 HU: ρ", True),
            ("window_down_20hu/spearman", "window −20 HU: ρ", True),
            ("kernel_sharp/spearman", "sharper kernel: ρ", True),
            ("kernel_smooth/spearman", "smoother kernel: ρ", True),
        ),
        "Spearman correlation of the map with that of the untouched image. A map may follow an output that an attack "
        "moved; it should stay where the output is kept, and where only the scan is another.",
    ),
    Layout(
        "What the outputs do there",
        tuple(
            (f"{name}/output_change", heading, None)
            for name, heading in (
                ("attack", "attack on the output"),
                ("window_up_20hu", "window +20 HU"),
                ("window_down_20hu", "window −20 HU"),
                ("kernel_sharp", "sharper kernel"),
                ("kernel_smooth", "smoother kernel"),
            )
        ),
        "Absolute change of the raw output (a logit, or SDs of the biomarker).",
    ),
)
