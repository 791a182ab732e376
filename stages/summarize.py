"""ROUGE of a recovered variant's summaries, after a training on articles with summaries if the profile has one.

Only the generated text is scored. For comparison: lead-3 and, if the profile asks for it, the notes' protocol.
"""

import statistics
from functools import partial
from pathlib import Path

from stages.core.architecture import opening, rules, tokens
from stages.core.evaluation import summaries
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.errors import UserError
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text.tokenizer import open_tokenizer, start_tokens
from stages.core.training.loop import train


def main(
    profile: str, variant: str, model: Path, tokenizer: Path, train_pairs: Path, test_pairs: Path, out: Path,
    predictions: Path,
) -> None:  # fmt: skip
    from stages.core.evaluation import rouge

    spec = params.section(profile, "summarize")
    if spec is None:  # the task has no summaries
        write_json(out, {})
        summaries.keep(predictions, [], [], [])
        return
    rules.validate_variant(profile, model)
    runtime = params.section(profile, "runtime")
    device = devices.start(runtime)
    tokenizer = open_tokenizer(tokenizer)
    articles, references = (column[: spec.articles] for column in summaries.read(test_pairs))
    if len(articles) < spec.articles:
        raise UserError(f"params.yaml: summarize.articles = {spec.articles}: there are only {len(articles)}")
    rouge.check(references)
    start, room = start_tokens(tokenizer), spec.context - spec.new_tokens
    prompts = summaries.prompts(tokenizer, articles, spec.format, room, start)
    watch = partial(progress, what=f"summarize {variant}")

    def load():
        return checkpoint.load(model)[0].to(device).model

    def summarise(seed):
        changed = load()
        if spec.training:
            pairs, autocast = summaries.read(train_pairs), devices.autocast(device, runtime.precision)
            learn(changed, tokenizer, pairs, spec, seed, autocast, watch)
        written = summaries.write(changed, prompts, spec, spec.new_tokens, spec.no_repeat_over, watch)
        return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]

    # Without a training nothing is random, and one seed is enough.
    found = [summarise(seed) for seed in (spec.training.seeds if spec.training else [None])]
    scores = [rouge.rouge(texts, references) for texts in found]
    figures = {kind: statistics.mean(score[kind] for score in scores) for kind in rouge.KINDS}
    for kind in rouge.KINDS:
        figures[f"{kind}_spread"] = statistics.stdev(s[kind] for s in scores) if len(scores) > 1 else 0.0
    leads = [rouge.lead(article) for article in articles]
    figures |= {f"lead3_{kind}": value for kind, value in rouge.rouge(leads, references).items()}
    if spec.seed_protocol:
        figures |= as_the_notes(load(), tokenizer, articles, references, spec, rouge.rouge, watch)
    environment = devices.environment(device, runtime.precision if spec.training else "float32")
    write_json(out, figures | {"articles": len(articles), "seeds": len(scores), "environment": environment})
    summaries.keep(predictions, references, found[0], leads)


def learn(model, tokenizer, pairs, spec, seed, autocast, watch):
    """Train all weights on pairs of articles and summaries, in place."""
    start, room = start_tokens(tokenizer), spec.context - spec.new_tokens
    prompts = summaries.prompts(tokenizer, pairs[0], spec.format, room, start)
    targets = summaries.targets(tokenizer, pairs[1], tokens.end_tokens(model), spec.new_tokens)
    rates = [(list(model.parameters()), spec.training.learning_rate)]
    objective = summaries.summary_loss(model, prompts, targets)
    options = {"weight": summaries.target_tokens(targets), "autocast": autocast, "watch": watch}
    train(model, len(prompts), objective, rates, spec.training, seed, **options)


def as_the_notes(model, tokenizer, articles, references, spec, score, watch) -> dict[str, float]:
    """ROUGE of short prompts together with their continuations, which scores the article's own words, too."""
    protocol, (before, after) = spec.seed_protocol, spec.format.split("{article}")
    around = sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after) if part)
    prompts = summaries.prompts(tokenizer, articles, spec.format, protocol.article_tokens + around)
    opening.check_fits(model, "summarize.seed_protocol", max(map(len, prompts)) + protocol.new_tokens)
    written = summaries.write(model, prompts, spec, protocol.new_tokens, "all", watch)
    texts = tokenizer.batch_decode([prompt + row for prompt, row in zip(prompts, written)], skip_special_tokens=True)
    found = score(texts, references, stemmer=False)
    return {f"seed_{kind}": found[kind] for kind in ("rouge1", "rouge2", "rougeL")}


if __name__ == "__main__":
    command.entry(main)
