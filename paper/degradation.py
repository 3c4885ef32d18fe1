"""The degradation experiment: plain against residual networks over depths (section 4.2)."""

from paper import experiment, numbers, plots, result


def entries(families, depths):
    """The grid: every depth of every family ('plain', 'resnet'), shortcuts without parameters.

    Option A is what the CIFAR networks have anyway, and figure 4's (section 4.1): the plain and the
    residual network of a depth have the same parameters.
    """
    return [
        experiment.Entry(f"{family}{depth}", f"{family}{depth}", {"shortcut": "A"})
        for family in families
        for depth in depths
    ]


def run(args, families, title, panels):
    """Trains the grid and publishes it with a figure `<out>/<args.name>.svg`.

    Args:
      args: parsed options of `experiment.parser` with depths.
      families: of `entries`.
      title: of the page.
      panels: `[(title of the panel, function name → whether it is drawn there)]`.
    """
    runs, notes = experiment.train_grid(args, entries(families, args.depths))
    summary = experiment.summarise(runs)
    names = list(summary)
    figure = draw(runs, names, panels, args.out, args.name)
    return result.publish(
        args.out,
        args.name,
        title,
        experiment.header(args, notes, runs),
        tables(names, summary, args.depths),
        figures=[figure],
        summary=summary,
        runs=runs,
    )


def degradation(summary, depths):
    """Deepest minus shallowest, in points, per family: `{'plain': {'test', 'train'}, …}`.

    Positive: the deeper network is worse. On training error too, that is degradation and not
    overfitting.
    """
    found = {}
    for family in ("plain", "resnet"):
        ends = [summary.get(f"{family}{depth}") for depth in (min(depths), max(depths))]
        if all(ends) and min(depths) < max(depths):
            shallow, deep = ends
            found[family] = {
                "shallow": min(depths),
                "deep": max(depths),
                "test": deep["mean"] - shallow["mean"],
                "train": deep["train"] - shallow["train"],
            }
    return found


def tables(names, summary, depths):
    """Every network beside the paper's CIFAR-10 error; what depth adds, deepest − shallowest."""
    rows = []
    for name in names:
        mine, paper = summary.get(name), numbers.TABLE6.get(name)
        if name == "plain110":
            paper = f"> {numbers.PLAIN110_AT_LEAST:.0f}"
        train = mine["train"] if mine else None
        rows.append([name, train, result.ours(mine), paper, result.difference(mine, paper)])
    columns = ["network", "training error (%)", "test error (%)", "paper (%)", "difference"]
    listed = [result.table("", columns, rows)]
    gaps = [
        [family, f"{g['shallow']} → {g['deep']}", f"{g['train']:+.2f}", f"{g['test']:+.2f}"]
        for family, g in degradation(summary, depths).items()
    ]
    if gaps:
        columns = ["family", "depth", "training error (points)", "test error (points)"]
        listed.append(result.table("What depth adds to the error", columns, gaps))
    return listed


def draw(runs, names, panels, out, file_name):
    """Draws one panel of error curves each; returns the file's name."""
    plt = plots.pyplot()
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 4), sharey=True, squeeze=False
    )
    for axis, (title, shown) in zip(axes[0], panels, strict=True):
        plots.error_curves(axis, runs, [n for n in names if shown(n)], title)
    return plots.save(figure, out, file_name)
