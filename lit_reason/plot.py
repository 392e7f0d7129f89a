"""The picture of a run: reward, accuracy and length against the step."""

from __future__ import annotations

from pathlib import Path

from lit_reason.run_log import read_metrics

PANELS = (
    ("Reward", ("train/reward",)),
    ("Accuracy", ("train/accuracy", "val/accuracy")),
    ("Completion length (tokens)", ("train/length", "val/length")),
)
TITLES = {
    "train/reward": "training",
    "train/accuracy": "training, sampled",
    "val/accuracy": "held out, greedy",
    "train/length": "training",
    "val/length": "held out, greedy",
}


def draw_curve(metrics_csv: Path, png: Path) -> bool:
    """Draw `metrics.csv` as a PNG.

    Args:
        metrics_csv: what `RunLogger` wrote.
        png: where the picture goes.

    Returns:
        False, and no picture, when there is nothing to draw.
    """
    rows = read_metrics(metrics_csv)
    panels = [(title, [n for n in names if any(n in row for row in rows.values())]) for title, names in PANELS]
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        return False
    # The object interface of matplotlib's own Agg canvas: no display is asked for and no global backend is changed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            held_out = name.startswith("val/")
            points = [(step, row[name]) for step, row in sorted(rows.items()) if name in row]
            steps, values = zip(*points, strict=True)
            colour = "tab:orange" if held_out else "tab:blue"
            axes.plot(steps, values, color=colour, marker="o" if held_out else None, ms=4, label=TITLES[name])
            band = [(s, r[f"{name}_low"], r[f"{name}_high"]) for s, r in sorted(rows.items()) if f"{name}_low" in r]
            if band:
                axes.fill_between(*zip(*band, strict=True), color=colour, alpha=0.2, lw=0)
        if title == "Accuracy":
            axes.set_ylim(0, 1)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(png, dpi=150)
    return True
