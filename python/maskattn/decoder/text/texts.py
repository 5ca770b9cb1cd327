"""The texts of a model: what its methods make of them before and after there are ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from maskattn.decoder import check
from maskattn.decoder.checkpoint import Checkpoint
from maskattn.decoder.text.characters import CharacterTokenizer
from maskattn.decoder.text.chat import ChatTemplates
from maskattn.decoder.text.protocol import Tokenizer
from maskattn.decoder.text.reading import find_files, read_tokenizer, tokenizer_class
from maskattn.families import Family

if TYPE_CHECKING:
    from maskattn.decoder.grammars import Vocabulary
    from maskattn.decoder.options import Options
    from maskattn.decoder.processors import Processor


class Texts:
    """Reads a checkpoint's tokenizer when it is first asked for: ids need none of its files or libraries.

    Args:
        vocab: how many tokens the model reads. A tokenizer may know more, as many do by tokens that were added and
            never used; a text that needs one of them is refused.
        continues: whether targets go on where sources end, as under a decoder without an encoder.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, vocab: int, *, continues: bool) -> None:
        self._checkpoint, self._family, self._vocab, self._continues = checkpoint, family, vocab, continues
        self._vocabulary: Vocabulary | None = None
        if tokenizer_class(checkpoint, family) == CharacterTokenizer.__name__:
            self._check_characters()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, None if no file of one is there.

        Raises:
            ImportError: the library that runs it is not installed.
            ValueError: a file of it is broken.
        """
        return self._read[0]

    def need(self) -> Tokenizer:
        """The tokenizer. Raises ValueError, which names the file that is wanted, if there is none."""
        tokenizer, problem = self._read
        if tokenizer is None:
            raise ValueError(problem)
        return tokenizer

    def sources(self, name: str, texts: object, language: str | None = None) -> list[list[int]]:
        """Ids of texts that a model reads.

        Raises:
            TypeError: not a list of str.
            ValueError: a text is no Unicode, needs a token that the model lacks, or the language is not known.
        """
        tokenizer = self.need()
        return [
            self._checked(f"{name}[{i}]", tokenizer.encode(text, language=language))
            for i, text in enumerate(check.texts(name, texts))
        ]

    def targets(self, name: str, texts: object, language: str | None = None) -> list[list[int]]:
        """Ids of texts that a model writes; errors as for :meth:`sources`."""
        tokenizer, checked = self.need(), check.texts(name, texts)
        if self._continues:
            return [self._checked(name, tokenizer.encode(text, special_tokens=False)) for text in checked]
        return [self._checked(name, tokenizer.encode_target(text, language=language)) for text in checked]

    def read(self, name: str, sources: Any) -> tuple[Any, list[list[int]] | None]:
        """Sources as ids, and their segments where they are pairs.

        Args:
            sources: texts, pairs of texts, or what is not made of str, which is returned as it is.
        """
        if not isinstance(sources, list | tuple) or not sources:
            return sources, None
        if isinstance(sources[0], str):
            return self.sources(name, sources), None
        if not isinstance(sources[0], list | tuple) or not sources[0] or not isinstance(sources[0][0], str):
            return sources, None
        tokenizer, encoded = self.need(), []
        for i, pair in enumerate(check.text_pairs(name, sources)):
            ids, segments = tokenizer.encode_pair(*pair)
            encoded.append((self._checked(f"{name}[{i}]", ids), segments))
        return [ids for ids, _ in encoded], [segments for _, segments in encoded]

    def language_id(self, language: str) -> int:
        """The id of a language's token. Raises ValueError: no such language, or the tokenizer has none."""
        tokenizer = self.need()
        i = tokenizer.token_id(tokenizer.language_token(language))
        assert i is not None
        return i

    def decoder(self) -> Callable[[Sequence[int]], str]:
        """Token ids -> text with special tokens. Raises as :meth:`need`."""
        return partial(self.need().decode, special_tokens=True)

    def grammar(self, options: Options, limits: Sequence[int]) -> Processor | None:
        """What ``json_schema``, ``regex`` or ``grammar`` make of scores; None where none of them is asked for.

        Args:
            limits: the most new tokens of each sequence, by its number.

        Raises:
            TypeError, ValueError, ImportError: see ``decoder.grammars.grammar_processor``.
        """
        if all(options.get(name) is None for name in ("json_schema", "regex", "grammar")):
            return None
        from maskattn.decoder.grammars import Vocabulary, grammar_processor

        def vocabulary() -> Vocabulary:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self.need(), options.vocab)
            return self._vocabulary

        return grammar_processor(options, vocabulary, limits)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """A conversation as the text that the model was trained on; see ``Model.chat_prompt``."""
        return self._chat_templates.render(messages, **options)

    def chat_ids(self, prompt: str) -> list[int]:
        """Ids of a rendered conversation, whose special tokens stand in its text."""
        check.unicode("messages", prompt)
        ids = self._checked("messages", self.need().encode(prompt, special_tokens=False))
        if not ids:
            raise ValueError("messages must become at least one token, got an empty text; correct the chat template")
        return ids

    @cached_property
    def _chat_templates(self) -> ChatTemplates:
        files = find_files(self._checkpoint, self._family)
        return ChatTemplates.read(files.directory, files.special_tokens.texts)

    @cached_property
    def _read(self) -> tuple[Tokenizer | None, str]:
        return read_tokenizer(self._checkpoint, self._family)

    def _checked(self, name: str, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self._vocab:
            (token,) = self.need().tokens([max(ids)])
            raise ValueError(
                f"{name} must be written in tokens of the model, ids below its vocab_size {self._vocab}, got "
                f"{max(ids)} for {token!r}; take the tokenizer's files and the weights from the same model"
            )
        return ids

    def _check_characters(self) -> None:
        """A vocabulary of characters has no tokens that nobody uses."""
        tokenizer = self.tokenizer
        if tokenizer is not None and tokenizer.vocab_size > self._vocab:
            raise ValueError(
                f"vocab.json must hold ids below the model's vocab_size {self._vocab}, got "
                f"{tokenizer.vocab_size - 1}; take both files from the same model"
            )
