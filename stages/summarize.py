"""ROUGE of a recovered variant's summaries, after a training on pairs where the profile has one.

Only what the model writes is scored; beside it stand lead-3 and, where asked for, the seeds' protocol.
"""

import statistics
from pathlib import Path

from stages.core.architecture import opening, rules, tokens
from stages.core.evaluation import summaries
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.errors import UserError
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text.tokenizer import open_tokenizer
from stages.core.training.loop import train


def main(
    profile: str, variant: str, model: Path, tokenizer: Path, train_pairs: Path, test_pairs: Path, out: Path,
    predictions: Path,
) -> None:  # fmt: skip
    from stages.core.evaluation import rouge

    rules.validate(profile, model)
    runtime = params.section(profile, "runtime")
    device = devices.start(runtime)
    spec = params.section(profile, "summarize")
    tokenizer = open_tokenizer(tokenizer)
    articles, wanted = (column[: spec.articles] for column in summaries.read(test_pairs))
    if len(articles) < spec.articles:
        raise UserError(f"params.yaml: summarize.articles = {spec.articles}: there are only {len(articles)}")
    rouge.check(wanted)
    asked = summaries.prompts(tokenizer, articles, spec.format, spec.context - spec.new_tokens)
    watch = lambda batches: progress(batches, f"summarize {variant}")  # noqa: E731

    def opened():
        return checkpoint.load(model)[0].to(device)

    def summarise(seed):
        changed = opened()
        if spec.training:
            pairs, autocast = summaries.read(train_pairs), devices.autocast(device, runtime.precision)
            learn(changed, tokenizer, pairs, spec, seed, autocast, watch)
        written = summaries.write(changed, asked, spec, spec.new_tokens, spec.no_repeat_over, watch)
        return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]

    # Without a training nothing is drawn: one seed says all.
    found = [summarise(seed) for seed in (spec.training.seeds if spec.training else [None])]
    scores = [rouge.rouge(texts, wanted) for texts in found]
    figures = {kind: statistics.mean(score[kind] for score in scores) for kind in rouge.KINDS}
    for kind in rouge.KINDS:
        figures[f"{kind}_spread"] = statistics.stdev(s[kind] for s in scores) if len(scores) > 1 else 0.0
    leads = [rouge.lead(article) for article in articles]
    figures |= {f"lead3_{kind}": value for kind, value in rouge.rouge(leads, wanted).items()}
    if spec.seed_protocol:
        figures |= as_the_seeds(opened(), tokenizer, articles, wanted, spec, rouge.rouge, watch)
    environment = devices.environment(device, runtime.precision if spec.training else "float32")
    write_json(out, figures | {"articles": len(articles), "seeds": len(scores), "environment": environment})
    summaries.keep(predictions, wanted, found[0], leads)


def learn(model, tokenizer, pairs, spec, seed, autocast, watch):
    """Train all weights on article/summary pairs, in place."""
    asked = summaries.prompts(tokenizer, pairs[0], spec.format, spec.context - spec.new_tokens)
    wanted = summaries.targets(tokenizer, pairs[1], tokens.end_tokens(model), spec.new_tokens)
    rates = [(list(model.parameters()), spec.training.learning_rate)]
    objective = summaries.summary_loss(model, asked, wanted)
    train(model, len(asked), objective, rates, spec.training, seed, autocast=autocast, watch=watch)


def as_the_seeds(model, tokenizer, articles, wanted, spec, score, watch) -> dict[str, float]:
    """ROUGE of short prompts with what follows them: much of a summary's score is then its article's own words."""
    protocol, (before, after) = spec.seed_protocol, spec.format.split("{article}")
    around = sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after) if part)
    asked = summaries.prompts(tokenizer, articles, spec.format, protocol.article_tokens + around)
    opening.check_fits(model, "summarize.seed_protocol", max(map(len, asked)) + protocol.new_tokens)
    written = summaries.write(model, asked, spec, protocol.new_tokens, "all", watch)
    texts = tokenizer.batch_decode([a + w for a, w in zip(asked, written)], skip_special_tokens=True)
    found = score(texts, wanted, stemmer=False)
    return {f"seed_{kind}": found[kind] for kind in ("rouge1", "rouge2", "rougeL")}


if __name__ == "__main__":
    command.entry(main)
