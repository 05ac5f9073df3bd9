"""What contestants are given: activations and parameters, drawn so that any process can draw the same again.

An element is a value of a fixed table, picked by a hash of seed, row and column: integer arithmetic and look-ups alone,
so that a CPU draws bit by bit what a GPU drew, and draws single rows of it. That is how a process that the contestant
cannot reach knows what the right result is.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from norm_fusion.backends.builtin import Operands
from norm_fusion.spec import Case, Pass, parts_of

# By `Op.centred`: Hugging Face's Llama default; LayerNorm's is torch.nn's.
EPS = {False: 1e-6, True: 1e-5}
# One channel in so many is an outlier, so many times larger than the others; all have a small mean.
OUTLIER_EVERY, OUTLIER_TIMES, MEAN = 128, 20.0, 0.25
GRADIENT = 2.0**-6  # the size of what comes in backward
# Hashed at a time, in int64: on a GPU 0.3 GB; on a CPU what fits its cache, 12 times as fast as all at once, and what
# PyTorch works on with one thread: on a busy machine its threads wait for each other far longer than they work.
CHUNK_ELEMENTS = {"cpu": 2**15, "cuda": 2**24}
TABLE_BITS = 16
MASK = 2**32 - 1


def draw_input(
    case: Case, device: torch.device, seed: int, rows: Tensor | None = None, change: int | None = None
) -> Tensor:
    """Activations, shape (rows, cols): normal, with one channel in 128 twenty times larger and a small mean.

    So is each part of an input that has several, shape (parts * rows, cols), incoming gradients 1/64 as large: the sums
    of their terms over rows are no overflow in 16 bits. `rows`: the indices of those to draw, shape (n,), not all.
    `change`: the seed by which one element of each row is larger, so much that four is added to the row's mean square
    (1/1024 in a gradient): few enough that none who looks at a few finds them. A backward's activations have no change:
    what was saved of them stays what it was.
    """
    index = torch.arange(len(case.parts) * case.rows, device=device) if rows is None else rows.to(device)
    cols = torch.arange(case.cols, device=device)
    table = _table(case.dtype, OUTLIER_TIMES, MEAN).to(device)
    incoming = (index >= activation_rows(case))[:, None]
    if case.pass_ is Pass.BACKWARD:
        table = torch.cat([table, table * GRADIENT])
    # The outliers' half of the table begins after the others'; which channels they are is the order of their hashes.
    half = torch.zeros_like(cols)
    half[_hash(cols, 2 * seed + 1).argsort()[: max(1, case.cols // OUTLIER_EVERY)]] = 2**TABLE_BITS
    row_hash = _hash(index, 2 * seed)[:, None]
    x = torch.empty(len(index), case.cols, device=device, dtype=table.dtype)
    each = max(1, CHUNK_ELEMENTS[device.type] // case.cols)
    for first in range(0, len(index), each):
        picked = _mix(row_hash[first : first + each] ^ cols)
        picked >>= 32 - TABLE_BITS
        picked += half
        if case.pass_ is Pass.BACKWARD:
            picked += incoming[first : first + each] * 2 ** (TABLE_BITS + 1)
        part = x[first : first + each]
        torch.index_select(table, 0, picked.view(-1), out=part.view(-1))
    if change is not None:
        where = (_hash(index, change) % case.cols)[:, None]
        was = x.gather(1, where)
        size = 2 * case.cols**0.5 * (1 if case.pass_ is Pass.FORWARD else GRADIENT)
        more = was + torch.full_like(was, size).copysign(was)
        x.scatter_(1, where, more if case.pass_ is Pass.FORWARD else torch.where(incoming, more, was))
    return x


def activation_rows(case: Case) -> int:
    """How many rows of an input, the first ones, are activations; the others are gradients that come in."""
    return len(parts_of(case.op, Pass.FORWARD)) * case.rows


def rows_of_parts(case: Case, rows: Tensor) -> Tensor:
    """The rows of an input, shape (parts * n,), that these of its parts, shape (n,), are."""
    return torch.cat([rows + i * case.rows for i in range(len(case.parts))])


def draw_operands(case: Case, device: torch.device, seed: int) -> Operands:
    """Random parameters, shape (cols,): never ones, which would hide a wrong or missing weight."""
    cols = torch.arange(case.cols, device=device)

    def vector(stream: int, mean: float) -> Tensor:
        table = _table(case.dtype, 1.0, mean).to(device)
        return table[_hash(cols, 2**20 + 2 * seed + stream) >> (32 - TABLE_BITS)]

    bias = vector(1, 0.0) if case.op.centred else None
    return Operands(case.op, vector(0, 1.0), bias, EPS[case.op.centred], case.pass_)


@cache
def _table(dtype: str, times: float, mean: float) -> Tensor:
    """2^16 quantiles of the normal distribution, then the same `times` as large; both shifted by `mean`."""
    n = 2**TABLE_BITS
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    kind: torch.dtype = getattr(torch, dtype)
    return torch.cat([quantiles + mean, quantiles * times + mean]).to(kind)


def _hash(index: Tensor, seed: int) -> Tensor:
    """32 random-looking bits for each index, in int64."""
    salt = int(_mix(torch.tensor((seed ^ (seed >> 32)) & MASK)))
    return _mix((index & MASK) ^ salt)


def _mix(z: Tensor) -> Tensor:
    """A bijection of 32 bits, in place: multiply and xor-shift twice, then shift once more (after Thomas Mueller).

    The multiplier is below 2^31, so that nothing overflows in int64.
    """
    shifted = torch.empty_like(z)
    for _ in range(2):
        torch.bitwise_right_shift(z, 16, out=shifted)
        z ^= shifted
        z *= 0x45D9F3B
        z &= MASK
    return torch.bitwise_right_shift(z, 16, out=shifted).bitwise_xor_(z)
