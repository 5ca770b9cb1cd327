"""Join an encoder to a decoder-only model: what the encoder made of a source stands before the decoder's tokens.

    python examples/encoder_before_decoder.py --encoder some/bert --decoder some/llama --source 5,9,4 --prompt 2,7

The two widths may differ: ``--map`` is a .npy file with a matrix (decoder width, encoder width), as training makes
one; without it the map is random, and so is what comes out. ``[E; o]`` under a prefix-LM mask (arXiv:1910.10683):
every token sees all of E, and of the tokens those before it.
"""

from __future__ import annotations

import argparse

import numpy as np

import maskattn
from maskattn.linear import linear


def ids(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="checkpoint with an encoder: BERT, RoBERTa, T5, ...")
    parser.add_argument("--decoder", required=True, help="decoder-only checkpoint: GPT-2, Llama, Qwen, ...")
    parser.add_argument("--source", type=ids, required=True, help="token ids for the encoder, as 5,9,4")
    parser.add_argument("--prompt", type=ids, required=True, help="token ids for the decoder, at least one")
    parser.add_argument("--map", help=".npy file: (decoder width, encoder width)")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    options = parser.parse_args()

    encoder, decoder = maskattn.load(options.encoder), maskattn.load(options.decoder)
    encoded = encoder.encode([options.source])[0]
    if options.map:
        matrix = np.load(options.map).astype(np.float32)
    else:
        shape = (decoder.width, encoded.shape[1])
        matrix = np.random.default_rng(0).normal(0, shape[1] ** -0.5, shape).astype(np.float32)
    prefix = linear(encoded, matrix)
    print(*decoder.generate_ids([options.prompt], prefix_embeddings=[prefix], max_new_tokens=options.max_new_tokens)[0])


if __name__ == "__main__":
    main()
