"""Tokenizers that the SentencePiece library runs: pieces of one or two models, numbered by a vocab.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskattn.decoder.text.document import read_vocab
from maskattn.decoder.text.kinds import Kind
from maskattn.decoder.text.protocol import need
from maskattn.decoder.text.special import SpecialTokens
from maskattn.decoder.text.subwords import Subwords
from maskattn.decoder.text.template import by_flags
from maskattn.decoder.text.token_bytes import piece_bytes

TARGET_VOCAB = "target_vocab.json"
#: What Marian's multilingual checkpoints are told in front of a text: ``>>fra<<``.
_CODE = re.compile(r">>.*?<<", re.DOTALL)


class PieceTokenizer(Subwords):
    """Marian, whose two languages may have a model and a vocabulary each, and M2M-100.

    Args:
        models: SentencePiece processors, the source's first and the target's last.
        vocabs: token -> id, the source's first and the target's last.
    """

    def __init__(self, models: list[Any], vocabs: list[dict[str, int]], kind: Kind, tokens: SpecialTokens) -> None:
        super().__init__(kind, tokens, (kind.template or by_flags)(tokens.config))
        self._models, self._vocabs, self._unknown = models, vocabs, tokens.texts["unk_token"]
        known = kind.languages
        codes = known.known(tokens.config.get("language_codes")) if known else []
        # The tokens of languages follow the vocabulary.
        self._languages = {known.token.format(code): len(vocabs[0]) + i for i, code in enumerate(codes) if known}
        self._added = _number(vocabs[0], tokens)
        numbered = (vocabs[-1], self._languages, self._added)
        self._texts = {i: text for ids in numbered for text, i in ids.items()}
        self._special_texts = {*tokens.texts.values(), *(token["content"] for token in tokens.extra or [])}
        self._special_ids = {self.token_id(text) for text in self._special_texts}
        self._split = _splitter(self._added, tokens)

    @property
    def vocab_size(self) -> int:
        ids = [i for vocab in (*self._vocabs, self._added, self._languages) for i in vocab.values()]
        return max(ids) + 1

    def cut(self, text: str, *, target: bool = False) -> list[int]:
        side = -1 if target else 0
        ids, at = [], 0
        for match in self._split.finditer(text):
            ids += self._pieces(text[at : match.start()], side)
            ids.append(self._added[match[match.lastindex or 0]])
            at = match.end()
        return ids + self._pieces(text[at:], side)

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        dropped = set() if special_tokens else self._special_ids
        # The text of a shared vocabulary's tokens is the source's model's to say, as in transformers.
        model = self._models[-1 if len(self._vocabs) > 1 or len(self._models) == 1 else 0]
        made: str = ""
        run: list[str] = []
        for token in self.tokens([i for i in ids if int(i) in self._texts and int(i) not in dropped]):
            if token in self._special_texts:
                made, run = made + model.decode_pieces(run) + token + " " * self._kind.spaced, []
            else:
                run.append(token)
        made += model.decode_pieces(run)
        made = made.replace("▁", " ") if self._kind.spaced else made
        return made.strip()

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._texts.get(int(i), f"<{i}>") for i in ids]

    def token_bytes(self) -> dict[int, bytes]:
        return {i: piece_bytes(token) for i, token in self._texts.items() if token not in self._special_texts}

    def token_id(self, token: str) -> int | None:
        for vocab in (self._added, self._languages, self._vocabs[0]):
            if token in vocab:
                return vocab[token]
        return None

    def __repr__(self) -> str:
        return f"PieceTokenizer({self.vocab_size} tokens)"

    def _pieces(self, text: str, side: int) -> list[int]:
        if not text:
            return []
        vocab, pieces = self._vocabs[side], []
        if self._kind.languages is None and (code := _CODE.match(text)):
            pieces.append(code[0])
            text = text[code.end() :]
        pieces += self._models[side].encode(text, out_type=str)
        unknown = vocab[self._unknown]
        return [self._languages.get(piece, vocab.get(piece, unknown)) for piece in pieces]


def _number(vocab: dict[str, int], tokens: SpecialTokens) -> dict[str, int]:
    """Added tokens: with the ids that files give them, the vocabulary's, or the next ones."""
    added = {token["content"]: i for i, token in tokens.added.items()}
    size = len({*vocab, *added})
    for token in [*tokens.named.values(), *(tokens.extra or [])]:
        text = token["content"]
        if text not in added:
            added[text] = vocab.get(text, size)
            size += added[text] == size
    return added


def _splitter(added: dict[str, int], tokens: SpecialTokens) -> re.Pattern[str]:
    """Finds added tokens, the longest first; what is trimmed beside one belongs to the match."""
    trimmed = {token["content"]: token for token in tokens.added.values()}
    parts = []
    for text in sorted(added, key=len, reverse=True):
        token = trimmed.get(text, {"lstrip": False, "rstrip": False})
        parts.append(r"\s*" * token["lstrip"] + f"({re.escape(text)})" + r"\s*" * token["rstrip"])
    return re.compile("|".join(parts) or "(?!)")


def read_pieces(directory: Path, kind: Kind, tokens: SpecialTokens) -> PieceTokenizer:
    """From vocab.json and the SentencePiece models that ``kind`` names.

    Raises:
        ImportError: the ``sentencepiece`` library is not installed.
        ValueError: a file is broken, or the vocabulary has no unknown token.
    """
    library = need("sentencepiece")
    vocabs = [read_vocab(directory, kind.files[0])]
    if tokens.config.get("separate_vocabs"):
        vocabs.append(read_vocab(directory, TARGET_VOCAB))
    for vocab in vocabs:
        if (unknown := tokens.texts.get("unk_token")) not in vocab:
            raise ValueError(f"{kind.files[0]} must have the token {unknown!r}, got none; download it again")
    models = []
    for name in kind.files[1:]:
        try:
            models.append(library.SentencePieceProcessor(model_file=str(directory / name)))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{name} must be a SentencePiece model, got {error}; download it again") from error
    return PieceTokenizer(models, vocabs, kind, tokens)
