"""Semantic parsing: questions to queries, and how sure the model is of a query among others.

    python examples/parse_questions.py --model tiny/parsing "Which rivers in Peru are longer than 300 km?"

With ``--candidate`` (twice or more) nothing is written: the given queries are ranked by their probability. With
``--grammar examples/queries.lark`` only queries of that language are written, whatever the model would rather say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import maskattn
from common import lines, load, parser, show


def main(arguments: Sequence[str] | None = None) -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("questions", nargs="*", metavar="TEXT", help="default: the lines of standard input")
    arguments_of.add_argument("--prefix", default="", help="what stands before each question")
    arguments_of.add_argument("--candidate", action="append", metavar="QUERY", help="a query to rank; repeat it")
    arguments_of.add_argument(
        "--grammar", type=Path, metavar="FILE", help="of the queries; needs maskattn[constraints]"
    )
    arguments_of.add_argument("--max-new-tokens", type=int, metavar="N", help="default: as the checkpoint says")
    options = arguments_of.parse_args(arguments)

    model = load(options, "parsing")
    questions = lines(options.questions)
    sources = [options.prefix + question for question in questions]
    if options.candidate:
        parses = [options.candidate] * len(sources)
    else:
        grammar = None if options.grammar is None else options.grammar.read_text()
        made = model.generate(sources, max_new_tokens=options.max_new_tokens, grammar=grammar)
        parses = [[query] for query in made]
    for question, source, queries in zip(questions, sources, parses, strict=True):
        for probability, query in ranked(model, source, queries):
            record = {"question": question, "query": query, "probability": probability}
            show(record, f"{probability:7.2%}  {query}", as_json=options.json)


def ranked(model: maskattn.Model, source: str, queries: Sequence[str]) -> list[tuple[float, str]]:
    """Probability of each query under the model, the most probable first."""
    scores = model.score([source] * len(queries), queries)
    probabilities = [float(np.exp(tokens.sum(dtype=np.float64))) for tokens in scores]
    return sorted(zip(probabilities, queries, strict=True), reverse=True)


if __name__ == "__main__":
    main()
