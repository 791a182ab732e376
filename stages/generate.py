"""Let a variant continue fixed prompts, before and after fine-tuning: greedy, and once sampled with a seed."""

from pathlib import Path

from stages.core import sharing
from stages.core.architecture import models, rules
from stages.core.process import runtime
from stages.core.process.artifacts import write_json
from stages.core.settings import params


def main(profile: str, variant: str, before: Path, after: Path, tokenizer: Path, out: Path) -> None:
    import torch

    rules.door(profile, after)
    device = runtime.start(params.section(profile, "runtime"))
    spec = params.section(profile, "generate")
    words = models.open_tokenizer(tokenizer)
    ways = {
        "greedy": {"do_sample": False},
        "sampled": {"do_sample": True, "temperature": spec.temperature, "top_k": spec.top_k},
    }
    samples = []
    for stage, folder in {"before": before, "after": after}.items():
        model = sharing.load(folder)[0].to(device)
        for prompt in runtime.progress(spec.prompts, f"generate {variant} {stage}"):
            ids = torch.tensor([words(prompt, add_special_tokens=False)["input_ids"]], device=device)
            models.check_fits(model, f"prompt {prompt!r} + generate.new_tokens", ids.shape[1] + spec.new_tokens)
            for way, options in ways.items():
                torch.manual_seed(spec.seed)
                written = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=spec.new_tokens,
                    pad_token_id=words.pad_token_id or words.eos_token_id or 0,
                    **options,
                )
                text = words.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
                samples.append({"stage": stage, "way": way, "prompt": prompt, "continuation": text})
    write_json(out, samples)


if __name__ == "__main__":
    runtime.entry(main)
