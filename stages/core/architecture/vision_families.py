"""The rows of vision transformers in the table of families (see stages.core.architecture.families).

Their sizes are read off a model without memory by stages.core.architecture.vision_shape.
"""

from dataclasses import replace

from stages.core.architecture.families import Family

_VIT = Family(
    model_types=("vit",),
    layers="vit.layers",
    ffn="mlp",
    matrices={"in": "fc1", "out": "fc2"},
    activated="in",
    activation="activation_fn",
    per_layer=frozenset(),
    task="image_classification",
    options={},
)
_CLIP = replace(
    _VIT,
    model_types=("clip",),
    layers="vision_model.encoder.layers",
    depth="vision_config.num_hidden_layers",
    image="vision_config.image_size",
    patch="vision_config.patch_size",
)

FAMILIES = (
    _VIT,
    replace(_VIT, model_types=("deit",), layers="deit.layers"),
    replace(_VIT, model_types=("beit",), layers="beit.layers", scale="lambda_2"),
    replace(_VIT, model_types=("dinov2",), layers="dinov2.encoder.layer", scale="layer_scale2.lambda1"),
    replace(
        _VIT,
        model_types=("dinov2_with_registers",),
        layers="dinov2_with_registers.encoder.layer",
        scale="layer_scale2.lambda1",
    ),
    # A shorter stage keeps its first blocks' windows: a block takes the shift of its place.
    replace(_VIT, model_types=("swin",), layers="swin.encoder.layers.*.blocks", depth="depths"),
    _CLIP,
    replace(_CLIP, model_types=("siglip",)),
    # TinyViT of timm. Blocks of its first stage are convolutions without an FFN; the norm within `mlp` stays a layer's
    # own. A stage begins with what halves the image, so that fewer layers keep it.
    replace(
        _VIT,
        model_types=("timm_wrapper",),
        layers="timm_model.stages.*.blocks",
        activation="act",
        depth="model_args.depths",
        image="pretrained_cfg.input_size",
        patch=8,
        architecture="tiny_vit",
        needs=("timm", "torchvision"),
        prefix="timm_model.",
    ),
)
