"""Continue fixed prompts with a variant, before and after fine-tuning: greedily, and sampled once with a seed."""

from pathlib import Path

from stages.core.architecture import opening, rules
from stages.core.architecture.tokens import pad_token
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text.tokenizer import open_tokenizer


def main(profile: str, variant: str, before: Path, after: Path, tokenizer: Path, out: Path) -> None:
    import torch

    rules.validate_variant(profile, after)
    device = devices.start(params.section(profile, "runtime"))
    spec = params.section(profile, "generate")
    tokenizer = open_tokenizer(tokenizer)
    ways = {
        "greedy": {"do_sample": False},
        "sampled": {"do_sample": True, "temperature": spec.temperature, "top_k": spec.top_k},
    }
    samples = []
    for stage, folder in {"before": before, "after": after}.items():
        model = checkpoint.load(folder)[0].to(device).model
        for prompt in progress(spec.prompts, f"generate {variant} {stage}"):
            ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]], device=device)
            opening.check_fits(model, f"prompt {prompt!r} + generate.new_tokens", ids.shape[1] + spec.new_tokens)
            for way, options in ways.items():
                torch.manual_seed(spec.seed)
                written = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=spec.new_tokens,
                    pad_token_id=pad_token(model),
                    **options,
                )
                text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
                samples.append({"stage": stage, "way": way, "prompt": prompt, "continuation": text})
    write_json(out, samples)


if __name__ == "__main__":
    command.entry(main)
