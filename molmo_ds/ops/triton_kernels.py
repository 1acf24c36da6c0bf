"""Every Triton kernel; imported by the ops when one is first run, so that a machine without Triton never needs it.

All arithmetic is float32 whatever the tensors hold. No kernel uses atomics: a result is the same bit for bit each time.
Letters are those of the op that launches the kernel; BLOCK columns per program.
"""

import triton
import triton.language as tl


@triton.jit
def normalise_patches(
    images, out, rows, columns, m0, m1, m2, s0, s1, s2, PATCH: tl.constexpr, BLOCK: tl.constexpr
):  # one program per patch
    pid = tl.program_id(0).to(tl.int64)
    crop, patch = pid // (rows * columns), pid % (rows * columns)
    y, x = patch // columns, patch % columns
    k = tl.arange(0, BLOCK)
    inside = k < PATCH * PATCH * 3
    line, rest = k // (PATCH * 3), k % (PATCH * 3)
    source = ((crop * rows + y) * PATCH + line) * (columns * PATCH * 3) + x * PATCH * 3 + rest
    value = tl.load(images + source, mask=inside, other=0).to(tl.float32) / 255.0
    channel = k % 3
    mean = tl.where(channel == 0, m0, tl.where(channel == 1, m1, m2))
    std = tl.where(channel == 0, s0, tl.where(channel == 1, s1, s2))
    tl.store(out + pid * (PATCH * PATCH * 3) + k, (value - mean) / std, mask=inside)


