"""The probe's W&B run: the same tables and figures as the page; its files, and the features, as artifacts."""

import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from papsmear.probes import published
from papsmear.probes.foldspread import fold_rows
from papsmear.probes.report import Results
from papsmear.probes.scores import WEIGHTED
from papsmear.probes.tables import difference_rows, few_shot_rows, flat, protocol_rows
from papsmear.probes.transfer_tables import flat_transfer, published_transfer

if TYPE_CHECKING:
    import wandb


def _pixels(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)


def log_to_wandb(run: "wandb.Run", results: Results, drawn: Mapping[str, Figure], files: Sequence[Path]) -> None:
    """Tables, plots and summary figures into a W&B run, and two artifacts: the report's `files`, and the features."""
    import wandb

    weighted, per_class, theirs = [], [], []
    for set_name, scores in results.scores.items():
        for encoder, score in scores.items():
            weighted.append([set_name, encoder, score.k, score.weighted_f1.mean, score.weighted_f1.sd])
            for row, spread in {**score.class_f1, **score.side_f1}.items():
                per_class.append([set_name, encoder, row, spread.mean, spread.sd])
            run.summary[f"{set_name}/{encoder}/weighted_f1"] = score.weighted_f1.mean
            run.summary[f"{set_name}/{encoder}/k"] = score.k
        for encoder, (mean, sd) in published.WEIGHTED_F1.get(set_name, {}).items():
            theirs.append([set_name, encoder, mean / 100, sd / 100, published.SOURCE])
    run.log({
        "weighted_f1": wandb.Table(["set", "encoder", "k", "mean", "sd"], weighted),
        "class_f1": wandb.Table(["set", "encoder", "class", "mean", "sd"], per_class),
        "published_weighted_f1": wandb.Table(["set", "encoder", "mean", "sd", "source"], theirs),
        "protocols": _wandb_table(protocol_rows(results.protocols)),
        "differences": _wandb_table(difference_rows(results.protocols)),
        "few_shot": _wandb_table(few_shot_rows(results.few_shot)),
        **_transfer_tables(results),
        **_fold_table(results),
        **{name: wandb.Image(_pixels(figure)) for name, figure in drawn.items()},
    })  # fmt: skip
    artifact = wandb.Artifact(f"probe-report-{run.id}", type="report")
    for file in files:
        artifact.add_file(str(file))  # a copy: the file may be written anew before `wandb sync`
    run.log_artifact(artifact)
    if results.features:
        run.log_artifact(_features(run.id, results))


def _features(run_id: str, results: Results) -> "wandb.Artifact":
    """An npz for each encoder: the features (N, D) of each set and target, and the labels (N,) of their cells."""
    import wandb

    everything = results.sets | results.targets
    artifact = wandb.Artifact(f"probe-features-{run_id}", type="features")
    labels = {f"{name}_labels": cells.labels for name, cells in everything.items()}
    with tempfile.TemporaryDirectory(prefix="papsmear-") as folder:  # wandb takes a copy
        for encoder, features in results.features.items():
            file = Path(folder) / f"{re.sub(r'[^0-9A-Za-z_.-]+', '_', encoder)}.npz"
            np.savez(file, allow_pickle=False, **features, **labels)
            artifact.add_file(str(file))
    artifact.metadata = {name: [c.name for c in cells.classes] for name, cells in everything.items()}
    return artifact


def _fold_table(results: Results) -> "dict[str, wandb.Table]":
    """Weighted F1 over folds' encoders; none where no name stands for several."""
    import wandb

    if not results.folds:
        return {}
    keys = ("set", "encoder", "splits", "probe", "chosen", "as_published", "honest")
    spread = ("mean", "sd_folds", "sd_runs")
    rows = fold_rows(results.protocols, results.folds)
    lines = [[*(row[k] for k in keys), len(row["of"]), *(row["scores"][WEIGHTED][k] for k in spread)] for row in rows]
    return {"folds": wandb.Table(columns=[*keys, "encoders", *spread], data=lines)}


def _transfer_tables(results: Results) -> "dict[str, wandb.Table]":
    """The figures on the targets, and the published ones; none where there are no targets."""
    import wandb

    if not results.targets:
        return {}
    columns, lines = flat_transfer(results.transfer)
    theirs = [
        [target, fit, encoder, value / 100, published.SOURCE]
        for target, fits in published_transfer(results.targets).items()
        for fit, encoders in fits.items()
        for encoder, value in encoders.items()
    ]
    return {
        "transfer": wandb.Table(columns=[*columns], data=lines),
        "published_transfer": wandb.Table(["target", "fit", "encoder", "sensitivity", "source"], theirs),
    }


def _wandb_table(rows: list[dict[str, Any]]) -> "wandb.Table":
    import wandb

    columns, lines = flat(rows)
    return wandb.Table(columns=[*columns], data=lines)
