"""What only a GPU can show: compiled kernels, their bits, addresses past 2^31, streams, graphs, devices, autocast."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, NORMS, Operands, call, draw, errors, forget, normal, run, ulps, variants
from gradients import check, draw_gradients, gradients
from test_autograd import SHAPE, model, operands
from test_variants import saved_rstd
from torch import Tensor

import norm_fusion as nf
from norm_fusion.kernels.dispatch import Dispatch
from norm_fusion.spec import Op

EACH_OP = pytest.mark.parametrize("op", NORMS)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
COLS = (1, 2, 3, 7, 33, 64, 128, 255, 256, 512, 513, 768, 1000, 1024, 2048, 3072, 4096, 4097, 5120, 7168, 8192)
WIDE = (12288, 16384, 16385, 20480, 32768, 65536, 65537, 131072, 262144)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


def on_gpu(given: Operands) -> Operands:
    return replace(given, **{name: tensor.cuda() for name, tensor in given.tensors.items()})


def ours(op: Op) -> Any:
    return nf.rms_norm if op is Op.RMSNORM else nf.layer_norm


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", COLS + WIDE)
def test_output_and_gradients_match_the_oracle(op: Op, dtype: torch.dtype, cols: int) -> None:
    """Fewer rows than programs, and many more."""
    for rows in (5, 700 if cols < 20_000 else 40):
        given = on_gpu(draw(op, rows, cols, dtype, seed=cols))
        found = errors(run(given), given)
        assert found.ok, found
        check(given)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [100, 128, 1024, 4096, 5121, 16384, 65536, 131073])
def test_every_variant_matches_the_oracle(op: Op, dtype: torch.dtype, cols: int) -> None:
    for name, given in variants(op, 300 if cols < 100_000 else 40, cols, dtype).items():
        given = on_gpu(given)
        found = errors(run(given), given)
        assert found.ok, (name, found)
        if name != "cast first":
            check(given)


@EACH_OP
@EACH_DTYPE
@pytest.mark.parametrize("cols", [128, 1000, 4096, 16384, 65536])
def test_bits_depend_on_neither_saving_nor_the_batch_nor_the_time(op: Op, dtype: torch.dtype, cols: int) -> None:
    for name, given in variants(op, 70, cols, dtype).items():
        given = on_gpu(given)
        y, _ = call(given)
        saved, _ = call(replace(given, x=given.x.clone().requires_grad_()))
        assert torch.equal(y, saved), name
        rows = {n: t[7:9].clone() for n, t in given.tensors.items() if n in ("x", "residual", "gate")}
        assert torch.equal(call(replace(given, **rows))[0], y[7:9]), name
        dy, dh = draw_gradients(given)
        dy, dh = dy.cuda(), None if dh is None else dh.cuda()
        once = gradients(given, dy, dh)
        for _ in range(3):
            again = gradients(given, dy, dh)
            assert all(torch.equal(once[n], again[n]) for n in once), name
        part = gradients(replace(given, **rows), dy[7:9].clone(), None if dh is None else dh[7:9].clone())
        assert torch.equal(part["x"], once["x"][7:9]), name


@EACH_DTYPE
@pytest.mark.parametrize("layout", ["heads", "heads before tokens", "misaligned", "columns of a wider tensor"])
def test_strided_rows_give_the_bits_of_dense_ones(dtype: torch.dtype, layout: str) -> None:
    x = {
        "heads": lambda: normal(4, 50, 3, 16, 128, dtype=dtype)[:, :, 1],
        "heads before tokens": lambda: normal(4, 16, 50, 128, dtype=dtype).transpose(1, 2),
        "misaligned": lambda: normal(4 * 50 * 16 * 128 + 1, dtype=dtype)[1:].view(4, 50, 16, 128),
        "columns of a wider tensor": lambda: normal(4, 50, 16, 200, dtype=dtype)[..., 3:131],
    }[layout]()
    for weight in (normal(128, dtype=dtype), normal(16, 128, dtype=dtype)):
        given = on_gpu(Operands(Op.RMSNORM, x, weight))
        if layout.startswith("heads"):
            given = replace(given, x=x.cuda() if layout == "heads" else x.transpose(1, 2).cuda().transpose(1, 2))
        dense = replace(given, x=given.x.contiguous())
        assert torch.equal(run(given), run(dense))
        dy, _ = draw_gradients(given)
        found, expected = gradients(given, dy.cuda(), None), gradients(dense, dy.cuda(), None)
        assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("cols", [10, 300, 700, 1000, 7000, 20_001, 70_001])
def test_a_constant_row_has_no_negative_variance(cols: int) -> None:
    """Of it nothing is left but the square of what its mean lost to rounding: beyond an eps like this."""
    x = torch.rand(200, 1, device="cuda").mul(3e4).expand(-1, cols)
    y = nf.layer_norm(x, (cols,), eps=1e-30)
    assert y.isfinite().all()


@EACH_OP
def test_more_than_2_to_the_31_elements(op: Op) -> None:
    cols, rows = 32768, 66_000
    x = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    weight = torch.randn(cols, device="cuda", dtype=torch.bfloat16)
    wide = x.clone().requires_grad_()
    y = ours(op)(wide, (cols,), weight)
    y.backward(x)
    few = x[-5:].clone().requires_grad_()
    expected = ours(op)(few, (cols,), weight)
    expected.backward(x[-5:])
    assert torch.equal(y[-5:], expected) and torch.equal(wide.grad[-5:], few.grad)


@EACH_OP
def test_rows_whose_offset_passes_2_to_the_31(op: Op) -> None:
    storage = torch.randn(3 * 2**30, device="cuda", dtype=torch.float16)
    x = storage.as_strided((3, 256), (2**30 + 2**29 - 128, 1)).detach().requires_grad_()
    weight = torch.randn(256, device="cuda", dtype=torch.float16)
    y = ours(op)(x, (256,), weight)
    dense = x.detach().contiguous().requires_grad_()
    expected = ours(op)(dense, (256,), weight)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(y, expected)
    assert torch.equal(dx, torch.autograd.grad(expected, dense, torch.ones_like(y))[0])


def chain() -> list[Tensor]:
    return [t.cuda().requires_grad_() for t in operands()]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_compiled_without_a_break(mode: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: model(nf, *t), fullgraph=True, mode=mode)
    dy = normal(5, 64, seed=5).cuda()
    found = []
    for step in (lambda *t: model(nf, *t), compiled, compiled, compiled):
        tensors = chain()
        y = step(*tensors)
        y.backward(dy)
        found.append([y.detach().clone(), *(t.grad.clone() for t in tensors)])
    for later in found[1:]:
        assert torch.equal(found[0][0], later[0])
        for mine, other in zip(found[0], later, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_new_number_of_rows_compiles_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Dispatch] = []
    real = Dispatch.__init__

    def remember(self: Dispatch, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        made.append(self)

    forget()
    monkeypatch.setattr(Dispatch, "__init__", remember)
    counts = []
    for rows in (1, 3, 8, 64, 1000, 4096, 4097, 100_000):
        x = torch.randn(rows, 96, device="cuda", requires_grad=True)
        r = torch.randn(rows, 96, device="cuda", requires_grad=True)
        w, b = (torch.randn(96, device="cuda", requires_grad=True) for _ in range(2))
        y, h = nf.add_layer_norm(x, r, (96,), w, b)
        (nf.rms_norm(y, (96,), w).sum() + h.sum()).backward()
        counts.append(sum(len(dispatch.compiled) for dispatch in made))
    assert len(set(counts)) == 1, counts


def test_captured_in_a_graph_and_replayed() -> None:
    tensors = chain()
    dy = normal(5, 64, seed=5).cuda()

    def step() -> list[Tensor]:
        y = model(nf, *tensors)
        return [y, *torch.autograd.grad(y, tensors, dy)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors[0].copy_(normal(5, 64, seed=11))
    graph.replay()
    expected = step()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@EACH_OP
def test_programs_that_wait_for_each_other_on_many_streams_and_in_a_graph(op: Op) -> None:
    """Several such kernels at a time, each of as many programs as the GPU runs, and the board anew at each replay."""
    cols = 40_000
    x, weight = (torch.randn(*shape, cols, device="cuda", requires_grad=True) for shape in ((300,), ()))
    dy = torch.randn(300, cols, device="cuda")

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ours(op)(x, (cols,), weight), [x, weight], dy)

    expected = step()
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    found = []
    for stream in streams * 5:
        with torch.cuda.stream(stream):
            found.append(step())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for scale in (1.0, 2.0, 3.0):
        with torch.no_grad():
            dy.mul_(scale)
        graph.replay()
        found.append(tuple(t.clone() / (1.0, 2.0, 6.0)[int(scale) - 1] for t in captured))
    for one in found:
        for mine, other in zip(one, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(mine, other) for one in found[:20] for mine, other in zip(one, expected, strict=True))


def test_on_any_stream() -> None:
    """What a kernel on this stream has written is read, and not what was there before: launched early or not."""
    x = torch.randn(4096, 4096, device="cuda")
    expected = nf.rms_norm(x * 3 + 1, (4096,))
    torch.cuda.synchronize()
    for _ in range(20):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            y = nf.rms_norm(x * 3 + 1, (4096,))
        stream.synchronize()
        assert torch.equal(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_any_device() -> None:
    with torch.cuda.device(0):
        tensors = [t.to("cuda:1").requires_grad_() for t in operands()]
        y = model(nf, *tensors)
        y.sum().backward()
    other = chain()
    expected = model(nf, *other)
    expected.sum().backward()
    assert y.device.index == 1 and torch.equal(y.cpu(), expected.cpu())
    assert all(torch.equal(a.grad.cpu(), b.grad.cpu()) for a, b in zip(tensors, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_autocast_does_what_torchs_function_does(name: str, dtype: torch.dtype) -> None:
    x, _, w, _ = chain()
    with torch.autocast("cuda", dtype=dtype):
        for given in (x, x.detach().to(dtype)):
            mine, theirs = getattr(nf, name)(given, SHAPE, w), getattr(F, name)(given, SHAPE, w)
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("cols", [128, 4096, 5120, 20_480, 131_072])
def test_cast_first_rounds_where_hugging_face_does(dtype: torch.dtype, cols: int) -> None:
    """Given the rstd that the kernel found."""
    given = on_gpu(replace(draw(Op.RMSNORM, 200, cols, dtype), cast_first=True))
    expected = given.weight * (given.x.float() * saved_rstd(given)).to(dtype)
    off = ulps(run(given), expected)
    assert off.max() <= 1 and (off > 0).float().mean() < 1e-3


def test_memory_is_what_the_gradients_need() -> None:
    """The input is kept, not copied; fp32 statistics a row; partial sums are gone when the backward ends."""
    x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    nf.rms_norm(x, (4096,), w).sum().backward()
    x.grad = w.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = nf.rms_norm(x, (4096,), w)
    rows = 4 * 8192
    assert torch.cuda.memory_allocated() - before <= y.numel() * 2 + rows + 2048
    with torch.no_grad():
        before = torch.cuda.memory_allocated()
        z = nf.rms_norm(x, (4096,), w)
        assert torch.cuda.memory_allocated() - before == z.numel() * 2
