"""DistilBERT (arXiv:1910.01108): BERT's layers, fewer of them, without segments and pooler."""

from dataclasses import replace

from maskattn.families.bert import BERT, STACK
from maskattn.families.family import Head

LAYER = "{base}transformer.layer.{layer}."
DISTILBERT = replace(
    BERT,
    name="distilbert",
    tokenizer="BertTokenizer",
    encoder=replace(
        STACK,
        norm_eps=1e-12,
        activation=lambda config: config["activation"],
        sizes={
            "vocab": ("vocab_size",),
            "width": ("dim",),
            "positions": ("max_position_embeddings",),
            "layers": ("n_layers",),
            "heads": ("n_heads",),
            "ffn": ("hidden_dim",),
        },
        tensors={our: names for our, names in STACK.tensors.items() if our != "segments"},
        modules={
            "embed.norm": "{base}embeddings.LayerNorm",
            "self.q": LAYER + "attention.q_lin",
            "self.k": LAYER + "attention.k_lin",
            "self.v": LAYER + "attention.v_lin",
            "self.out": LAYER + "attention.out_lin",
            "self.norm": LAYER + "sa_layer_norm",
            "ffn.up": LAYER + "ffn.lin1",
            "ffn.down": LAYER + "ffn.lin2",
            "ffn.norm": LAYER + "output_layer_norm",
        },
    ),
    base="distilbert.",
    pooler=None,
    classifiers={
        "ForSequenceClassification": Head(maps=(("pre_classifier", "relu"), ("classifier", "linear"))),
        "ForTokenClassification": Head(maps=(("classifier", "linear"),), per_token=True),
    },
    defaults={"activation": "gelu"},
    unused=("vocab_*", "*embeddings.position_ids"),
)
