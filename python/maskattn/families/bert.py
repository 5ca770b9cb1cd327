"""BERT (arXiv:1810.04805): a post-norm encoder; a table of segments (token types) besides positions."""

from maskattn import masks
from maskattn.families.family import Family, Head, Stack

LAYER = "{base}encoder.layer.{layer}."
STACK = Stack(
    norm_eps=lambda config: config["layer_norm_eps"],
    placement="post",
    final_norm=False,
    positions="learned",
    activation=lambda config: config["hidden_act"],
    mask=lambda config, layer: masks.Full(),
    sizes={
        "vocab": ("vocab_size",),
        "width": ("hidden_size",),
        "positions": ("max_position_embeddings",),
        "layers": ("num_hidden_layers",),
        "heads": ("num_attention_heads",),
        "ffn": ("intermediate_size",),
    },
    tensors={
        "embed": ("{base}embeddings.word_embeddings.weight",),
        "positions": ("{base}embeddings.position_embeddings.weight",),
        "segments": ("{base}embeddings.token_type_embeddings.weight",),
    },
    modules={
        "embed.norm": "{base}embeddings.LayerNorm",
        "self.q": LAYER + "attention.self.query",
        "self.k": LAYER + "attention.self.key",
        "self.v": LAYER + "attention.self.value",
        "self.out": LAYER + "attention.output.dense",
        "self.norm": LAYER + "attention.output.LayerNorm",
        "ffn.up": LAYER + "intermediate.dense",
        "ffn.down": LAYER + "output.dense",
        "ffn.norm": LAYER + "output.LayerNorm",
    },
)
POOLER = ("{base}pooler.dense", "tanh")
BERT = Family(
    name="bert",
    tokenizer="BertTokenizer",
    encoder=STACK,
    base="bert.",
    pooler=Head(maps=(POOLER,)),
    classifiers={
        "ForSequenceClassification": Head(maps=(POOLER, ("classifier", "linear"))),
        "ForTokenClassification": Head(maps=(("classifier", "linear"),), per_token=True),
    },
    defaults={"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2},
    only={"is_decoder": (False,), "add_cross_attention": (False,), "position_embedding_type": ("absolute",)},
    unused=("cls.*", "*embeddings.position_ids", "*pooler.dense.*"),
)
