"""Models on a device write what they write on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskattn
import test_transcription as hearing
from maskattn import masks
from maskattn.cuda.module import load
from maskattn.decoder.device.spans import spans
from maskattn.decoder.generate import Generated
from maskattn.families import FAMILIES
from tiny_families import CONFIGS, VOCAB, WIDTH, config, write
from tiny_families import tensors as tiny_weights

NEW, LENGTHS = 8, (5, 1, 9, 3, 7)
WRITES = [name for name, family in FAMILIES.items() if family.decoder]
READS = [name for name, family in FAMILIES.items() if family.encoder]
#: One of each kind: rotary and grouped heads; windows, softcaps and inner norms; parallel branches; a narrow embedding;
#: cross-attention; relative positions; sound.
SOME = ["llama", "gemma2", "gpt_neox", "opt", "marian", "t5", "whisper"]
DECODERS = ["llama", "mistral", "gpt2"]
#: Heads as large as the kernel for steps takes them: others go to tensor cores, which take long to emulate.
HEADS: dict[str, dict[str, Any]] = {
    "t5": {"d_kv": 8},
    "mt5": {"d_kv": 8},
    "gpt2": {"n_head": 3},
    **{
        name: {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
        for name in ("bart", "marian", "mbart", "pegasus", "m2m_100", "whisper")
    },
}


def sources_of(name: str, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if name == "whisper":
        return rng.standard_normal((len(LENGTHS), 7, 33), dtype=np.float32)
    return [rng.integers(2, VOCAB, n).tolist() for n in LENGTHS]


class Both:
    """A tiny checkpoint on the CPU and on the device."""

    def __init__(self, path: Path, name: str, dtype: str = "float32", **changes: Any) -> None:
        written = write(path / name, config(name, eos_token_id=[1, 2, 3], **{**HEADS.get(name, {}), **changes}))
        self.host = maskattn.load(written, dtype=None if dtype == "float16" else dtype)
        self.device = maskattn.load(written, dtype=dtype, device="cuda")

    def generated(self, sources: Any, **options: Any) -> list[Generated]:
        """The device's, which must be the host's."""
        options = {"max_new_tokens": NEW, **options}
        wanted = self.host.generate_ids(sources, **options)
        made = self.device.generate_ids(sources, **options)
        assert made == wanted
        return made


@pytest.mark.parametrize("name", WRITES)
def test_generation(name: str, tmp_path: Path) -> None:
    both, sources = Both(tmp_path, name), sources_of(name)
    made = both.generated(sources)
    assert len({tuple(ids) for ids in made}) > 1, "the sources must matter"
    for ours, wanted in zip(both.device.score_ids(sources, made), both.host.score_ids(sources, made), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", READS)
def test_encoding(name: str, tmp_path: Path) -> None:
    both, sources = Both(tmp_path, name, **{key: CONFIGS[name][key] for key in HEADS.get(name, {})}), sources_of(name)
    for ours, wanted in zip(both.device.encode(sources), both.host.encode(sources), strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_classification(name: str, tmp_path: Path) -> None:
    both, sources = Both(tmp_path, name), sources_of(name)
    rng = np.random.default_rng(1)
    segments = [rng.integers(0, 2, n).tolist() for n in LENGTHS] if name == "bert" else None
    ours, wanted = (model.encode(sources, segments=segments) for model in (both.device, both.host))
    np.testing.assert_allclose(np.concatenate(ours), np.concatenate(wanted), rtol=0, atol=2e-5)
    np.testing.assert_allclose(both.device.classify(sources), both.host.classify(sources), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.08), ("float16", 0.01)])
@pytest.mark.parametrize("name", SOME)
def test_narrow_weights(name: str, dtype: str, atol: float, tmp_path: Path) -> None:
    """Scores are near those of float32, and further off than float32's."""
    both, sources = Both(tmp_path, name, dtype), sources_of(name)
    wide = maskattn.load(tmp_path / name)
    targets = [ids[:6] for ids in sources_of("llama", 7)]
    ours, wanted = (np.concatenate(model.score_ids(sources, targets)) for model in (both.device, wide))
    assert 1e-5 < np.abs(ours - wanted).max() < atol
    made = both.device.generate_ids(sources, max_new_tokens=NEW)
    assert len({tuple(ids) for ids in made}) > 1, "the sources must matter"


SEARCHES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "beams and groups": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "a draw": {"do_sample": True, "seed": 3, "top_p": 0.9, "temperature": 1.2},
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "drafts": {"prompt_lookup_num_tokens": 3},
    "small batches": {"batch_size": 2},
    "a shortlist": {"shortlist": list(range(1, 30))},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_searches(name: str, search: str, tmp_path: Path) -> None:
    Both(tmp_path, name).generated(sources_of(name), **SEARCHES[search])


