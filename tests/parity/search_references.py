"""Searches in plain Python and float64, one source at a time, each token from a forward pass over all before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Ids = list[int]
#: Tokens so far -> of the next one the log-probabilities (vocab,).
Next = Callable[[Ids], torch.Tensor]


class Reader:
    """A model of transformers, with a source or a prompt that it reads."""

    def __init__(self, model: Any, source: Ids) -> None:
        self.model, self.source = model, torch.tensor([source])
        self.is_encoder_decoder = model.config.is_encoder_decoder

    @torch.no_grad()
    def __call__(self, new: Ids) -> Any:
        """The output of all that is read to predict the token behind ``new``."""
        tokens = torch.tensor([new], dtype=torch.long)
        if not self.is_encoder_decoder:
            return self.model(torch.cat([self.source, tokens], dim=1), output_hidden_states=True)
        start = torch.tensor([[self.model.config.decoder_start_token_id]])
        inputs = torch.cat([start, tokens], dim=1)
        return self.model(input_ids=self.source, decoder_input_ids=inputs, output_hidden_states=True)

    def log_probs(self, new: Ids) -> torch.Tensor:
        return self(new).logits[0, -1].log_softmax(-1)

    def states(self, new: Ids) -> torch.Tensor:
        """The last ones of all positions, (length, width)."""
        out = self(new)
        return (out.decoder_hidden_states if self.is_encoder_decoder else out.hidden_states)[-1][0]


def contrastive(reader: Reader, alpha: float, k: int, limit: int, ends: Sequence[int]) -> Ids:
    """arXiv:2202.06417, equation 5."""
    new: Ids = []
    while len(new) < limit and (not new or new[-1] not in ends):
        probable = reader.log_probs(new).exp().topk(k)
        scores = []
        for p, token in zip(probable.values.tolist(), probable.indices.tolist(), strict=True):
            states = reader.states([*new, token])
            similar = torch.cosine_similarity(states[-1], states[:-1], dim=-1).max().item()
            scores.append((1 - alpha) * p - alpha * similar)
        new.append(int(probable.indices[scores.index(max(scores))]))
    return new


def dola(reader: Reader, layers: Sequence[int], limit: int, ends: Sequence[int]) -> Ids:
    """arXiv:2309.03883, equations 1 to 5, where the divergence is what transformers computes."""
    new: Ids = []
    head = reader.model.get_output_embeddings()
    while len(new) < limit and (not new or new[-1] not in ends):
        out = reader(new)
        last = out.logits[0, -1].softmax(-1)
        earlier = [head(out.hidden_states[layer][0, -1]).softmax(-1).detach() for layer in layers]
        apart = []
        for q in earlier:
            mean = (last + q) / 2
            apart.append(float((mean * (mean / last).log()).sum() + (mean * (mean / q).log()).sum()))
        base = earlier[apart.index(max(apart))]
        scores = (last / base).log()
        scores[last < 0.1 * last.max()] = -torch.inf
        new.append(int(scores.argmax()))
    return new


def guided(reader: Reader, without: Reader, scale: float, limit: int, ends: Sequence[int]) -> Ids:
    """arXiv:2306.17806, equation 7."""
    new: Ids = []
    while len(new) < limit and (not new or new[-1] not in ends):
        away = without.log_probs(new)
        new.append(int((away + scale * (reader.log_probs(new) - away)).argmax()))
    return new


Scored = tuple[float, Ids]


class Beams:
    """Beams that compete, and the whole sequences that they have become."""

    def __init__(self, beams: int, length_penalty: float, early_stopping: bool) -> None:
        self.size, self.length_penalty, self.early_stopping = beams, length_penalty, early_stopping
        self.running: list[Scored] = [(0.0, [])]
        self.done: list[Scored] = []
        self.open = True

    def finish(self, total: float, ids: Ids) -> None:
        self.done.append((total / len(ids) ** self.length_penalty, ids))
        self.done = sorted(self.done, reverse=True)[: self.size]

    def close(self, best: Scored) -> None:
        """Is it over, if ``best`` was the best continuation?"""
        if len(self.done) == self.size:
            hopeless = self.done[-1][0] >= best[0] / len(best[1]) ** self.length_penalty
            self.open = not (self.early_stopping or hopeless)


def continuations(read: Next, running: Sequence[Scored]) -> list[Scored]:
    """All, best first."""
    found = [
        (total + value, [*ids, token])
        for total, ids in running
        for token, value in enumerate(read(ids).tolist())
        if value > -torch.inf
    ]
    return sorted(found, reverse=True)


def diverse(
    read: Next, *, beams: int, groups: int, penalty: float, limit: int, ends: Sequence[int], length_penalty: float,
    early_stopping: bool,
) -> list[Scored]:  # fmt: skip
    """arXiv:1610.02424, algorithm 1 with the Hamming diversity of section 3.3. All whole sequences, best first."""
    each = beams // groups
    searches = [Beams(each, length_penalty, early_stopping) for _ in range(groups)]
    for _ in range(limit):
        taken: Ids = []
        for one in searches:
            if not one.open:
                continue
            rivals = list(taken)

            def penalized(ids: Ids, rivals: Ids = rivals) -> torch.Tensor:
                values = read(ids).clone()
                for token in rivals:
                    values[token] -= penalty
                return values

            found = continuations(penalized, one.running)
            for total, ids in found[:each]:
                if ids[-1] in ends:
                    one.finish(total, ids)
            one.running = [pair for pair in found if pair[1][-1] not in ends][:each]
            one.close(found[0])
            taken += [ids[-1] for _, ids in one.running]
    for one in searches:
        for total, ids in one.running if one.open else []:
            one.finish(total, ids)
    return sorted((pair for one in searches for pair in one.done), reverse=True)


def constrained(
    read: Next, wanted: Sequence[Sequence[Ids]], *, beams: int, limit: int, ends: Sequence[int], length_penalty: float,
    early_stopping: bool,
) -> list[Scored]:  # fmt: skip
    """arXiv:1804.06609, section 3: the banks take turns. ``wanted``: of each list one phrase must be written.

    Returns: whole sequences that have all, best first.
    """
    one = Beams(beams, length_penalty, early_stopping)
    longest = max(len(phrase) for phrases in wanted for phrase in phrases)
    for length in range(1, limit + 1):
        found = continuations(read, one.running)
        for total, ids in found[:beams]:
            if ids[-1] in ends and met(wanted, ids)[0] == len(wanted):
                one.finish(total, ids)
        offered = [pair for pair in found if pair[1][-1] not in ends][:beams]
        brings = {tuple(ids): further(wanted, ids) for _, ids in one.running}
        offered += [pair for pair in found if pair[1][-1] in brings[tuple(pair[1][:-1])] and pair not in offered]
        banks: dict[int, list[Scored]] = {}
        for pair in sorted(offered, reverse=True):
            whole, written, phrases = met(wanted, pair[1])
            partly = longest - max(map(len, phrases)) + len(written) if written else 0
            banks.setdefault(whole * longest + partly, []).append(pair)
        turns = [banks[bank][place] for place in range(len(offered)) for bank in sorted(banks, reverse=True)
                 if place < len(banks[bank])]  # fmt: skip
        one.running = turns[:beams]
        if length == limit and not (early_stopping and len(one.done) == beams):
            for total, ids in one.running:
                if met(wanted, ids)[0] == len(wanted):
                    one.finish(total, ids)
        one.close(found[0])
        if not one.open:
            break
    return one.done


def met(wanted: Sequence[Sequence[Ids]], ids: Ids) -> tuple[int, Ids, Sequence[Ids]]:
    """How many lists have their phrase in ``ids``; what stands there of another one at the end, and its list."""
    waiting, written, current, whole = list(wanted), list[int](), None, 0
    for token in ids:
        if current is None:
            current = next((some for some in waiting if any(phrase[0] == token for phrase in some)), None)
            if current is None:
                continue
            waiting.remove(current)
            written = [token]
        elif any(phrase[: len(written) + 1] == [*written, token] for phrase in current):
            written = [*written, token]
        else:  # broken off: it waits again, behind the others
            waiting.append(current)
            written, current = [], None
        if current is not None and written in current:
            whole, written, current = whole + 1, [], None
    return whole, written, current or []


def further(wanted: Sequence[Sequence[Ids]], ids: Ids) -> set[int]:
    """The tokens that bring ``ids`` on."""
    now = met(wanted, ids)
    if now[1]:
        return {phrase[len(now[1])] for phrase in now[2] if phrase[: len(now[1])] == now[1]}
    tried = {phrase[0] for phrases in wanted for phrase in phrases}
    return {token for token in tried if met(wanted, [*ids, token])[:2] > now[:2]}
