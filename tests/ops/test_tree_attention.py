"""Tree attention: the rule, one document at a time, FlexAttention's blocks from runs, and the flash cascade."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_check import bits, error, errors
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from molmo_ds.ops import cpu_library, dispatch
from molmo_ds.ops.tree_attention import (
    attention_plan,
    cascade,
    documents,
    flex,
    reference,
    tree_attention,
    visible,
)


def ids(*documents: list[int], tokens: int) -> tuple[Tensor, Tensor]:
    """Document and branch ids of one sequence from [prefix length, branch length, ...] lists, padded to `tokens`."""
    document, branch = (
        torch.zeros(tokens, dtype=torch.int32),
        torch.zeros(tokens, dtype=torch.int32),
    )
    at = 0
    for d, lengths in enumerate(documents):
        for b, length in enumerate(lengths):
            document[at : at + length], branch[at : at + length] = d + 1, b
            at += length
    assert at <= tokens
    return document, branch


def batch(*sequences: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.stack([d for d, _ in sequences]), torch.stack([b for _, b in sequences])


# trees with one-token branches, a document without prefix, plain documents, padding, a whole sequence of one document
TREES = batch(
    ids([7, 3, 1, 5], [9], [4, 1, 1], tokens=37),
    ids([0, 6, 2], [1], [12, 11], tokens=37),
    ids([37], tokens=37),
)


def test_the_rule() -> None:
    # prefix a b, branches c | d e, then a second document f and padding
    document, branch = batch(ids([2, 1, 2], [1], tokens=7))
    rows = ["a", "ab", "abc", "abd", "abde", "f", "p"]
    seen = visible(document, branch)[0]
    assert ["".join("abcdefp"[k] for k in range(7) if seen[q, k]) for q in range(7)] == rows


def test_the_rule_inside_images() -> None:
    document, branch = batch(ids([4, 2], tokens=7))
    images = torch.tensor([[0, 1, 1, 0, 0, 0, 0]])
    seen = visible(document, branch, images)[0]
    assert ["".join("abcdefp"[k] for k in range(7) if seen[q, k]) for q in range(7)] == [
        "a",
        "abc",
        "abc",
        "abcd",
        "abcde",
        "abcdef",
        "p",
    ]


def by_hand(q: Tensor, k: Tensor, v: Tensor, document: Tensor, branch: Tensor) -> Tensor:
    """The rule in plain arithmetic."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    return scores.masked_fill(~visible(document, branch)[:, None], -math.inf).softmax(-1) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, document: Tensor, branch: Tensor) -> Tensor:
    return tree_attention(q, k, v, attention_plan(document, branch, q.dtype))


