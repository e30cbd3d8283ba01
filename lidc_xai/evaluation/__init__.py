"""How far may an explanation be believed: faithfulness, discrimination, sanity, localisation, and the benchmark.

Knows models' outputs and the estimators of ``lidc_xai.explain``, and nothing of where images come from: everything
takes tensors, and the benchmark any iterable of (images, targets, masks).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.evaluation.average_drop import adcc
    from lidc_xai.evaluation.benchmark import BenchmarkRun, run_benchmark
    from lidc_xai.evaluation.benchmark_options import BenchmarkOptions
    from lidc_xai.evaluation.benchmark_report import write_benchmark
    from lidc_xai.evaluation.blur_mask import blur_mask_test, two_probable
    from lidc_xai.evaluation.boxes import box_sensitivity
    from lidc_xai.evaluation.cases import Case, LazyCase
    from lidc_xai.evaluation.causes import cause_effects, cause_localisation, cause_sign
    from lidc_xai.evaluation.compactness_share import compactness
    from lidc_xai.evaluation.contours import against_readers, centred_disc_localisation, localisation, reader_agreement
    from lidc_xai.evaluation.curves import fidelity
    from lidc_xai.evaluation.deletion import deletion_insertion
    from lidc_xai.evaluation.discrimination import class_discrimination, wrong_class
    from lidc_xai.evaluation.epsilon import epsilon_perturbation
    from lidc_xai.evaluation.radial import radial_profile
    from lidc_xai.evaluation.randomisation import parameter_randomisation, randomised
    from lidc_xai.evaluation.results import Result
    from lidc_xai.evaluation.robustness import (
        attack_stability,
        noise_stability,
        run_stability,
        shift_invariance,
        shifted,
    )
    from lidc_xai.evaluation.sensitivity import sensitivity_n
    from lidc_xai.evaluation.similarity import compare_models, map_similarity, method_agreement, seed_agreement

# Modules are not called like the functions they hold: an imported submodule would hide the function of its name.
_WHERE = {
    "adcc": "average_drop",
    "against_readers": "contours",
    "attack_stability": "robustness",
    "BenchmarkOptions": "benchmark_options",
    "BenchmarkRun": "benchmark",
    "blur_mask_test": "blur_mask",
    "box_sensitivity": "boxes",
    "Case": "cases",
    "cause_effects": "causes",
    "cause_localisation": "causes",
    "cause_sign": "causes",
    "centred_disc_localisation": "contours",
    "class_discrimination": "discrimination",
    "compactness": "compactness_share",
    "compare_models": "similarity",
    "deletion_insertion": "deletion",
    "epsilon_perturbation": "epsilon",
    "fidelity": "curves",
    "LazyCase": "cases",
    "localisation": "contours",
    "map_similarity": "similarity",
    "method_agreement": "similarity",
    "noise_stability": "robustness",
    "parameter_randomisation": "randomisation",
    "radial_profile": "radial",
    "randomised": "randomisation",
    "reader_agreement": "contours",
    "Result": "results",
    "run_benchmark": "benchmark",
    "run_stability": "robustness",
    "seed_agreement": "similarity",
    "sensitivity_n": "sensitivity",
    "shift_invariance": "robustness",
    "shifted": "robustness",
    "two_probable": "blur_mask",
    "write_benchmark": "benchmark_report",
    "wrong_class": "discrimination",
}

__all__ = [
    "BenchmarkOptions",
    "BenchmarkRun",
    "Case",
    "LazyCase",
    "Result",
    "adcc",
    "against_readers",
    "attack_stability",
    "blur_mask_test",
    "box_sensitivity",
    "cause_effects",
    "cause_localisation",
    "cause_sign",
    "centred_disc_localisation",
    "class_discrimination",
    "compactness",
    "compare_models",
    "deletion_insertion",
    "epsilon_perturbation",
    "fidelity",
    "localisation",
    "map_similarity",
    "method_agreement",
    "noise_stability",
    "parameter_randomisation",
    "radial_profile",
    "randomised",
    "reader_agreement",
    "run_benchmark",
    "run_stability",
    "seed_agreement",
    "sensitivity_n",
    "shift_invariance",
    "shifted",
    "two_probable",
    "write_benchmark",
    "wrong_class",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
