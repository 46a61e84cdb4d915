"""The figures that a probe run prints on standard output; all others stand in its report."""

from rich.console import Console
from rich.table import Table

from papsmear.probes.foldspread import FoldSpread, of_set
from papsmear.probes.report import Results, best_encoder
from papsmear.probes.results import HONEST_KNN
from papsmear.probes.scores import WEIGHTED, Spread


def print_table(results: Results) -> None:
    """Weighted F1 of each encoder and set, on standard output: by the published protocol, and by the honest one."""
    table = Table("encoder", title="Weighted F1, % (k-NN, plain votes)", title_justify="left")
    for name in results.sets:
        table.add_column(f"{results.sets[name].title}, as published", justify="right")
        table.add_column("k", justify="right")
        table.add_column("honest", justify="right")
    for encoder in results.cards:
        row = [encoder]
        for name, found in results.scores.items():
            score, honest = found[encoder], results.protocols[name][encoder].get(HONEST_KNN)
            bold = "[bold]" if encoder == best_encoder(found) else ""
            row += [
                f"{bold}{_percent(score.weighted_f1)}",
                str(score.k),
                _percent(honest.weighted_f1) if honest else "–",
            ]
        table.add_row(*row)
    for name, members in results.folds.items():
        if any(member in results.cards for member in members):
            table.add_row(*_fold_row(results, name), style="italic")
    table.caption = (
        "as published: random splits, k chosen on the test part; honest: splits by source picture, k chosen inside the "
        "training part"
    )
    Console().print(table)


def _fold_row(results: Results, name: str) -> list[str]:
    """The row of a name that stands for folds' encoders: mean ± sd over them."""
    row = [f"{name}: mean ± sd over folds' encoders"]
    for found in results.protocols.values():
        spreads = of_set(found, results.folds)[name]
        published = next(scores[WEIGHTED] for protocol, scores in spreads.items() if protocol.as_published)
        honest = spreads.get(HONEST_KNN)
        row += [_percent(published), "", _percent(honest[WEIGHTED]) if honest else "–"]
    return row


def _percent(spread: Spread | FoldSpread) -> str:
    return f"{100 * spread.mean:.1f} ± {100 * spread.sd:.1f}"