@triton.jit
def splice(ids, base, extra, features, row_at, out, E, D, BLOCK: tl.constexpr):  # one program per (token, BLOCK)
    token = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    word, row = tl.load(ids + token), tl.load(row_at + token).to(tl.int64)
    table = tl.where(word < E, base + word * D, extra + (word - E) * D)
    value = tl.load(table + c, mask=inside, other=0.0).to(tl.float32)
    if row >= 0:
        value += tl.load(features + row * D + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * D + c, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def splice_features_backward(grad, positions, out, D, BLOCK: tl.constexpr):  # one program per (feature, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    at = tl.load(positions + row)
    value = tl.load(grad + tl.where(at < 0, 0, at) * D + c, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(at < 0, 0.0, value)
    tl.store(out + row * D + c, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def splice_base_backward(grad, words, order, ends, out, E, D, BLOCK: tl.constexpr):
    # one program per (place in the sorted words, BLOCK); the first of equal words adds up all of them, in order
    place = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    word = tl.load(words + place)
    before = tl.load(words + tl.maximum(place - 1, 0))
    end = tl.load(ends + place)
    first = (word < E) & ((place == 0) | (before != word))
    j = tl.where(first, place, end)
    total = tl.zeros((BLOCK,), tl.float32)
    while j < end:
        total += tl.load(grad + tl.load(order + j) * D + c, mask=inside, other=0.0).to(tl.float32)
        j += 1
    if first:
        tl.store(out + word * D + c, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gather_patches(
    layer, shares, pad_embed, windows, weights, features, means, P, S, D, F, column,
    W: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one program per (window, BLOCK) and one launch per layer, which fills columns `column` ... of the features
    m = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    total = tl.zeros((BLOCK,), tl.float32)
    for w in tl.static_range(W):
        index = tl.load(windows + m * W + w)
        patch = tl.where(index < 0, 0, index)
        source = (patch // P) * S + (S - P) + patch % P
        value = tl.load(layer + source * D + c, mask=inside, other=0.0).to(tl.float32)
        for k in tl.static_range(K):
            share = tl.load(shares + patch * K + k)
            value += share * tl.load(pad_embed + k * F + column + c, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(index < 0, 0.0, value)
        total += value
        tl.store(features + (m * W + w) * F + column + c, value.to(features.dtype.element_ty), mask=inside)
    mean = total * tl.load(weights + m)
    tl.store(means + m * F + column + c, mean.to(means.dtype.element_ty), mask=inside)


@triton.jit
def gather_patches_backward(
    of_features, of_means, weights, order, starts, out, P, S, D, F, column, W: tl.constexpr, BLOCK: tl.constexpr
):
    # one program per (row of the layer, BLOCK): the places that hold this patch lie at order[start:end]
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    place = row % S - (S - P)  # below 0: a class token
    patch = (row // S) * P + tl.where(place < 0, 0, place)
    end = tl.load(starts + patch + 1)
    j = tl.where(place < 0, end, tl.load(starts + patch))
    total = tl.zeros((BLOCK,), tl.float32)
    while j < end:
        slot = tl.load(order + j)
        total += tl.load(of_features + slot * F + column + c, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(of_means + (slot // W) * F + column + c, mask=inside, other=0.0).to(tl.float32)
        total += mean * tl.load(weights + slot // W)
        j += 1
    tl.store(out + row * D + c, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _window_shares(q, k, windows, m, h, scale, d: tl.constexpr, H: tl.constexpr, W: tl.constexpr, MASKED: tl.constexpr,
                   BW: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    # -> query [BH, BD], keys [BW, BH, BD], softmax over the window [BW, BH], offsets and mask of keys
    w, e = tl.arange(0, BW), tl.arange(0, BD)
    there = w < W
    if MASKED:
        there = tl.load(windows + m * W + w, mask=there, other=-1) >= 0
    real = (h < H)[:, None] & (e < d)[None, :]
    query = tl.load(q + (m * H + h)[:, None] * d + e[None, :], mask=real, other=0.0).to(tl.float32)
    offset = ((m * W + w)[:, None, None] * H + h[None, :, None]) * d + e[None, None, :]
    inside = (w < W)[:, None, None] & real[None, :, :]
    key = tl.load(k + offset, mask=inside, other=0.0).to(tl.float32)
    score = tl.where(there[:, None], tl.sum(key * query[None, :, :], axis=2) * scale, -float("inf"))
    top = tl.max(score, axis=0)
    share = tl.exp(score - tl.where(top == -float("inf"), 0.0, top)[None, :])
    total = tl.sum(share, axis=0)
    return query, key, share / tl.where(total == 0.0, 1.0, total)[None, :], offset, inside, real


@triton.jit
def pool_patches(q, k, v, windows, out, scale, d: tl.constexpr, H: tl.constexpr, W: tl.constexpr, MASKED: tl.constexpr,
                 BW: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    # one program per (window, BH heads)
    m = tl.program_id(0).to(tl.int64)
    h, e = tl.program_id(1) * BH + tl.arange(0, BH), tl.arange(0, BD)
    _, _, share, offset, inside, real = _window_shares(q, k, windows, m, h, scale, d, H, W, MASKED, BW, BH, BD)
    value = tl.load(v + offset, mask=inside, other=0.0).to(tl.float32)
    pooled = tl.sum(share[:, :, None] * value, axis=0)
    tl.store(out + (m * H + h)[:, None] * d + e[None, :], pooled.to(out.dtype.element_ty), mask=real)


@triton.jit
def pool_patches_backward(grad, q, k, v, windows, of_q, of_k, of_v, scale, d: tl.constexpr, H: tl.constexpr,
                          W: tl.constexpr, MASKED: tl.constexpr, BW: tl.constexpr, BH: tl.constexpr,
                          BD: tl.constexpr):  # fmt: skip
    # one program per (window, BH heads); the shares are computed again
    m = tl.program_id(0).to(tl.int64)
    h, e = tl.program_id(1) * BH + tl.arange(0, BH), tl.arange(0, BD)
    query, key, share, offset, inside, real = _window_shares(q, k, windows, m, h, scale, d, H, W, MASKED, BW, BH, BD)
    row = (m * H + h)[:, None] * d + e[None, :]
    value = tl.load(v + offset, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(grad + row, mask=real, other=0.0).to(tl.float32)
    of_share = tl.sum(value * slope[None, :, :], axis=2)
    of_score = share * (of_share - tl.sum(share * of_share, axis=0)[None, :]) * scale
    tl.store(of_q + row, tl.sum(of_score[:, :, None] * key, axis=0).to(of_q.dtype.element_ty), mask=real)
    tl.store(of_k + offset, (of_score[:, :, None] * query[None, :, :]).to(of_k.dtype.element_ty), mask=inside)
    tl.store(of_v + offset, (share[:, :, None] * slope[None, :, :]).to(of_v.dtype.element_ty), mask=inside)


@triton.jit
def cross_entropy_rows(logits, labels, weights, sums, z_loss, V, stride, GRAD: tl.constexpr, BLOCK: tl.constexpr):
    # one program per row of logits: its three sums, and with GRAD the logits are overwritten by their gradient
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    label, weight = tl.load(labels + row), tl.load(weights + row)
    top, total, likeliest = -float("inf"), 0.0, 0
    for start in range(0, V, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = tl.load(line + c, mask=c < V, other=-float("inf")).to(tl.float32)
        here = tl.max(x, axis=0)
        if here > top:  # the first of equal logits counts, as in torch.argmax
            likeliest = tl.min(tl.where(x == here, c, V), axis=0)
        new = tl.maximum(top, here)
        total = total * tl.exp(top - new) + tl.sum(tl.exp(x - new), axis=0)
        top = new
    lse = top + tl.log(total)
    tl.store(sums + row * 3, weight * (lse - tl.load(line + label).to(tl.float32)))
    tl.store(sums + row * 3 + 1, weight * z_loss * lse * lse)
    tl.store(sums + row * 3 + 2, tl.where(likeliest == label, weight, 0.0))
    if GRAD:
        tl.debug_barrier()  # everyone has read the label's logit
        scale = weight * (1.0 + 2.0 * z_loss * lse)
        for start in range(0, V, BLOCK):
            c = start + tl.arange(0, BLOCK)
            x = tl.load(line + c, mask=c < V, other=-float("inf")).to(tl.float32)
            slope = tl.exp(x - lse) * scale - tl.where(c == label, weight, 0.0)
            tl.store(line + c, slope.to(logits.dtype.element_ty), mask=c < V)
