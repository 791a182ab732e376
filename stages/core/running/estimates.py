"""About what a study will need of memory, disk and arithmetic, from its params and the shape of its model.

L is the number of the model's layers, d its width, f the neurons of an FFN. The factors that no formula gives were
measured here: profile small and SmolLM2-135M on one core of an AMD EPYC, GPT-2's shape in an earlier version.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stages.core.architecture import targets, windows
from stages.core.architecture.shape import Shape
from stages.core.running import quantities
from stages.core.running.counted import ALONE, COUNTED, amount
from stages.core.running.quantities import DOUBLE, FLOAT
from stages.core.settings.profiles import Profile
from stages.core.settings.recoveries import is_control
from stages.core.settings.surgeries import Collapse, LowRank, Share
from stages.core.settings.texts import Articles, Reviews
from stages.core.settings.trainings import Schedule
from stages.core.settings.variants import Variant
from stages.core.settings.windows import Best, Budget, Chosen, Forms, Layers
from stages.core.shrinking import limits

LIBRARIES = 0.5e9  # bytes: 0.4 after torch and transformers are imported, the rest what allocators keep in small stages
START = 1.0  # seconds of a core in `make repro`: a model opened, DVC's own work. By itself a stage imports for 4 more.
FIT = 7  # x f^3 operations to fit one layer of a group: factors of moments, eigenvectors, a few rounds
ASSIGNMENT = 1.5  # x f^3 operations of one Hungarian assignment
REACHED = 0.45  # of the speed of a float32 matrix product in numpy: 0.43 to 0.71 in forward passes and trainings
TRAINED, TAUGHT = 3, 5  # copies of the logits: to train, and what a teacher's add
KEPT = 2  # of an unfinished training that are kept: weights, their best, AdamW's two moments each


@dataclass(frozen=True)
class Cost:
    """memory: bytes of the stage's process at its peak. disk: bytes of its outs, in all variants.

    work: floating-point operations in all variants. runs: processes. unknown: the key that leaves the amount of text,
    and with it the work, open ("": none). scratch: bytes on disk while one process runs, beside outs and cache.
    """

    memory: float
    disk: float = 0
    work: float = 0
    runs: int = 1
    unknown: str = ""
    scratch: float = 0

    def seconds(self, speed: float) -> float:
        """The time of one core that does `speed` operations a second in a matrix product."""
        return self.work / (REACHED * speed) + self.runs * START


def estimate(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> dict[str, Cost]:
    """Stage -> what it costs, for the stages that cost something."""
    before = (base, extract, correlate, align, control)
    chain = (search, surgery, finetune, perplexity, sentiment, summarize, generation)
    # A section that is null means nothing for the task.
    there = [part for part in before + chain if getattr(profile, part.__name__, part) is not None]
    return {part.__name__: part(profile, variants, shape) for part in there}


def base(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """Two copies of the weights at once: the file's and the model's."""
    weights = FLOAT * shape.parameters
    return Cost(LIBRARIES + 2 * weights, weights)


def extract(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """Activations: sites x tokens x L f floats, all in memory until their file is closed. Moments: L (d^2 + f^2).

    Of each batch every layer keeps two sites of f and one of d values for each token.
    """
    spec = profile.extract
    moments = shape.layers * DOUBLE * (shape.width**2 + shape.hidden**2)
    table = len(spec.sites) * spec.max_tokens * shape.layers * FLOAT * shape.hidden
    batch = spec.batch_size * COUNTED[profile.task].length(spec, shape)
    kept = sum(part.depth * share * (2 * part.hidden + part.width) for part, share in quantities.shares(shape))
    seen = batch * FLOAT * (kept + shape.hidden)
    spare = 2 * DOUBLE * shape.hidden**2
    products = spec.moment_tokens * shape.layers * (shape.width**2 + shape.hidden**2)  # symmetric: half of each
    return Cost(
        LIBRARIES + FLOAT * shape.parameters + moments + table + seen + spare,
        moments + table + DOUBLE * spec.moment_tokens,
        quantities.forward(shape, max(spec.max_tokens, spec.moment_tokens)) + products,
    )


def correlate(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """f^2 floats for each site and every two layers nearer than `reach`; in memory those of one layer.

    The activations of these layers are there standardised, those of one layer also as the file has them.
    """
    reach, square = min(profile.correlate.reach, shape.layers), shape.hidden**2
    columns = profile.extract.max_tokens * (reach + 4) * FLOAT * shape.hidden
    pairs = len(profile.extract.sites) * quantities.near(shape, reach)
    return Cost(
        LIBRARIES + columns + (reach + 1) * square * FLOAT,
        pairs * FLOAT * square,
        2 * pairs * profile.extract.max_tokens * square,
    )


def align(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """By each site and by cost, against the first layer and the centre: a permutation for every two near layers.

    By correlation, a sum of matrices for each window that holds a layer; by cost, two FFNs for each. Every thread holds
    one matrix in float64, and as many wait in float32; without `runtime.threads` two are assumed.
    """
    reach, square = min(profile.correlate.reach, shape.layers), shape.hidden**2
    ways = 2 * (len(profile.extract.sites) + 1)
    held = reach * FLOAT * max(square, 2 * shape.ffn_matrices) + 2 * DOUBLE * (shape.width**2 + square)
    solving = (profile.runtime.threads or 2) * (DOUBLE + FLOAT) * square
    pairs = quantities.near(shape, reach)
    errors = 2 * sum(2 * d_out * d_in * (shape.hidden + 2 * shape.width) for d_out, d_in in shape.matrices.values())
    return Cost(
        LIBRARIES + FLOAT * shape.parameters + held + solving,
        ways * pairs * DOUBLE * shape.hidden,
        pairs * (ways * ASSIGNMENT * shape.hidden**3 + errors),
    )


def search(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """Every window of the sizes asked for is built and scored, and the shortlist of layouts after them.

    The original's residual streams and the layers' moments stay in memory, up to STATES and MOMENTS bytes.
    """
    spec, counted = profile.search, COUNTED[profile.task]
    tokens = amount(counted, spec, shape) or 0
    every = [_tried(variant.windows, shape) for variant in variants.values()]
    scored, compared, fitted, refitted = map(sum, zip(*every))
    return Cost(
        LIBRARIES
        + 2 * FLOAT * shape.parameters
        + min(limits.STATES, shape.layers * FLOAT * shape.width * tokens)
        + min(limits.MOMENTS, shape.layers * 4 * DOUBLE * (shape.width**2 + shape.hidden**2))
        + max(quantities.scoring(shape, spec.batch_size, counted.answers(spec)), quantities.fit(shape, variants)),
        work=quantities.forward(shape, scored * tokens)
        + quantities.forward(shape, compared * min(limits.COMPARED * counted.each(shape), tokens))
        + fitted * FIT * shape.hidden**3
        + quantities.repairs(shape, refitted * profile.extract.moment_tokens),
        runs=len(variants),
    )


def surgery(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """Every variant's checkpoint, and the fit of each layer that it changes; a repair reads the calibration text."""
    fitted = sum(
        shape.layers for variant in variants.values() if isinstance(variant.surgery, Share | Collapse | LowRank)
    )
    repaired = sum(
        getattr(variant.surgery, "reads_text", False) or getattr(variant.windows, "refit", False)
        for variant in variants.values()
    )
    return Cost(
        LIBRARIES + 2 * FLOAT * shape.parameters + quantities.fit(shape, variants),
        FLOAT * sum(quantities.stored(variant, shape) for variant in variants.values()),
        fitted * FIT * shape.hidden**3 + quantities.repairs(shape, repaired * profile.extract.moment_tokens),
        len(variants),
    )


