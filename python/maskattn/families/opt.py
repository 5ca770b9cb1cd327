"""OPT (arXiv:2205.01068): learned positions from row 2 on; one size has narrow embeddings and norms after branches."""

from maskattn import masks
from maskattn.families.family import Family, Stack

LAYER = "{base}layers.{layer}."
OPT = Family(
    name="opt",
    tokenizer="GPT2Tokenizer",
    base="model.decoder.",
    decoder=Stack(
        norm=lambda config: "layer" if config["layer_norm_elementwise_affine"] else "layer without weights",
        placement=lambda config: "pre" if config["do_layer_norm_before"] else "post",
        final_norm=lambda config: config["do_layer_norm_before"] and not config["_remove_final_layer_norm"],
        positions="learned",
        position_offset=2,
        activation=lambda config: config["activation_function"],
        biases=lambda config: ("self.", "ffn.") if config["enable_bias"] else (),
        mask=lambda config, layer: masks.Causal(),
        sizes={
            "vocab": ("vocab_size",),
            "width": ("hidden_size",),
            "embedding_width": ("word_embed_proj_dim", "hidden_size"),
            "positions": ("max_position_embeddings",),
            "layers": ("num_hidden_layers",),
            "heads": ("num_attention_heads",),
            "ffn": ("ffn_dim",),
        },
        tensors={"embed": ("{base}embed_tokens.weight",), "positions": ("{base}embed_positions.weight",)},
        modules={
            "project_in": "{base}project_in",
            "self.q": LAYER + "self_attn.q_proj",
            "self.k": LAYER + "self_attn.k_proj",
            "self.v": LAYER + "self_attn.v_proj",
            "self.out": LAYER + "self_attn.out_proj",
            "self.norm": LAYER + "self_attn_layer_norm",
            "ffn.up": LAYER + "fc1",
            "ffn.down": LAYER + "fc2",
            "ffn.norm": LAYER + "final_layer_norm",
            "norm": "{base}final_layer_norm",
            "project_out": "{base}project_out",
        },
    ),
    defaults={
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "layer_norm_elementwise_affine": True,
        "enable_bias": True,
        "tie_word_embeddings": True,
    },
)
