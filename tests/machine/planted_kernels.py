"""Small kernels without a fault, for the tests that plant one: imported in the compiler's process alone."""

import triton
import triton.language as tl


@triton.jit
def copy_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < size, other=0.0)
    tl.store(y_ptr + i, x + 1.0, mask=i < size)


@triton.jit
def numbered_kernel(y_ptr, size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.program_id(0) + 1, mask=i < size)


@triton.jit
def transpose_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    # The layouts of the load and of the store differ: the tile passes through shared memory.
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i[:, None] * BLOCK + i[None, :])
    tl.store(y_ptr + i[:, None] * BLOCK + i[None, :], tl.trans(x) * 2.0)


@triton.jit
def exchange_kernel(x_ptr, y_ptr, scratch_ptr, BLOCK: tl.constexpr):
    # Waves exchange numbers through global memory.
    i = tl.arange(0, BLOCK)
    tl.store(scratch_ptr + i, tl.load(x_ptr + i))
    # AMD's barrier does not wait for stores to global memory; who needs what was stored has waited.
    tl.store(y_ptr + i, tl.load(scratch_ptr + i, volatile=True))
    tl.debug_barrier()
    tl.store(y_ptr + i, tl.load(scratch_ptr + (BLOCK - 1 - i)))


@triton.jit
def sums_kernel(x_ptr, y_ptr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # Row after row is summed over all waves, in the same shared memory.
    i = tl.arange(0, BLOCK)
    for row in range(ROWS):
        total = tl.sum(tl.load(x_ptr + row * BLOCK + i), axis=0)
        tl.store(y_ptr + row * BLOCK + i, tl.load(x_ptr + row * BLOCK + i) - total)


@triton.jit
def product_kernel(x_ptr, w_ptr, y_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    # A loop of matrix products whose operands are loaded ahead: on NVIDIA with asynchronous copies.
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, BLOCK):
        x = tl.load(x_ptr + i[:, None] * K + (k + i)[None, :])
        w = tl.load(w_ptr + (k + i)[:, None] * BLOCK + i[None, :])
        total = tl.dot(x, w, total, input_precision="tf32")
    tl.store(y_ptr + i[:, None] * BLOCK + i[None, :], total)
