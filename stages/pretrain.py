"""Make the bundled model of profile `small`: a 12-layer GPT-2 trained on generated stories.

The stage is frozen in dvc.yaml and its result is in git. `dvc unfreeze pretrain && dvc repro` trains the model anew.
"""

from pathlib import Path

from stages.core.process import command
from stages.core.process.artifacts import replacing
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.settings.trainings import Schedule
from stages.core.tasks.language import next_token_loss
from stages.core.text import corpus, sources
from stages.core.training.loop import train


def main(lexicon: Path, out: Path) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    spec = params.pretrain()
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    rows = sources.generated(lexicon, spec.seed, "pretrain", spec.stories)
    pieces = ByteLevelBPETokenizer()
    end = "<|endoftext|>"
    pieces.train_from_iterator(rows[:20_000], vocab_size=spec.vocabulary, special_tokens=[end], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, eos_token=end, bos_token=end, unk_token=end, model_max_length=spec.context
    )
    config = GPT2Config(
        vocab_size=spec.vocabulary,
        n_positions=spec.context,
        n_embd=spec.width,
        n_layer=spec.layers,
        n_head=spec.heads,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own GELU under its fused name: the same values, faster
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    text = corpus.pack(torch.from_numpy(corpus.tokenise(tokenizer, rows)).long(), spec.context)

    def objective(batch):
        loss = next_token_loss(model(text[batch], use_cache=False).logits, text[batch])
        return loss, loss

    train(
        model,
        len(text),
        objective,
        [(list(model.parameters()), spec.learning_rate)],
        Schedule(epochs=spec.epochs, batch_size=spec.batch_size, warmup=0.05, weight_decay=0.1, clip=1.0),
        spec.seed,
        watch=lambda batches: progress(batches, "pretrain"),
    )
    with replacing(out) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


if __name__ == "__main__":
    command.entry(main)
