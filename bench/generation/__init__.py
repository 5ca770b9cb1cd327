"""Generation on the shapes of real models with random weights: ours in each dtype, beside whoever else is installed.

    pip install ".[parity]" && python -m bench.generation --markdown

``shapes`` has the models and what they write, ``sides`` starts a process for each side, ``worker`` is what runs in it,
with one module ``with_...`` for each library; ``measure`` times them in turns, ``report`` and ``plot`` tell the result,
``accuracy`` compares logits. Nothing is imported here: the processes of others have neither maskattn nor PyTorch.
"""