def tensors(heads: int, groups: int, shape: tuple[int, int], width: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    sizes = [(shape[0], n, shape[1], width) for n in (heads, groups, groups)]
    return [torch.randn(size).requires_grad_() for size in sizes]


@pytest.mark.parametrize("by", ["torch", "cuda"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("stride_0", [False, True])
def test_output_and_gradients(by: str, heads: int, groups: int, stride_0: bool) -> None:
    # "cuda": the cascade through torch's flash attention of the CPU
    document, branch = TREES
    args = [*tensors(heads, groups, document.shape), document, branch]
    if by == "cuda":  # there padding attends to the padding before it: leave it out
        real = (document != 0)[:, None, :, None]
        got = errors(
            lambda *a: attend(*a) * real, args, by, lambda *a: by_hand(*a) * real, stride_0
        )
    else:
        got = errors(attend, args, by, by_hand, stride_0)
    assert max(got) <= 1e-5


# one long tree in blocks; with short documents after it
@pytest.mark.parametrize("tokens", [300, 640])
def test_long_trees(tokens: int) -> None:
    document, branch = batch(
        ids([90, 60, 1, 100], *([20],) * ((tokens - 251) // 20), tokens=tokens)
    )
    args = [*tensors(4, 2, document.shape), document, branch]
    assert max(errors(attend, args, "torch", by_hand)) <= 1e-5


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_short_documents_are_one_call_without_kernels(
    rows: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = [[9, 4, 3], [14], [2, 5, 5, 1], [11, 1]]
    document, branch = batch(*[ids(*trees[row:], *trees * 3, tokens=224) for row in range(rows)])
    images = torch.where((branch == 0) & (document % 2 > 0), document, 0)
    args = [x.detach() for x in tensors(4, groups, document.shape)]
    monkeypatch.setattr(cpu_library, "load", lambda: None)
    for pictures in (None, images):
        with dispatch.use("torch"):
            want = tree_attention(*args, attention_plan(document, branch, torch.float32, pictures))
        with torch.no_grad():
            plan = attention_plan(document, branch, torch.float32, pictures)
            got = tree_attention(*args, plan)
        assert isinstance(plan.prepared, documents.Documents) and plan.mask is None
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
        learning = attention_plan(document, branch, torch.float32, pictures)
        assert learning.prepared is None and learning.mask is not None


def test_documents_of_unequal_lengths_have_calls_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_library, "load", lambda: None)
    document, branch = batch(ids([100], *([6],) * 8, tokens=148))
    with torch.no_grad():
        plan = attention_plan(document, branch, torch.float32)
    assert not isinstance(plan.prepared, documents.Documents) and plan.mask is not None


def test_the_cascade_is_planned_on_the_host_whatever_the_default_device() -> None:
    document, branch = (x[None] for x in ids([5, 3, 4], [2, 2], tokens=18))
    wanted = cascade.plan(document, branch, torch.float32, None).prepared
    with torch.device("meta"):  # bench_ops makes its tensors so, on a GPU
        found = cascade.plan(document, branch, torch.float32, None).prepared
    for ours, theirs in (
        (found.runs, wanted.runs),
        (found.others[0].lengths, wanted.others[0].lengths),
    ):
        assert torch.equal(ours.starts_q, theirs.starts_q)
        assert torch.equal(ours.starts_k, theirs.starts_k)
    assert torch.equal(found.others[0].queries, wanted.others[0].queries)


def test_cascade_without_branches_is_one_call() -> None:
    document, branch = batch(ids([5], [6], tokens=11))
    assert cascade.segments(document, branch, None).others == ()
    args = [*tensors(2, 2, document.shape), document, branch]
    assert max(errors(attend, args, "cuda", by_hand)) <= 1e-5


@pytest.mark.parametrize("by", ["torch", "cuda"])
def test_the_same_bits_twice(by: str) -> None:
    args = [*tensors(4, 2, TREES[0].shape), *TREES]
    assert all(torch.equal(a, b) for a, b in zip(bits(attend, args, by), bits(attend, args, by)))


def test_without_a_plan_all_see_all() -> None:
    q, k, v = tensors(2, 2, (3, 5))
    want = (q @ k.transpose(2, 3) / math.sqrt(8)).softmax(-1) @ v
    torch.testing.assert_close(tree_attention(q, k, v, None), want)


LONG = batch(
    ids([300, 40, 1, 130], [200, 60], tokens=900),
    ids([0, 128], [128, 128], [256], tokens=900),
    ids([600, 257], tokens=900),
    # of the second block of queries, 55 rows do not see the last key of the first
    ids([127, 74, 699], tokens=900),
)
PICTURES = torch.zeros(4, 900, dtype=torch.int32)
PICTURES[0, 1:140], PICTURES[0, 140:290], PICTURES[2, 1:513] = 1, 2, 1


@pytest.mark.parametrize("pictures", [None, PICTURES])
@pytest.mark.parametrize("tokens", [900, 896])
def test_blocks_from_runs(pictures: Tensor | None, tokens: int) -> None:
    # the same blocks as torch finds by evaluating the rule for every pair of tokens
    document, branch = (x[:, :tokens].contiguous() for x in LONG)
    pictures = None if pictures is None else pictures[:, :tokens].contiguous()
    got = flex.blocks(document, branch, pictures)
    rule = reference.rule(document, branch, pictures)
    want = create_block_mask(rule, 4, None, tokens, tokens, device="cpu", BLOCK_SIZE=128)
    assert got.shape == want.shape
    # ours may call a block partial that torch calls full (padding's diagonal), never the other way round
    for name in ("kv", "full_kv", "q", "full_q"):
        count, index = (getattr(want, f"{name}_{x}") for x in ("num_blocks", "indices"))
        assert torch.equal(getattr(got, f"{name}_num_blocks"), count), name
        mine = getattr(got, f"{name}_indices")
        inside = torch.arange(index.shape[-1]) < count[..., None]
        assert torch.equal(torch.where(inside, mine, -1), torch.where(inside, index, -1)), name
    assert got.full_kv_num_blocks.sum() > 0


@pytest.mark.parametrize(("pictures", "width"), [(None, 16), (PICTURES, 16), (None, 8)])
def test_flex_attention_forward(pictures: Tensor | None, width: int) -> None:
    # FlexAttention has no backward pass on a CPU
    q, k, v = (x.detach() for x in tensors(4, 2, LONG[0].shape, width))
    want = tree_attention(q, k, v, attention_plan(*LONG, torch.float32, pictures))
    with dispatch.use("triton"):
        plan = attention_plan(*LONG, torch.float32, pictures)
    assert isinstance(plan.prepared, BlockMask)
    got = tree_attention(q, k, v, plan)
    assert ((got - want).norm() / want.norm()).item() <= 1e-5


@pytest.mark.parametrize(
    ("document", "branch"),
    [
        ([1, 1, 1], [0, 1, 0]),
        ([1, 1, 1], [0, 2, 1]),
        ([2, 1, 1], [0, 0, 0]),
        ([1, 2, 1], [0, 0, 0]),
        ([1, 0, 2], [0, 0, 0]),
    ],
)
def test_unordered_ids_are_refused(document: list[int], branch: list[int]) -> None:
    ids = [torch.tensor([x], dtype=torch.int32) for x in (document, branch)]
    for by, refusal in (("triton", RuntimeError), ("cuda", ValueError)):
        with dispatch.use(by), pytest.raises(refusal, match="must ascend"):
            attention_plan(*ids, torch.float32)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Document, branch and image ids of a packed sequence: trees, padding, frames between which text lies, noise."""
    tokens = draw(st.integers(1, 500))
    source = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    document = torch.zeros(tokens, dtype=torch.int32)
    branch = torch.zeros(tokens, dtype=torch.int32)
    image = torch.zeros(tokens, dtype=torch.int32)
    at = 0
    for number in range(1, draw(st.integers(1, 4)) + 1):
        for part in range(draw(st.integers(1, 4))):
            end = min(tokens, at + draw(st.integers(0, 250)))
            places = torch.arange(end - at)
            kinds = {
                "one image": (torch.rand(end - at, generator=source) < 0.8).int(),
                "frames": (places % 9 > 1) * (places // 9 + 1),
                "noise": torch.randint(0, 4, (end - at,), generator=source),
                "text": places * 0,
            }
            document[at:end] = number
            branch[at:end] = part
            image[at:end] = kinds[draw(st.sampled_from(sorted(kinds)))]
            at = end
    return document[None], branch[None], image[None]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layouts())
def test_blocks_hold_what_is_visible(ids: tuple[Tensor, Tensor, Tensor]) -> None:
    """No pair that the rule shows lies in a block counted empty, and a full block hides none."""
    blocks = flex.blocks(*ids)
    side = blocks.shape[2] // flex.BLOCK + bool(blocks.shape[2] % flex.BLOCK)
    seen = F.pad(visible(*ids)[0], (0, -ids[0].shape[1] % flex.BLOCK) * 2)
    count = seen.view(side, flex.BLOCK, side, flex.BLOCK).sum((1, 3))
    got = torch.zeros(side, side)
    for name, value in (("kv", 1), ("full_kv", 2)):
        number = getattr(blocks, f"{name}_num_blocks")[0, 0]
        index = getattr(blocks, f"{name}_indices")[0, 0]
        for row in range(side):
            got[row, index[row, : number[row]].long()] = value
    assert torch.equal(got, (count > 0).float() + (count == flex.BLOCK**2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(layouts())
def test_images_by_the_cascade(ids: tuple[Tensor, Tensor, Tensor]) -> None:
    args = tensors(4, 2, ids[0].shape)
    real = (ids[0] != 0)[:, None, :, None]

    def by(name: str) -> list[Tensor]:
        with dispatch.use(name):
            out = tree_attention(*args, attention_plan(*ids[:2], torch.float32, ids[2])) * real
        return [out, *torch.autograd.grad(out.sin().sum(), args)]

    for ours, want in zip(by("cuda"), by("torch")):
        torch.testing.assert_close(ours, want, atol=2e-5, rtol=1e-4)


def test_plan_on_meta_and_compiled() -> None:
    document, branch = (x.to("meta") for x in TREES)
    q, k, v = (x.to("meta") for x in tensors(4, 2, document.shape))
    assert tree_attention(q, k, v, attention_plan(document, branch, torch.float32)).shape == q.shape
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    args = [*tensors(4, 2, TREES[0].shape), *TREES]
    assert max(errors(compiled, args, reference=by_hand)) <= 1e-5


def test_dropout_drops() -> None:
    q, k, v = tensors(4, 2, LONG[0].shape)
    with dispatch.use("triton"):
        plan = attention_plan(*LONG, torch.float32)
    torch.manual_seed(0)
    kept = tree_attention(q, k, v, plan, 0.5)
    assert not torch.equal(kept, tree_attention(q, k, v, plan, 0.5))


@pytest.mark.parametrize("by", ["torch", "triton"])
def test_the_next_batch_does_not_recompile(by: str) -> None:
    counter = CompileCounter()
    compiled = torch.compile(
        lambda *args: tree_attention(*args) + 1, fullgraph=True, backend=counter
    )
    q, k, v = (x.detach() for x in tensors(4, 2, (3, 37)))
    for first in (1, 2, 5):
        document = TREES[0] * 2
        document[:, :first] = 1
        with dispatch.use(by):
            plan = attention_plan(document, TREES[1], torch.float32)
            assert error(compiled(q, k, v, plan), tree_attention(q, k, v, plan) + 1) <= 1e-5
    assert counter.frame_count == 1


def test_prompts_of_all_lengths_are_few_lengths_on_a_gpu() -> None:
    with torch.no_grad():
        lengths = {tokens: flex.padded_length(tokens) for tokens in range(1, 16385)}
    assert all(length >= tokens and length % flex.BLOCK == 0 for tokens, length in lengths.items())
    assert sorted(set(lengths.values()))[:7] == [128, 256, 384, 512, 768, 1024, 1536]
    assert len(set(lengths.values())) == 14 < flex.LENGTHS
    # training, whose lengths packing fixes, is padded to whole blocks and no further
    assert [flex.padded_length(tokens) for tokens in (1, 2304, 2305)] == [128, 2304, 2432]


def test_padding_to_blocks_changes_nothing() -> None:
    document, branch = batch(ids([90, 60, 1, 40], tokens=200))
    args = tensors(4, 2, document.shape, 16)
    with torch.no_grad():
        plan = flex.plan(document, branch, torch.float32, None)
        assert plan.prepared.seq_lengths == (256, 256)
        ours = flex.tree_attention(*args, plan, 0.0)
    torch.testing.assert_close(ours, by_hand(*args, document, branch), atol=1e-5, rtol=1e-5)
