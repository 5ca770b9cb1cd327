"""Marian: the encoder-decoder of the OPUS-MT translators (arXiv:1804.00344), a post-norm Transformer."""

from maskattn import masks
from maskattn.families.family import Family

MARIAN = Family(
    name="marian",
    norm="layer",
    norm_placement="post",
    norm_eps=1e-5,
    positions="sinusoidal",
    activation="activation_function",
    embedding_scale=lambda config: config["d_model"] ** 0.5 if config["scale_embedding"] else 1.0,
    encoder_mask=lambda config, layer: masks.Full(),
    decoder_mask=lambda config, layer: masks.Causal(),
    sizes={
        "source_vocab": ("vocab_size",),
        "target_vocab": ("decoder_vocab_size", "vocab_size"),
        "width": ("d_model",),
        "max_positions": ("max_position_embeddings",),
        "encoder_layers": ("encoder_layers",),
        "encoder_heads": ("encoder_attention_heads",),
        "encoder_ffn": ("encoder_ffn_dim",),
        "decoder_layers": ("decoder_layers",),
        "decoder_heads": ("decoder_attention_heads",),
        "decoder_ffn": ("decoder_ffn_dim",),
    },
    defaults={"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True},
    tensors={
        "encoder.embed": ("model.encoder.embed_tokens.weight", "model.shared.weight"),
        "decoder.embed": ("model.decoder.embed_tokens.weight", "model.shared.weight"),
        "head": ("lm_head.weight",),
        "head.bias": ("final_logits_bias",),
    },
    modules={
        "self.q": "model.{side}.layers.{layer}.self_attn.q_proj",
        "self.k": "model.{side}.layers.{layer}.self_attn.k_proj",
        "self.v": "model.{side}.layers.{layer}.self_attn.v_proj",
        "self.out": "model.{side}.layers.{layer}.self_attn.out_proj",
        "self.norm": "model.{side}.layers.{layer}.self_attn_layer_norm",
        "cross.q": "model.{side}.layers.{layer}.encoder_attn.q_proj",
        "cross.k": "model.{side}.layers.{layer}.encoder_attn.k_proj",
        "cross.v": "model.{side}.layers.{layer}.encoder_attn.v_proj",
        "cross.out": "model.{side}.layers.{layer}.encoder_attn.out_proj",
        "cross.norm": "model.{side}.layers.{layer}.encoder_attn_layer_norm",
        "ffn.up": "model.{side}.layers.{layer}.fc1",
        "ffn.down": "model.{side}.layers.{layer}.fc2",
        "ffn.norm": "model.{side}.layers.{layer}.final_layer_norm",
    },
    tied={"head": ("decoder.embed", "tie_word_embeddings")},
)