def control(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """One recovery without a teacher."""
    return _recoveries(profile, shape, [shape.parameters], trained=1, taught=0)


def finetune(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """A recovery for each variant that is not the control itself."""
    trained = [v for v in variants.values() if not is_control(v.surgery, v.finetune)]
    taught = [v for v in trained if v.finetune.distill or v.finetune.warm_start]
    return _recoveries(
        profile, shape, [quantities.stored(v, shape) for v in variants.values()], len(trained), len(taught)
    )


def perplexity(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """Before and after training, every token in as many windows as overlap there; three numbers kept of each."""
    spec, counted = profile.perplexity, COUNTED[profile.task]
    rows, answers = getattr(spec, counted.key), counted.answers(spec)
    return Cost(
        LIBRARIES + FLOAT * shape.parameters + quantities.scoring(shape, spec.batch_size, answers),
        len(variants) * 3 * FLOAT * (rows or 0),
        quantities.forward(shape, len(variants) * 2 * counted.measured(profile, shape)),
        runs=len(variants),
        unknown="" if rows else f"perplexity.{counted.key}",
    )


def sentiment(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """Features of all rows, and a training unless the head alone learns; rows as long as they may be."""
    spec, reviews = profile.sentiment, profile.reviews
    generated = isinstance(reviews.source, Reviews)
    train, test = reviews.max_train, reviews.max_test
    if generated:
        train, test = (min(n, most or n) for n, most in ((reviews.source.train, train), (reviews.source.test, test)))
    learnt = 0 if spec.train == "head" else 3 * spec.epochs * (train or 0)
    rows = len(spec.seeds) * ((train or 0) + (test or 0) + learnt)
    unknown = [f"reviews.max_{split}" for split, most in (("train", train), ("test", test)) if most is None]
    alone = LIBRARIES + FLOAT * shape.parameters
    return Cost(
        alone if spec.train == "head" else _training(shape, spec, reviews.max_tokens),
        work=quantities.forward(shape, len(variants) * rows * reviews.max_tokens),
        runs=len(variants),
        unknown=unknown[0] if unknown else "",
    )


def summarize(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """Beams for each article, after a training on pairs where there is one."""
    spec, source = profile.summarize, profile.articles.source
    # Beams of a batch share one reading of the weights.
    steps = spec.articles / spec.batch_size * spec.new_tokens * ALONE + spec.articles * spec.beams * spec.new_tokens
    tokens, unknown, seeds = spec.articles * spec.context + steps, "", 1
    memory = LIBRARIES + FLOAT * shape.parameters + quantities.beams(shape, spec.batch_size * spec.beams, spec.context)
    if spec.training:
        seeds, memory = len(spec.training.seeds), max(memory, _training(shape, spec.training, spec.context))
        if isinstance(source, Articles):
            tokens += 3 * spec.training.epochs * source.train * spec.context
        else:
            unknown = "articles.source.train"
    return Cost(
        memory, work=quantities.forward(shape, len(variants) * seeds * tokens), runs=len(variants), unknown=unknown
    )


def generation(profile: Profile, variants: Mapping[str, Variant], shape: Shape) -> Cost:
    """The stages `generate` and `latency`: tokens one by one, twice before and after; rounds beside the original.

    Of images: forward passes, before and after, and rounds at every size of a batch.
    """
    counted = COUNTED[profile.task]
    return Cost(
        LIBRARIES + 2 * FLOAT * shape.parameters + quantities.activations(shape, counted.together(profile, shape)),
        work=quantities.forward(shape, len(variants) * counted.generated(profile, shape)),
        runs=2 * len(variants),
    )


def _tried(chosen: Chosen, shape: Shape) -> tuple[int, int, int, int]:
    """Of a search: models that are scored, models that are compared on COMPARED, layers fitted, models fitted again."""
    if isinstance(chosen, Layers):
        # The layers of least influence, then the shortlist for every layer that goes.
        return 2 + chosen.shortlist * targets.layers(shape, chosen.target_parameters), 0, 0, 0
    if isinstance(chosen, Forms):
        # Every matrix alone twice in each form, half a pass each on average; then plans.
        alone = {"low_rank" if form == "share" else form for form in chosen.forms} - {"drop"}
        scored, compared, fitted = 3 + 4 * len(alone), 1 + len(alone) * shape.layers * len(shape.matrices), 0
        if "drop" in chosen.forms:
            # Four are tried before each layer goes; then their divergence, and that of those by influence.
            scored += 2 + 4 * targets.layers(shape, chosen.target_parameters)
            compared += 1 + 2 * targets.layers(shape, chosen.target_parameters)
        if "share" in chosen.forms:
            single = windows.contiguous(shape.layers, chosen.sizes, (), shape.borders)
            scored += len(single) + windows.SPARE * 4 + 28  # layouts within the budget, and mixtures
            fitted = sum(last - first + 1 for first, last in single) + windows.SPARE * 4 * chosen.size
        return scored, compared, fitted, quantities.sets(chosen.forms) if chosen.refit else 0
    if not isinstance(chosen, Best | Budget):
        return 0, 0, 0, 0
    single = windows.contiguous(shape.layers, chosen.sizes, chosen.exclude_layers, shape.borders)
    layouts = windows.SPARE * chosen.shortlist if isinstance(chosen, Budget) else chosen.shortlist
    layouts = layouts if isinstance(chosen, Budget) or chosen.count > 1 else 0
    fitted = sum(last - first + 1 for first, last in single) + layouts * chosen.size
    return 1 + len(single) + layouts, 0, fitted, 0


def _recoveries(profile: Profile, shape: Shape, sizes: list[int], trained: int, taught: int) -> Cost:
    """Weights, gradients, AdamW's two moments, the best state so far; a teacher; one batch's activations and logits.

    A checkpoint for each seed, of models that store `sizes`; as many are `trained`, with `train: all`, and `taught`.
    """
    spec = profile.finetune
    counted = COUNTED[profile.task]
    batch, budget = spec.batch_size * counted.length(spec, shape), amount(counted, spec, shape)
    tokens = spec.epochs * (budget or 0) * len(spec.seeds)
    evaluations = (1 + spec.validation.times) * (amount(counted, spec.validation, shape) or 0) * len(spec.seeds)
    return Cost(
        LIBRARIES
        + (5 + bool(taught)) * FLOAT * shape.parameters
        + quantities.activations(shape, batch)
        + spec.batch_size * counted.answers(spec) * FLOAT * shape.vocabulary * (TRAINED + (TAUGHT if taught else 0)),
        FLOAT * len(spec.seeds) * sum(sizes),
        quantities.forward(shape, trained * (3 * tokens + evaluations) + taught * tokens),
        len(sizes),
        "" if budget else f"finetune.{counted.key}",
        KEPT * 4 * FLOAT * shape.parameters,
    )


def _training(shape: Shape, recipe: Schedule, length: int) -> float:
    """As `finetune`, without a state to go back to and with logits of few positions."""
    return LIBRARIES + 4 * FLOAT * shape.parameters + quantities.activations(shape, recipe.batch_size * length)
