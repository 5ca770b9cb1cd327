"""Make a tiny checkpoint for one of the uses: trained here, in seconds, on the made-up examples of toy_data.py.

    python examples/tiny_models.py translation some/directory

Needs PyTorch, transformers and sentencepiece; what it writes is a checkpoint like any other, with its tokenizer.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
import tokenizers
import torch
import transformers

import toy_data

POOL, IGNORED = 4000, -100
SPREAD = 0.1  # of weights at first: with transformers' 0.02 so narrow a model learns to copy much later
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Batch = dict[str, Any]


def translation() -> tuple[Any, Any]:
    """Marian, with a SentencePiece model for each language."""
    pairs = examples(toy_data.translation)
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory, name) for name in ("source.spm", "target.spm", "vocab.json")]
        names = ["</s>", "<unk>"]
        for side, file in enumerate(files[:2]):
            file.write_bytes(sentence_pieces(pair[side] for pair in pairs))
            pieces = sentencepiece.SentencePieceProcessor(str(file))
            names += [pieces.id_to_piece(i) for i in range(len(pieces))]
        names = [piece for piece in dict.fromkeys(names) if piece != "<pad>"] + ["<pad>"]
        files[2].write_text(json.dumps({piece: i for i, piece in enumerate(names)}))
        tokenizer = transformers.MarianTokenizer(*map(str, files), source_lang="en", target_lang="de")
    pad = len(names) - 1
    config = transformers.MarianConfig(
        **sizes(layers=1, max_position_embeddings=64), scale_embedding=True, vocab_size=len(names), pad_token_id=pad,
        decoder_start_token_id=pad, eos_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    return fit(transformers.MarianMTModel(config), paired(tokenizer, pairs), steps=300), tokenizer


def summarization() -> tuple[Any, Any]:
    """BART, with byte-level BPE."""
    pairs = examples(toy_data.summary)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = transformers.BartTokenizer(*bytes_merged(chain.from_iterable(pairs), special))
    config = transformers.BartConfig(
        **sizes(layers=2, max_position_embeddings=128), vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = fit(transformers.BartForConditionalGeneration(config), paired(tokenizer, pairs), steps=360)
    return model, tokenizer


def parsing() -> tuple[Any, Any]:
    """T5: questions to queries."""
    return t5(examples(toy_data.parse), steps=300)


def sentiment_t5() -> tuple[Any, Any]:
    """T5 as it is asked for classes: with the name of the task in front, and a word as the answer."""
    pairs = [(f"sst2 sentence: {review}", label) for review, label in examples(toy_data.sentiment)]
    return t5(pairs, steps=400, batch=32, rate=1e-3)


def t5(pairs: list[tuple[str, str]], **training: Any) -> tuple[Any, Any]:
    vocab = unigrams([*chain.from_iterable(pairs)])
    tokenizer = transformers.T5Tokenizer(vocab, extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(vocab), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return fit(transformers.T5ForConditionalGeneration(config), paired(tokenizer, pairs), **training), tokenizer


def sentiment() -> tuple[Any, Any]:
    """BERT with a head for two classes, and WordPiece."""
    pairs = examples(toy_data.sentiment)
    pieces = tokenizers.BertWordPieceTokenizer()
    pieces.train_from_iterator([review for review, _ in pairs], vocab_size=400, show_progress=False)
    tokenizer = transformers.BertTokenizer(pieces.get_vocab())
    labels = ["negative", "positive"]
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=SPREAD,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    rows = [(tokenizer(review)["input_ids"], labels.index(label)) for review, label in pairs]

    def collate(some: Sequence[Any]) -> Batch:
        return padded([ids for ids, _ in some]) | {"labels": torch.tensor([label for _, label in some])}

    return fit(transformers.BertForSequenceClassification(config), (rows, collate), steps=300), tokenizer


def chat() -> tuple[Any, Any]:
    """Qwen2 with a chat template; it learns what the assistant says."""
    talks = examples(toy_data.chat)
    end, special = "<|im_end|>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    texts = [message["content"] for talk in talks for message in talk]
    vocab, merges = bytes_merged([*texts, *["user\nassistant\n"] * 9], special)
    tokenizer = transformers.Qwen2Tokenizer(vocab, merges, eos_token=end, extra_special_tokens=special[1:2])
    tokenizer.chat_template = CHAT_TEMPLATE
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=SPREAD,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    rows = [spoken(tokenizer, talk) for talk in talks]

    def collate(some: Sequence[Any]) -> Batch:
        return padded([ids for ids, _ in some]) | {"labels": padded([said for _, said in some], IGNORED)["input_ids"]}

    return fit(transformers.Qwen2ForCausalLM(config), (rows, collate), steps=300), tokenizer


def spoken(tokenizer: Any, talk: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and the same with what the assistant did not say left out."""
    ids: list[int] = []
    labels: list[int] = []
    for i in range(0, len(talk), 2):
        asked = tokenizer.apply_chat_template(talk[: i + 1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(talk[: i + 2], tokenize=False)
        start, end = (tokenizer(text)["input_ids"] for text in (asked, whole))
        labels += [IGNORED] * (len(start) - len(ids)) + end[len(start) :]
        ids = end
    return ids, labels


# Text


def examples(make: Callable[[Random], Any]) -> list[Any]:
    return list(islice(toy_data.draw(make, seed=1), POOL))


def sentence_pieces(texts: Iterable[str]) -> bytes:
    """A SentencePiece model of the BPE kind, which makes words of so little text, with T5's special tokens."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=300, hard_vocab_limit=False, model_type="bpe",
        character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def unigrams(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Pieces with the logarithms of their frequencies, <pad>, </s> and <unk> first."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentence_pieces(texts))
    counts = Counter(chain.from_iterable(pieces.encode([*texts])))
    return [(pieces.id_to_piece(i), math.log((counts[i] + 1) / counts.total())) for i in range(len(pieces))]


def bytes_merged(texts: Iterable[str], special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of byte-level BPE; the special tokens have the first ids."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=600, min_frequency=2, special_tokens=special, show_progress=False)
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


# Training


def sizes(layers: int, **more: Any) -> dict[str, Any]:
    """Of both stacks of Marian and BART."""
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
             (("layers", layers), ("attention_heads", 4), ("ffn_dim", 128))}  # fmt: skip
    return {"d_model": 64, "dropout": 0.0, "init_std": SPREAD, **sides, **more}


def paired(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[list[Any], Callable[[Sequence[Any]], Batch]]:
    """Sources and targets as ids, and what makes a batch of them."""
    sources = tokenizer([source for source, _ in pairs])["input_ids"]
    targets = tokenizer(text_target=[target for _, target in pairs])["input_ids"]

    def collate(some: Sequence[Any]) -> Batch:
        return padded([source for source, _ in some]) | {
            "labels": padded([target for _, target in some], IGNORED)["input_ids"]
        }

    return list(zip(sources, targets, strict=True)), collate


def padded(sequences: Sequence[list[int]], filler: int = 0) -> Batch:
    """As input_ids and attention_mask, both (batch, longest)."""
    longest = max(map(len, sequences))
    ids = [[*sequence, *[filler] * (longest - len(sequence))] for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def fit(
    model: Any,
    data: tuple[list[Any], Callable[[Sequence[Any]], Batch]],
    steps: int,
    batch: int = 16,
    rate: float = 3e-3,
) -> Any:
    """Train on batches drawn from ``data``: rows, and the function that joins some of them."""
    rows, collate = data
    rng, optimizer = Random(0), torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        loss = model(**collate(rng.sample(rows, batch))).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if model.can_generate():
        model.generation_config.max_new_tokens = 80
    return model.eval()


USES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "translation": translation,
    "summarization": summarization,
    "parsing": parsing,
    "sentiment": sentiment,
    "sentiment-t5": sentiment_t5,
    "chat": chat,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("use", choices=USES)
    parser.add_argument("directory")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model, tokenizer = USES[options.use]()
    model.save_pretrained(options.directory)
    tokenizer.save_pretrained(options.directory)


if __name__ == "__main__":
    main()
