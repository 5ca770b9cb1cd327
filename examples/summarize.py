"""Summarization: the most probable summary, or several drawn at random, best first.

    python examples/summarize.py --model tiny/summarization --samples 4 --temperature 1.3 "On Friday Ida met Ben. ..."

The model is an encoder-decoder such as BART or Pegasus; a T5 is asked with ``--prefix "summarize: "``. Each document is
one argument or one line.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import lines, load, parser, show


def main(arguments: Sequence[str] | None = None) -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("documents", nargs="*", metavar="TEXT", help="default: the lines of standard input")
    arguments_of.add_argument("--prefix", default="", help="what stands before each document")
    arguments_of.add_argument("--samples", type=int, default=0, metavar="N", help="draw so many; default: no chance")
    arguments_of.add_argument("--temperature", type=float, default=1.0, metavar="X", help="of the draws")
    arguments_of.add_argument("--top-p", type=float, default=1.0, metavar="X", help="draw from the tokens that reach X")
    arguments_of.add_argument("--seed", type=int, default=0, metavar="N", help="equal seeds, equal summaries")
    arguments_of.add_argument("--no-repeat", type=int, default=3, metavar="N", help="no N tokens twice; 0: off")
    arguments_of.add_argument("--max-new-tokens", type=int, metavar="N", help="default: as the checkpoint says")
    options = arguments_of.parse_args(arguments)

    model = load(options, "summarization")
    documents = [options.prefix + document for document in lines(options.documents)]
    settings = {"no_repeat_ngram_size": options.no_repeat, "max_new_tokens": options.max_new_tokens}
    if options.samples:
        settings |= {"do_sample": True, "seed": options.seed, "temperature": options.temperature}
        settings |= {"top_p": options.top_p, "top_k": 0}
    copies = max(1, options.samples)
    # Copies of a document are drawn independently: each source has random numbers of its own.
    every = model.generate([document for document in documents for _ in range(copies)], **settings)
    for i, document in enumerate(documents):
        summaries = [*dict.fromkeys(every[i * copies : (i + 1) * copies])]
        scores = model.score([document] * len(summaries), summaries)
        means = [float(tokens.mean()) for tokens in scores]
        for mean, summary in sorted(zip(means, summaries, strict=True), reverse=True):
            record = {"document": document, "summary": summary, "log_probability_per_token": mean}
            show(record, f"{mean:8.3f}  {summary}" if options.samples else summary, as_json=options.json)


if __name__ == "__main__":
    main()
