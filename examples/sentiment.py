"""Sentiment: the probability of each label, by a head for classes or by a model that writes the label.

    python examples/sentiment.py --model tiny/sentiment "the film was not bad"
    python examples/sentiment.py --model tiny/sentiment-t5 --prefix "sst2 sentence: " "the film was not bad"

BERT and its relatives have a head. Of T5 and other models that write texts it is asked how probable each of
``--labels`` is as the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import maskattn
from common import lines, load, parser, show


def main(arguments: Sequence[str] | None = None) -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("reviews", nargs="*", metavar="TEXT", help="default: the lines of standard input")
    arguments_of.add_argument("--prefix", default="", help="what stands before each text")
    arguments_of.add_argument(
        "--labels", nargs="+", default=["negative", "positive"], help="for a model without a head"
    )
    options = arguments_of.parse_args(arguments)

    model, reviews = load(options, "sentiment"), lines(options.reviews)
    texts = [options.prefix + review for review in reviews]
    labels = model.labels or options.labels
    scores = np.stack(model.classify(texts)) if model.labels else written(model, texts, labels)
    for review, row in zip(reviews, softmax(scores), strict=True):
        probabilities = dict(zip(labels, row.tolist(), strict=True))
        best = max(labels, key=probabilities.__getitem__)
        record = {"text": review, "label": best, "probabilities": probabilities}
        show(record, f"{best}  {probabilities[best]:.1%}  {review}", as_json=options.json)


def written(model: maskattn.Model, texts: Sequence[str], labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Log-probability of each label as what the model writes, shape (texts, labels)."""
    pairs = [(text, label) for text in texts for label in labels]
    scores = model.score([text for text, _ in pairs], [label for _, label in pairs])
    return np.array([tokens.sum(dtype=np.float64) for tokens in scores]).reshape(len(texts), len(labels))


def softmax(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