@pytest.mark.parametrize(
    "options",
    [{"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "high"}, {"guidance_scale": 1.5}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("name", DECODERS)
def test_decoding_that_looks_inside(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    Both(tmp_path, name).generated(sources_of(name), **options)


def test_prefix_embeddings(tmp_path: Path) -> None:
    both, rng = Both(tmp_path, "mistral"), np.random.default_rng(2)
    rows = [rng.standard_normal((n, WIDTH), dtype=np.float32) for n in (3, 0, 7, 1, 2)]
    both.generated(sources_of("mistral"), prefix_embeddings=rows)
    both.generated(sources_of("mistral"), prefix_embeddings=rows, num_beams=2)


def test_an_assistant_on_either_side(tmp_path: Path) -> None:
    both, other = Both(tmp_path, "llama"), Both(tmp_path, "gpt2")
    drafts = {"num_assistant_tokens": 3, "max_new_tokens": NEW}
    wanted = both.host.generate_ids(sources_of("llama"), max_new_tokens=NEW)
    for assistant in (other.host, other.device):
        made = both.device.generate_ids(sources_of("llama"), assistant_model=assistant, **drafts)
        assert made == wanted
        assert made[0].speculated is not None
        assert made[0].speculated.drafted


def test_sequences_that_are_read_again(tmp_path: Path) -> None:
    """Keys that turn otherwise past a length: the cache is emptied, and prompts of all lengths are read once more."""
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    both = Both(tmp_path, "phi3", rope_scaling=rope, original_max_position_embeddings=12)
    both.generated(sources_of("phi3"), max_new_tokens=20)


@pytest.mark.parametrize("name", ["marian", "whisper"])
def test_cross_attention(name: str, tmp_path: Path) -> None:
    both, sources = Both(tmp_path, name), sources_of(name)
    options = {"max_new_tokens": NEW, "return_cross_attention": True}
    ours, wanted = (model.generate_ids(sources, **options) for model in (both.device, both.host))
    assert ours == wanted
    for one, other in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(one.cross_attention, other.cross_attention, rtol=0, atol=1e-5)


def test_transcription(tmp_path: Path) -> None:
    """A recording of two windows, with the hotter attempts where it is not sure."""
    path = hearing.save(tmp_path / "whisper", hearing.GENERATION)
    recordings, options = hearing.sounds(1.3), {"temperatures": (0.0, 0.8), "logprob_threshold": -0.1, "seed": 3}
    ours, wanted = (maskattn.load(path, device=device).transcribe(recordings, **options) for device in ("cuda", None))
    for one, other in zip(ours, wanted, strict=True):
        assert [(s.start, s.end, s.tokens) for s in one.segments] == [
            (s.start, s.end, s.tokens) for s in other.segments
        ]


@pytest.mark.parametrize("name", ["llama", "marian"])
def test_engine(name: str, tmp_path: Path) -> None:
    """Requests that come and go share steps, and the pages of their common beginnings."""
    both, sources = Both(tmp_path, name), sources_of(name)
    sources = sources + [[*sources[2], *source] for source in sources]
    wanted = both.host.generate_ids(sources, max_new_tokens=NEW)
    with maskattn.Engine(both.device, max_batch=4) as engine:
        requests = [engine.submit_ids(ids, max_new_tokens=NEW) for ids in sources]
        assert [list(request.result()) for request in requests] == wanted


def test_memories_of_a_changing_batch_stay_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that grow, are left and taken again: each sequence reads its own source, and nothing is looked at."""
    forward: Any = Both(tmp_path, "marian").device._forward
    memories = [forward.encode([np.arange(2, 2 + length)]) for length in (5, 1, 9, 40, 3, 17, 33)]
    rows, there = forward.new_memory_rows(), list[int]()

    def refused(*_: Any) -> None:
        raise AssertionError("a memory was copied to the host")

    with monkeypatch.context() as patch:
        for name in ("numpy", "__array__", "__getitem__", "write"):
            patch.setattr(load().DeviceArray, name, refused)
        for event in (0, 1, 2, [2, 1], 3, 4, [0, 3], 5, 6):
            if isinstance(event, int):
                rows.join(memories[event])
                there.append(event)
            else:
                rows.reorder(np.array(event))
                there = [there[row] for row in event]
    assert there == [2, 4, 5, 6]
    got = rows.view().on_host()
    for row, source in enumerate(there):
        own, start, length = memories[source].on_host(), got.starts[row], got.lengths[row]
        assert length == own.lengths[0]
        for pair, want in zip(got.key_values, own.key_values, strict=True):
            for array, wanted in zip(pair, want, strict=True):
                np.testing.assert_array_equal(array[start : start + length], wanted[:length])


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("name", ["gemma2", "t5"])
def test_states(name: str, page_size: int | None, tmp_path: Path) -> None:
    """Of prompts and steps, with sequences that leave, change places, are repeated, and take nothing in."""
    both, rng = Both(tmp_path, name), np.random.default_rng(3)
    models = both.device._forward, both.host._forward
    memories: list[Any] = [model.encode(sources_of(name)) if model.encoder else None for model in models]
    tokens, counts = rng.integers(2, VOCAB, (len(LENGTHS), max(LENGTHS))), np.array(LENGTHS)
    caches = [model.new_cache(len(LENGTHS), 64, page_size=page_size) for model in models]

    def compare(new: np.ndarray, lengths: np.ndarray | None) -> None:
        states = [
            model.decode(new, memory, cache, new_lengths=lengths)
            for model, memory, cache in zip(models, memories, caches, strict=True)
        ]
        np.testing.assert_allclose(np.asarray(states[0]), states[1], rtol=0, atol=5e-5)
        np.testing.assert_array_equal(caches[0].lengths, caches[1].lengths)

    compare(tokens, counts)
    for some in ([3, 0, 1, 4, 2], [2, 0, 2, 0, 0], [0, 0, 0, 0, 1]):
        compare(tokens[:, :4], np.array(some))
    for order in ([2, 0, 3, 0], [1, 3, 2], [0, 0, 1, 1, 2]):
        for cache in caches:
            cache.reorder(order)
        memories = [None if memory is None else memory.reorder(np.array(order)) for memory in memories]
        for _ in range(3):
            compare(rng.integers(2, VOCAB, (len(order), 1)), None)
    for ours, theirs in zip(caches[0], caches[1], strict=True):
        for mine, wanted in zip(ours.arrays(), theirs.arrays(), strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=2e-5)


def test_steps_are_recorded_once_a_shape(tmp_path: Path) -> None:
    model = Both(tmp_path, "llama").device
    cache = model._forward.new_cache(3, 64)
    model._forward.decode(np.full((3, 5), 4), cache=cache)
    for token in range(2, 10):
        model._forward.step(np.full(3, token), None, cache)
    assert model._forward._decoder.graphs == 1  # type: ignore[attr-defined]


def test_states_stay_on_the_device_until_they_are_looked_at(tmp_path: Path) -> None:
    model = Both(tmp_path, "gpt2").device._forward
    cache = model.new_cache(2, 32)
    states: Any = model.decode(np.array([[3, 4, 5], [6, 7, 0]]), cache=cache, new_lengths=np.array([3, 2]))
    assert states.shape == (2, 3, WIDTH)
    last = states[np.arange(2), [2, 1]]
    assert last._copy is None
    assert not np.asarray(states)[1, 2].any(), "padding is zeros"
    np.testing.assert_array_equal(last, np.asarray(states)[[0, 1], [2, 1]])
    np.testing.assert_array_equal(last[[1]], np.asarray(last)[[1]])
    np.testing.assert_array_equal(last[:, None].shape, (2, 1, WIDTH))
    np.testing.assert_array_equal(last[0], np.asarray(last)[0])
    np.testing.assert_array_equal(last[:, :3], np.asarray(last)[:, :3])
    np.testing.assert_array_equal(last.mean(axis=1), np.asarray(last).mean(axis=1))
    np.testing.assert_array_equal(model.best(last), model.logits(last).argmax(axis=-1))


@pytest.mark.parametrize("count", [1, 7])
def test_the_most_probable_tokens(count: int, tmp_path: Path) -> None:
    """In a vocabulary of several blocks, with equal scores among them, of which the first counts."""
    settings = config("gpt2", vocab_size=9001)
    weights = tiny_weights(settings)
    table = weights["transformer.wte.weight"]
    table[5000:9000] = table[1000:5000]
    path = write(tmp_path, settings, weights)
    rows = np.random.default_rng(5).standard_normal((4, WIDTH), dtype=np.float32)
    device, host = (maskattn.load(path, device=where)._forward for where in ("cuda", None))
    (ours, tokens), (wanted, same) = device.most_probable(rows, count), host.most_probable(rows, count)
    np.testing.assert_array_equal(tokens, same)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(device.best(rows), host.best(rows))


def test_a_model_whose_threads_share_it(tmp_path: Path) -> None:
    both, sources = Both(tmp_path, "llama"), sources_of("llama")
    wanted = both.host.generate_ids(sources, max_new_tokens=NEW)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(both.device.generate_ids, [ids], max_new_tokens=NEW) for ids in sources]
        assert [job.result()[0] for job in jobs] == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, 'device must be "cuda" or "cuda:" and a number, got'),
        (
            {"device": "cuda", "dtype": "int8"},
            'dtype must be one of float32, bfloat16, float16 with device="cuda", got',
        ),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, int8, int4, uint4, got 'float16'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        maskattn.load(write(tmp_path, config("llama")), **options)


MASKS = [
    masks.Full(),
    masks.Causal(),
    masks.SlidingWindow(2, 1),
    masks.Causal() & masks.SlidingWindow(left=3),
    masks.Causal() | masks.Padding([3, 0, 5]),
    (masks.Causal() & masks.SlidingWindow(left=1)) | masks.Padding([3, 1, 0]),
    masks.Dilated(2, 3),
    ~masks.Causal(),
]


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_spans_say_what_the_definition_says(mask: masks.Mask) -> None:
    stored, counts = np.array([0, 4, 9]), np.array([5, 0, 3])
    found = spans(mask, stored, counts)
    keys = np.arange(int((stored + counts).max()))
    seen = ((keys >= found[..., :1]) & (keys < found[..., 1:])).any(axis=2)
    wanted = mask.to_bool(5, len(keys), batch=3, q_offset=stored, kv_lengths=stored + counts)[:, 0]
    np.testing.assert_array_equal(seen, wanted & (np.arange(5) < counts[:, None])[..., None])
