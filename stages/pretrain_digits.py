"""Make the bundled model of profile `digits`: a 12-layer ViT trained on the train split of the handwritten digits.

The stage is frozen in dvc.yaml and its result is in git. `dvc unfreeze pretrain_digits && dvc repro pretrain_digits`
trains the model anew. What is kept is a running mean of the weights over the steps. Recipes were compared on the
validation split; the stage reads the train split alone.
"""

from pathlib import Path

from stages.core.images import augmentation, digits
from stages.core.process import command
from stages.core.process.artifacts import replacing
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.settings.trainings import Schedule
from stages.core.training.loop import train


def main(images: Path, out: Path) -> None:
    import torch
    from torch.nn.functional import cross_entropy, one_hot
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    spec = params.pretrain_digits()
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    values, labels = digits.read(images)
    processor = ViTImageProcessor(
        size={"height": digits.SIDE, "width": digits.SIDE},
        rescale_factor=1 / digits.FULL,
        image_mean=[0.5],
        image_std=[0.5],
    )

    chosen = digits.chosen(labels, "train")
    pixels = torch.tensor(values[chosen]).float()[:, None] / (digits.FULL / 2) - 1  # as the processor makes them
    answers = one_hot(torch.tensor(labels[chosen]).long(), 10).float()
    model = ViTForImageClassification(
        ViTConfig(
            image_size=digits.SIDE,
            patch_size=spec.patch,
            num_channels=1,
            hidden_size=spec.width,
            intermediate_size=4 * spec.width,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            hidden_dropout_prob=spec.dropout,
            attention_probs_dropout_prob=0.0,
            initializer_range=spec.initializer_range,
            id2label={number: str(number) for number in range(10)},
            label2id={str(number): number for number in range(10)},
        )
    )

    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(spec.averaging))

    def objective(batch):
        averaged.update_parameters(model)  # one batch is one step
        amounts = spec.rotation, spec.zoom, spec.shear, spec.shift, spec.contrast
        seen = augmentation.warped(pixels[batch], *amounts, background=-1.0)
        seen = augmentation.bent(seen, spec.elastic, background=-1.0)
        seen, wanted = augmentation.mixed(seen, answers[batch], spec.mixup)
        loss = cross_entropy(model(seen).logits, wanted, label_smoothing=spec.label_smoothing)
        return loss, loss

    train(
        model,
        len(pixels),
        objective,
        [(list(model.parameters()), spec.learning_rate)],
        Schedule(epochs=spec.epochs, batch_size=spec.batch_size, warmup=0.1, weight_decay=spec.weight_decay, clip=1.0),
        spec.seed,
        watch=lambda batches: progress(batches, "pretrain digits"),
    )
    averaged.update_parameters(model)
    model = averaged.module
    model.config.hidden_dropout_prob = 0.0
    with replacing(out) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)


if __name__ == "__main__":
    command.entry(main)
