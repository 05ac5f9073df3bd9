"""What the kernels of both reductions, forward and backward, do to a row around the reduction itself.

An operand that is not there is None: Triton compiles a kernel without it. x, r, z, w, b are input, residual, gate,
weight and bias; h is what is normalized, input plus residual where there is one.
"""

import triton
import triton.language as tl

from norm_fusion.kernels.registers import narrow, widen


@triton.jit
def starts(row, inner, middle, outer_stride, middle_stride, stride, VEC: tl.constexpr):
    """The element at which each row begins, 64-bit. Strides come in units of VEC elements.

    Rows lie at one distance where `inner` is None. Otherwise row number (o * middle + m) * inner + i begins at
    o * outer_stride + m * middle_stride + i * stride, as the heads of a slice of a fused qkv do.
    """
    if stride is None:
        at = row * 0
    elif inner is None:
        at = row * stride * VEC
    else:
        block = row // inner
        at = (block // middle * outer_stride + block % middle * middle_stride + row % inner * stride) * VEC
    return at


@triton.jit
def silu(z):
    """z * sigmoid(z) in fp32 (Elfwing, Uchibe and Doya 2017)."""
    return z * tl.sigmoid(z)


@triton.jit
def taken(x_ptr, r_ptr, z_ptr, h_ptr, x_at, r_at, z_at, h_at, col, mask, GATE_FIRST: tl.constexpr):
    """What is normalized: x; x + residual, rounded to the residual's dtype and stored in h; or x * silu(z), in fp32."""
    x = tl.load(x_ptr + x_at + col, mask=mask, other=0.0)
    if r_ptr is not None:
        x = narrow(widen(x) + widen(tl.load(r_ptr + r_at + col, mask=mask, other=0.0)), h_ptr.dtype.element_ty)
        tl.store(h_ptr + h_at + col, x, mask=mask)
    if GATE_FIRST:
        x = widen(x) * silu(widen(tl.load(z_ptr + z_at + col, mask=mask, other=0.0)))
    return x


@triton.jit
def vectors(w_ptr, b_ptr, z_ptr, w_at, z_at, col, in_row, mask):
    """Weight and bias, which are to stay in the cache, and the gate after the norm; 0 for what is not there."""
    w, b, z = 0.0, 0.0, 0.0
    if w_ptr is not None:
        w = tl.load(w_ptr + w_at + col, mask=in_row, other=0.0, eviction_policy="evict_last")
    if b_ptr is not None:
        b = tl.load(b_ptr + w_at + col, mask=in_row, other=0.0, eviction_policy="evict_last")
    if z_ptr is not None:
        z = tl.load(z_ptr + z_at + col, mask=mask, other=0.0)
    return w, b, z


@triton.jit
def finished(y, w, b, z, w_ptr, b_ptr, z_ptr, OFFSET: tl.constexpr, CAST: tl.constexpr, PRODUCT: tl.constexpr):
    """((w + OFFSET) * y + b) * silu(z) in fp32, of what is there.

    y is rounded to CAST first and the product to PRODUCT, dtypes or None, as Hugging Face's Llama does.
    """
    if CAST is not None:
        y = widen(narrow(y, CAST))
    if w_ptr is not None:
        w = widen(w)
        if OFFSET != 0.0:
            w += OFFSET
        y *= w
        if PRODUCT is not None:
            y = widen(narrow(y, PRODUCT))
    if b_ptr is not None:
        y += widen(b)
    if z_ptr is not None:
        y *= silu(widen(z))
    return y
