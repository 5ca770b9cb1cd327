"""RoBERTa (arXiv:1907.11692) and XLM-R (arXiv:1911.02116): BERT with positions from past the padding; other heads."""

from dataclasses import replace

from maskattn.families.bert import BERT, STACK
from maskattn.families.family import Head

ROBERTA = replace(
    BERT,
    name="roberta",
    tokenizer="RobertaTokenizer",
    encoder=replace(
        STACK,
        position_offset=lambda config: config["pad_token_id"] + 1,
        sizes={
            **STACK.sizes,
            "positions": lambda config: config["max_position_embeddings"] - config["pad_token_id"] - 1,
        },
    ),
    base="roberta.",
    classifiers={
        "ForSequenceClassification": Head(maps=(("classifier.dense", "tanh"), ("classifier.out_proj", "linear"))),
        "ForTokenClassification": Head(maps=(("classifier", "linear"),), per_token=True),
    },
    defaults={**BERT.defaults, "pad_token_id": 1},
    unused=("lm_head.*", "*embeddings.position_ids", "*pooler.dense.*"),
)
XLM_ROBERTA = replace(ROBERTA, name="xlm-roberta", tokenizer="XLMRobertaTokenizer")
