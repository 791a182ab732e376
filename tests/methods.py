"""Every way to change a model, as a specification by its name: what must give the same on any device."""

from itertools import product

from stages.core.settings.surgeries import Collapse, Drop, LowRank, Prune, Share

SHARES = {
    f"share {alignment} {reference} {biases}": Share(
        method="share", alignment=alignment, reference=reference, base="regression", delta="weighted", rank=3,
        biases=biases, bias_correction=biases == "own",
    )
    for alignment, reference, biases in [("identity", "first", "shared"), ("cost", "centre", "own")]
} | {
    "share refitted": Share(
        method="share", reference="first", delta="joint", rank=3, bias_correction=True, repair="least_squares",
        refit_others=True,
    )
}  # fmt: skip
COLLAPSES = {
    f"collapse {base} {repair}": Collapse(
        method="collapse", alignment="pre_activation", reference="centre", base=base, repair=repair
    )
    for base, repair in [
        ("first", "none"), ("first", "differences"), ("mean", "scale"), ("regression", "least_squares"),
    ]
}  # fmt: skip
THIN = {
    f"low_rank {fit} {ranks}": LowRank(
        method="low_rank", fit=fit, ranks=ranks, bias_correction=fit == "weighted", target_parameters=0.8
    )
    for fit, ranks in product(("svd", "weighted"), ("equal", "filled"))
}
OTHERS = {
    "drop layers": Drop(method="drop", layers=2),
    "drop target": Drop(method="drop", target_parameters=0.9),
    "prune matrix": Prune(method="prune", scope="matrix", target_parameters=0.8),
    "prune all": Prune(method="prune", scope="all", target_parameters=0.8),
    "prune by input": Prune(method="prune", score="input", scope="row", target_parameters=0.8),
}
METHODS = SHARES | COLLAPSES | THIN | OTHERS
