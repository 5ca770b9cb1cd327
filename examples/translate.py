"""Machine translation, and which source tokens each token of a translation was written from.

    python examples/translate.py --model tiny/translation --picture "today the old man has seen the small bird."

The model is an encoder-decoder: Marian, or with ``--from`` and ``--to`` one of many languages (M2M-100, NLLB, mBART).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import maskattn
from common import lines, load, parser, show


def main(arguments: Sequence[str] | None = None) -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("texts", nargs="*", metavar="TEXT", help="default: the lines of standard input")
    arguments_of.add_argument("--from", dest="source", metavar="CODE", help="language of the texts, such as eng_Latn")
    arguments_of.add_argument("--to", dest="target", metavar="CODE", help="language of the translations")
    arguments_of.add_argument("--picture", action="store_true", help="draw each alignment in the terminal")
    arguments_of.add_argument("--png", metavar="FILE", help="write the first alignment as a picture")
    options = arguments_of.parse_args(arguments)

    model, texts = load(options, "translation"), lines(options.texts)
    translations = model.generate(texts, src_lang=options.source, tgt_lang=options.target)
    for i, (text, translation) in enumerate(zip(texts, translations, strict=True)):
        show({"source": text, "translation": translation}, translation, as_json=options.json)
        if options.picture and not options.json:
            print(maskattn.draw_alignment(*alignment(model, text, translation)))
        if options.png and i == 0:
            maskattn.plot_alignment(*alignment(model, text, translation), options.png)


def alignment(
    model: maskattn.Model, text: str, translation: str
) -> tuple[npt.NDArray[np.float32], list[str], list[str]]:
    """Cross-attention (target, source), the mean over layers and heads, and the tokens of both sides."""
    tokenizer = model.tokenizer
    assert tokenizer is not None  # generate has used it
    source, target = tokenizer.encode(text), tokenizer.encode_target(translation)
    weights = model.cross_attention(source, target).mean(axis=(0, 1))
    return weights, tokenizer.tokens(source), tokenizer.tokens(target)


if __name__ == "__main__":
    main()
