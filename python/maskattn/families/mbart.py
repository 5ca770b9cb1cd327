"""mBART (arXiv:2001.08210): BART with norms before branches and one more behind each stack."""

from dataclasses import replace

from maskattn.families.bart import BART, learned

MBART = replace(
    BART,
    name="mbart",
    tokenizer="MBartTokenizer",
    encoder=learned("encoder", placement="pre", final_norm=True),
    decoder=learned("decoder", placement="pre", final_norm=True),
    defaults={"activation_function": "gelu", "scale_embedding": False, "tie_word_embeddings": True},
)
