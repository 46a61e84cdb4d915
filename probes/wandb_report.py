"""A W&B Report of a probe run: the published and the honest figures as text, and the run's plots as panels.

The page is built without the network; only `save` needs a login. The library is imported when it is wanted: importing
it takes a second, and warns about its own use of pydantic.
"""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from papsmear import __version__
from papsmear.page import RESEARCH_USE_ONLY
from papsmear.probes import published
from papsmear.probes.report import Results
from papsmear.probes.results import LINEAR, Protocol
from papsmear.progress import say

if TYPE_CHECKING:
    import wandb

_PLOTS = ("weighted_f1", "f1_by_k", "few_shot")


def write_report(run: "wandb.Run", results: Results) -> str | None:
    """Writes the page beside an online run and gives its address; where that cannot be, a line says so."""
    if run.offline or run.disabled:
        say(
            "W&B report: skipped, since this run is not online; log in with `wandb login` (or WANDB_API_KEY), unset "
            "WANDB_MODE, and start the command again: features are kept"
        )
        return None
    try:
        report = build_report(results, run.entity, run.project, run.id)
        report.save()
    except Exception as error:  # the network, the server and the library have errors of many kinds
        say(
            f"W&B report: not written ({' '.join(str(error).split()) or type(error).__name__}); the run has all figures"
        )
        return None
    say(f"W&B report: {report.url}")
    return str(report.url)


def build_report(results: Results, entity: str, project: str, run_id: str) -> Any:
    """The page as a `wandb_workspaces.reports.v2.Report`, not saved."""
    wr = _library()
    blocks: list[Any] = [wr.MarkdownBlock(text=_opening(results)), wr.TableOfContents()]
    for name, cells in results.sets.items():
        blocks += [
            wr.H1(f"{cells.title}: {len(cells.labels)} cells"),
            wr.MarkdownBlock(text=figures_table(results, name)),
        ]
        if name in published.WEIGHTED_F1:
            blocks.append(wr.MarkdownBlock(text=published_table(name)))
        kinds = [f"{name}/{plot}" for plot in _PLOTS]
        kinds += [f"{name}/{kind}/{encoder}" for kind in ("confusion", "neighbours") for encoder in results.cards]
        blocks.append(_panels(wr, entity, project, run_id, kinds))
    if results.transfer:
        blocks += [wr.H1("Transfer"), wr.MarkdownBlock(text=transfer_table(results))]
    blocks += [wr.H1("Maps of the features: t-SNE")]
    blocks.append(_panels(wr, entity, project, run_id, [f"map/{encoder}" for encoder in results.cards]))
    return wr.Report(
        project=project,
        entity=entity,
        title=f"Probe report: {', '.join(results.cards)}",
        description=f"Frozen encoders on labelled cells. {RESEARCH_USE_ONLY}",
        blocks=blocks,
        width="fluid",
    )


def _library() -> Any:
    """wandb_workspaces.reports.v2, imported without its own warnings."""
    from pydantic.warnings import PydanticDeprecatedSince20

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PydanticDeprecatedSince20)
        import wandb_workspaces.reports.v2 as wr
    return wr


def _panels(wr: Any, entity: str, project: str, run_id: str, media: list[str]) -> Any:
    """The run's pictures, one panel each, two beside each other."""
    runs = wr.Runset(entity=entity, project=project, name="this report's run", filters=f"Metric('ID') == '{run_id}'")
    panels = [
        wr.MediaBrowser(title=key, media_keys=[key], num_columns=1, layout=wr.Layout(x=12 * (i % 2), w=12, h=10))
        for i, key in enumerate(media)
    ]
    return wr.PanelGrid(runsets=[runs], panels=panels)


def _opening(results: Results) -> str:
    lines = [
        f"Made by papsmear {__version__}. {RESEARCH_USE_ONLY}",
        "**As published**: random splits, k chosen on the test part; both flatter. **Honest**: no source picture on "
        "both sides, k or C chosen inside the training part. F1 in percent, mean ± sd over "
        f"{results.runs} splits (seed {results.seed}), bootstrap 95 % interval in brackets.",
    ]
    for name, run in results.pretraining.items():
        told = f"[{run['id']}]({run['url']})" if "url" in run else run["id"]
        lines.append(f"- {name}: pretrained in the W&B run {told}")
    lines += [f"- **LEAK**: {', '.join(names)} trained on slides of {of}" for of, names in results.leaks.items()]
    return "\n\n".join(lines)


def figures_table(results: Results, name: str) -> str:
    """Weighted F1 of each encoder on a set: as published, and by the honest protocols, in Markdown."""
    of_set = results.protocols[name]
    order = next(iter(of_set.values()), {})
    shown = [p for p in order if p.as_published or (p.honest and p.probe in ("k-NN, plain votes", LINEAR))]
    rows = [[encoder, *(_figure(of, p) for p in shown)] for encoder, of in of_set.items()]
    return _markdown(
        ["encoder", *(f"{p.probe}, {'as published' if p.as_published else 'honest'}" for p in shown)], rows
    )


def published_table(name: str) -> str:
    """The study's own weighted F1 on a set, in Markdown."""
    rows = [[encoder, f"{mean:.1f} ± {sd:.1f}"] for encoder, (mean, sd) in published.WEIGHTED_F1[name].items()]
    return _markdown(["published encoder", f"published figure, not measured here ({published.SOURCE})"], rows)


def transfer_table(results: Results) -> str:
    """What probes fitted on public sets give on the targets, in Markdown."""
    metrics = ("sensitivity", "specificity", "auc", "f1")
    rows = [
        [row.encoder, " + ".join(row.fit), row.target + (" LEAK" if row.leak else "")]
        + [f"{100 * row.scores[metric][0]:.1f}" if metric in row.scores else "–" for metric in metrics]
        for row in results.transfer
    ]
    return _markdown(["encoder", "fitted on", "tested on", *metrics], rows)


def _figure(of_encoder: Any, protocol: Protocol) -> str:
    found = of_encoder[protocol]
    low, high = found.intervals["weighted F1"]
    spread = found.weighted_f1
    return f"{100 * spread.mean:.1f} ± {100 * spread.sd:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)
