"""``lidc-xai demo``: everything once, on simulated patients."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from lidc_xai.commands.common import need_out, verb
from lidc_xai.config import Config
from lidc_xai.run import Run


class DemoConfig(Config):
    """Run every step once on simulated patients.

    Simulated DICOM, crops, a small model, predictions, maps and the report, into --out (default: runs/demo). Steps that
    are done already are not repeated.
    """

    tiny: bool = Field(False, description="A few nodules and one epoch: shows the steps, learns nothing.")
    epochs: int | None = Field(None, ge=1, description="Epochs of training; 20 by default.")
    limit: int | None = Field(None, ge=1, description="At most so many nodules to train on, and as DICOM patients.")
    jobs: int = Field(2, ge=1, description="Processes for simulation and report.")
    pdf: bool = Field(True, description="Also write PDF; off with --set pdf=false.")


@verb("lidc-xai demo --out runs/demo")
def demo(config: DemoConfig, run: Run) -> None:
    """Run and say where the report is."""
    config = config.model_copy(update={"out": config.out or Path("runs/demo")})
    out = run.out = need_out(config)
    from lidc_xai.demo import DemoPlan, run_demo

    plan = (DemoPlan().tiny() if config.tiny else DemoPlan()).limited(config.epochs, config.limit)
    result = run_demo(out, plan, config.seed, config.device, config.jobs, config.pdf)
    run.results = result.figures
    for line in result.lines:
        print(line)
    print(f"Report: {result.index.resolve()}")
