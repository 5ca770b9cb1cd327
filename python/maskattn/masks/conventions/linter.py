"""A linter for masks from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from maskattn.masks.base import BoolArray
from maskattn.masks.conventions import patterns
from maskattn.masks.conventions.additive import HIDDEN_BELOW
from maskattn.masks.conventions.arrays import Array, as_array, is_floating
from maskattn.masks.parameters import count


@dataclass(frozen=True)
class Finding:
    """One thing to know about an array, and what to do about it ("" where there is nothing to do)."""

    kind: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" + (f" -> {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Report:
    """What an array probably is.

    ``form`` is "flags" (bool, or 0 and 1), "additive" (0 and -inf or very low), "bias", or "other". ``polarity`` is
    "keep", "ignore" (what True or 1 means; what 0 means for "additive") or "unknown"; ``certainty`` is "certain",
    "likely", "a guess" or "undecided". ``alignment`` is that of a causal mask: "square", "top-left", "bottom-right".
    ``window`` counts the keys before and after the query's own; ``lengths`` are the real keys of each sequence.
    """

    shape: tuple[int, ...]
    dtype: str
    form: str = "other"
    polarity: str = "unknown"
    certainty: str = "undecided"
    causal: bool = False
    alignment: str | None = None
    window: tuple[int | None, int | None] | None = None
    padded_side: str | None = None
    lengths: tuple[int, ...] | None = None
    empty_rows_if_keep: int = 0
    empty_rows_if_ignore: int = 0
    importer: str = ""
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        what = {
            "flags": f"flags, True (1) = {self.polarity} ({self.certainty})",
            "additive": "an additive mask, 0 = keep",
            "bias": "a bias, not a mask",
        }.get(self.form, "not a mask")
        lines = [f"{self.dtype} array of shape {self.shape}: {what}"]
        lines += [f"  {finding}" for finding in self.findings]
        return "\n".join(lines + ([f"  bring it in with {self.importer}"] if self.importer else []))


def check(array: Array, q_len: int | None = None, kv_len: int | None = None) -> Report:
    """Says what an array probably is: polarity, causal, window, padded side, additive, empty rows; and its importer.

    Args:
        array: a mask from another library, of rank 1 to 4.
        q_len, kv_len: of the call, if known; they tell (batch, kv_len) from (q_len, kv_len), and a shape that is wrong.

    >>> print(check(np.triu(np.ones((3, 3), bool), 1)))
    bool array of shape (3, 3): flags, True (1) = ignore (certain)
      polarity: True (1) means ignore: read so, no query sees a key after it (square) -> masks.Dense.from_ignore
      causal: the look-ahead mask and nothing else -> masks.Causal()
      bring it in with masks.Dense.from_ignore(array)
    """
    array = as_array("array", array)
    q_len, kv_len = (None if n is None else count(name, n) for name, n in (("q_len", q_len), ("kv_len", kv_len)))
    report = Report(array.shape, array.dtype.name)
    if not 1 <= array.ndim <= 4 or array.size == 0:
        wrong = Finding("shape", "must have rank 1 to 4 and elements", "index or expand it first")
        return replace(report, findings=(wrong,))
    sizes = _sizes(array.shape, q_len, kv_len)
    form, ones, about_values = _values(array)
    report = replace(report, form=form, findings=tuple(sizes + about_values))
    if ones is None:
        return replace(report, importer="attention(..., bias=array)" if form == "bias" else "")
    stack, keys, unclear = _stack(ones, q_len, kv_len)
    report = replace(report, findings=(*report.findings, *unclear))
    return _judge(report, stack, keys, numbers=array.dtype != np.bool_)


def _sizes(shape: tuple[int, ...], q_len: int | None, kv_len: int | None) -> list[Finding]:
    found, last = [], shape[-1]
    if kv_len is not None and last not in (1, kv_len):
        if len(shape) > 1 and (shape[-2], last) == (kv_len, q_len):
            found.append(
                Finding("transposed", f"its last axes are (kv_len, q_len) {shape[-2:]}", "array.swapaxes(-1, -2)")
            )
        elif last < kv_len:
            text = f"its last axis is {last}, shorter than kv_len={kv_len}; ONNX hides the rest, others refuse it"
            found.append(Finding("short", text, "masks.from_onnx(array, q_len=..., kv_len=...)"))
        else:
            found.append(
                Finding("long", f"its last axis is {last}, longer than kv_len={kv_len}", "array[..., :kv_len]")
            )
    elif q_len is not None and len(shape) > 2 and shape[-2] not in (1, q_len):
        found.append(Finding("rows", f"it has {shape[-2]} rows, the call {q_len}", "array[..., -q_len:, :]"))
    return found


def _values(array: Array) -> tuple[str, BoolArray | None, list[Finding]]:
    """(form, what is 1 or keeps, findings)."""
    if array.dtype == np.bool_:
        return "flags", array, []
    if not is_floating(array) and array.dtype.kind not in "iu":
        return "other", None, [Finding("dtype", f"{array.dtype} is no dtype of a mask", "array.astype(bool)")]
    numbers = array.astype(np.float64)
    if np.isnan(numbers).any() or np.isposinf(numbers).any():
        text = "NaN or +inf: scores that they are added to become NaN (0 * -inf is NaN)"
        return "other", None, [Finding("not-finite", text, "np.where(keep, 0, -np.inf)")]
    if np.isin(numbers, (0, 1)).all() and numbers.any():
        if not is_floating(array):
            return "flags", numbers == 1, [Finding("numbers", f"0 and 1 as {array.dtype}", "array.astype(bool)")]
        text = f"0 and 1 as {array.dtype}: a library that adds them to scores hides nothing, and raises no error"
        return "flags", numbers == 1, [Finding("float-flags", text, "array.astype(bool)")]
    keep, low = numbers == 0, numbers <= HIDDEN_BELOW
    if (keep | low).all():
        return "additive", keep, _about_low(array, low & ~np.isneginf(numbers), np.isneginf(numbers))
    if not is_floating(array):
        text = "integers other than 0 and 1: positions, or ids of documents?"
        return "other", None, [Finding("ids", text, "masks.Documents(array), or compare them first")]
    text = f"values from {numbers.min():g} to {numbers.max():g}: they change scores, and are no mask"
    return "bias", None, [Finding("bias", text, "attention(..., bias=array); -inf in it hides")]


def _about_low(array: Array, finite: BoolArray, infinite: BoolArray) -> list[Finding]:
    found = []
    if not (finite | infinite).any():
        found.append(Finding("zeros", "all zeros: nothing is hidden, or it is no mask yet"))
    if finite.any():
        text = (
            f"hides with {array.min() if not infinite.any() else array[finite].min()}, which is not -inf: a row that "
        )
        text += "hides every key attends to everything in the source library, to nothing here"
        found.append(Finding("finite-low", text, "-np.inf in its place, if you can change the source"))
    if finite.any() and infinite.any():
        text = "both -inf and finite numbers hide: two masks were added, and finfo.min + finfo.min is -inf"
        found.append(Finding("mixed", text, "combine bool masks with &, not sums"))
    return found


def _stack(ones: BoolArray, q_len: int | None, kv_len: int | None) -> tuple[BoolArray, bool, list[Finding]]:
    """The array as matrices (n, q_len, kv_len), whether it flags keys alone (then q_len is 1), and what is unclear."""
    rows, keys = ones.shape[-2:] if ones.ndim > 1 else (1, ones.shape[-1])
    if ones.ndim != 2 or rows == 1:
        return ones.reshape(-1, rows, keys), rows == 1, []
    as_keys, as_matrix = ones[:, None, :], ones[None]
    if q_len is not None and kv_len is not None:
        return (as_matrix, False, []) if rows == q_len else (as_keys, True, [])
    padding = any(patterns.padding_of(x) is not None for x in (ones, ~ones))
    triangle = any(patterns.is_triangle(x) for x in (as_matrix, ~as_matrix))
    if not (padding and triangle):
        return (as_keys, True, []) if padding and rows != q_len else (as_matrix, False, [])
    # Three rows that grow by one key each are a triangle rather than sequences sorted by length.
    if rows >= 3:
        return as_matrix, False, []
    text = f"a mask of {rows} queries, or the padding of {rows} sequences"
    unclear = Finding("ambiguous", text, "check(array, q_len=..., kv_len=...)")
    return (as_matrix, False, [unclear]) if rows in (q_len, keys) else (as_keys, True, [unclear])


def _judge(report: Report, ones: BoolArray, keys: bool, numbers: bool) -> Report:
    """Polarity, and what the array hides when read so."""
    votes = patterns.padding_votes(ones[:, 0], numbers) if keys else patterns.matrix_votes(ones)
    report = replace(
        report,
        empty_rows_if_keep=int((~ones).all(axis=-1).sum()),
        empty_rows_if_ignore=int(ones.all(axis=-1).sum()),
    )
    found = list(report.findings)
    if report.form == "additive":
        report = replace(report, polarity="keep", certainty="certain", importer="masks.from_additive(array)")
        if votes and votes[0] == replace(votes[0], polarity="ignore", certainty="certain"):
            text = "0 keeps, yet what it hides is the past: the flags that it was made of had the other polarity"
            found.append(Finding("inverted", text, "masks.from_additive(np.where(array == 0, -np.inf, 0))"))
    else:
        polarity, certainty = patterns.decide(votes)
        report = replace(report, polarity=polarity, certainty=certainty, importer=_importer(report, polarity, keys))
        found.append(_about_polarity(report, votes))
    keep = ~ones if report.polarity == "ignore" else ones
    report = replace(report, findings=tuple(found))
    report = _padding(report, keep[:, 0]) if keys else _triangle(report, keep)
    return _empty_rows(report)


def _importer(report: Report, polarity: str, keys: bool) -> str:
    flat = keys and len(report.shape) == 2
    flags = "array" if report.dtype == "bool" else "array.astype(bool)"
    keep = "masks.from_hf(array)" if flat else f"masks.from_torch_sdpa({flags})"
    ignore = f"masks.from_torch_mha(key_padding_mask={flags})" if flat else f"masks.Dense.from_ignore({flags})"
    if len(report.shape) == 3:
        keep = "masks.from_keras(array)"
        ignore = f"masks.from_torch_mha({flags}, num_heads=...)"
    return {"keep": keep, "ignore": ignore}.get(polarity, f"{keep} if True = keep, {ignore} if True = ignore")


def _about_polarity(report: Report, votes: list[patterns.Vote]) -> Finding:
    importer = report.importer.split("(")[0]
    if report.polarity == "unknown":
        text = "nothing tells whether True (1) means keep or ignore"
        return Finding("polarity", text, "the documentation of its source (docs/conventions.md has a table)")
    against = [vote.reason for vote in votes if vote.polarity != report.polarity]
    text = f"True (1) means {report.polarity}: {votes[0].reason}" + (f"; but {against[0]}" if against else "")
    return Finding("polarity", text, importer)


def _triangle(report: Report, keep: BoolArray) -> Report:
    q_len, kv_len = keep.shape[-2:]
    found = list(report.findings)
    alignment = patterns.causal_alignment(keep)
    band = patterns.band_of(keep)
    window: tuple[int | None, int | None] | None = None
    if alignment is not None:
        start = kv_len - q_len if alignment == "bottom-right" else 0
        if band is not None and band.first is not None:
            window = (start - band.first, 0)
        found.append(_about_causal(alignment, band, window))
    elif band is not None and band.last is None and band.first is not None and band.first in (0, 1):
        text = "queries see what comes after them and not what came before: the look-ahead mask, inverted or transposed"
        found.append(Finding("inverted-causal", text, "np.tril in the place of np.triu, or masks.Causal()"))
    elif band is not None and (band.first, band.last) != (None, None):
        start = kv_len - q_len
        window = (None if band.first is None else start - band.first, None if band.last is None else band.last - start)
        found.append(Finding("window", f"a window of {window} keys before and after the query's own", _window(window)))
    report = replace(report, causal=alignment is not None, alignment=alignment, window=window, findings=tuple(found))
    if band is None and alignment == "top-left":
        return report  # keys after the last row's are hidden by the alignment, not by padding
    return _padding(report, band.real if band is not None else np.asarray(keep.any(axis=1), np.bool_))


def _window(window: tuple[int | None, int | None]) -> str:
    if any(side is not None and side < 0 for side in window):
        return ""  # its own position is outside: no SlidingWindow says that
    return f"masks.SlidingWindow({window[0]}, {window[1]})"


def _about_causal(alignment: str, band: patterns.Band | None, window: tuple[int | None, int | None] | None) -> Finding:
    where = {"square": "", "top-left": ", aligned top-left", "bottom-right": ", aligned bottom-right"}[alignment]
    if band is None:
        return Finding("causal", f"no query sees a key after it{where}; it hides more than that besides")
    remedy = "masks.Causal()"
    if alignment == "top-left":
        remedy = "masks.from_torch_sdpa(is_causal=True, q_len=..., kv_len=...), or Causal() with q_offset=0"
    if window is not None:
        text = f"a causal window: {window[0]} keys before the query's own{where}"
        remedy += f" & masks.SlidingWindow(left={window[0]})" if alignment != "top-left" else ""
        return Finding("causal", text, remedy)
    return Finding("causal", f"the look-ahead mask{where}" + (" and nothing else" if band.real.all() else ""), remedy)


def _padding(report: Report, real: BoolArray) -> Report:
    if len(report.shape) == 4:
        heads = real.reshape(*report.shape[:2], -1)
        real = heads[:, 0] if (heads == heads[:, :1]).all() else real
    padding = patterns.padding_of(real)
    if padding is None:
        return report
    side, lengths = padding
    shown = ", ".join(map(str, lengths[:8])) + (", ..." if len(lengths) > 8 else "")
    unsure = "" if report.polarity != "unknown" else ", if True = keep"
    text = f"keys are padding on the {side}{unsure}; real keys: {shown}"
    argument = ', side="left"' if side == "left" else ""
    remedy = f"masks.Padding([{shown}]{argument})" if len(lengths) <= 8 and not unsure else ""
    found = (*report.findings, Finding("padding", text, remedy))
    return replace(report, padded_side=side, lengths=lengths, findings=found)


def _empty_rows(report: Report) -> Report:
    empty = report.empty_rows_if_ignore if report.polarity == "ignore" else report.empty_rows_if_keep
    if not empty:
        return report
    text = f"rows that see no key: {empty}. Their result is zeros here, in torch SDPA and in ONNX, NaN in "
    text += "nn.MultiheadAttention, the mean of all values in JAX and wherever a finite number hides"
    return replace(report, findings=(*report.findings, Finding("empty-rows", text)))
