"""A network that answers many questions at once, on one or many ranks.

Every rank of a replica makes the same calls in the same order and gets the same pieces. With P stages P passes are in
flight: in step t, stage s computes the pass that group (t - s) mod P of the rows began in step t - s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Carry
from molmo_ds.engine.answering import quantized
from molmo_ds.engine.answering.layout import Fill
from molmo_ds.engine.answering.share import Share
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import PLAIN, USUAL, Execution, Limits, Strategy
from molmo_ds.infer import prefill
from molmo_ds.infer.graphs import Capture, DecodeStep, default_capture
from molmo_ds.infer.question import Piece, Question
from molmo_ds.infer.sampling import Choice, draw, next_tokens
from molmo_ds.infer.schedule import Row, Schedule
from molmo_ds.infer.slots import Slots
from molmo_ds.model.molmo import Molmo


@dataclass(frozen=True)
class Pass:
    """One run of a group's rows through all stages."""

    rows: list[Row]  # that get a token, the last ones of their group
    x: Carry
    ends: Tensor | None  # int64 [A], of a prefill: where in the packed sequence answers begin


class Replica:
    """Keeps questions and answers them, a step at a time.

    `row_steps` counts rows computed in decoding, `prefilled` tokens of prefills, padding included.

    Args:
        share: this rank's part of the network.
        eos: the token that ends an answer.
        limits: slots and tokens; a slot never needs more tokens than the network knows positions.
        execution: `compile`, `graphs` and `buckets`; the share's weights are already what they should be.
        capture: records decode steps; by default CUDA graphs on a GPU.
    """

    def __init__(
        self,
        share: Share,
        eos: int,
        limits: Limits = USUAL,
        execution: Execution = PLAIN,
        capture: Capture | None = None,
    ) -> None:
        self.share = share
        self.known = share.config.text.max_position_embeddings
        self.capacity = min(limits.slot_tokens, self.known)
        self.groups = share.stages
        size = limits.slots // self.groups
        if capture is None and execution.graphs:
            capture = default_capture(share)
        buckets = execution.buckets
        if buckets is None and (execution.compile or capture):
            buckets = True
        self.slots = [
            Slots(share.layers, size, self.capacity, share.device, buckets)
            for _ in range(self.groups)
        ]
        self.decode = [DecodeStep(share, slots, execution.compile, capture) for slots in self.slots]
        padded = share.config.selection is not None
        self.schedule = Schedule(size, self.groups, limits.prefill_tokens, eos, padded)
        self.passes: list[Pass | None] = [None] * self.groups
        self.steps = 0
        self.row_steps = 0
        self.prefilled = 0

    @classmethod
    def of(
        cls,
        model: Molmo,
        eos: int,
        limits: Limits = USUAL,
        execution: Execution = PLAIN,
        capture: Capture | None = None,
    ) -> "Replica":
        """A network in one process' hands, in eval mode; `execution.weights` changes its weights in place."""
        share = Share.whole(model)
        if execution.weights:
            quantized.check(model.config, execution.weights)
            quantized.quantize(share.layers, execution.weights)
        return cls(share, eos, limits, execution, capture)

    @classmethod
    def over_ranks(
        cls,
        config: MolmoConfig,
        strategy: Strategy,
        world: World,
        fill: Fill,
        eos: int,
        dtype: torch.dtype = torch.float32,
        grid: Grid | None = None,
    ) -> "Replica":
        """This rank's part of one of the replicas that a strategy makes of all ranks; see `Share.build`."""
        share = Share.build(config, strategy, world, fill, dtype, grid)
        return cls(share, eos, strategy.limits, strategy.execution)

    @property
    def index(self) -> int:
        """Which replica this is; each is given questions of its own."""
        return self.share.grid.place("data")

    @property
    def count(self) -> int:
        """Replicas that there are."""
        return self.share.grid.size("data")

    @property
    def waiting(self) -> int:
        """Questions that have not begun."""
        return sum(not row.ended for tree in self.schedule.waiting for row in tree.rows)

    @property
    def free(self) -> int:
        """Slots without a question."""
        taken = sum(not row.ended for rows in self.schedule.running for row in rows)
        return sum(slots.count for slots in self.slots) - taken

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self.schedule.rows) or any(self.passes)

    def admit(self, questions: Sequence[Question]) -> None:
        """Queue questions; those about equal pictures that wait together share one prefill.

        Raises ValueError, before any is queued, for one that cannot be answered.
        """
        names = set(self.schedule.rows)
        for question in questions:
            self._check(question, names)
            names.add(question.name)
        for question in questions:
            row = self._row(question)
            self.schedule.add(row, prefill.key(question), question.prefix, question.length)

    def drop(self, name: str) -> None:
        """Answer a question no further; one that is not in flight has ended by itself."""
        self.schedule.drop(name)

    @torch.no_grad()
    def step(self) -> list[Piece]:
        """Begin one pass (a packed prefill, or one more token for every row of a group) and end one."""
        share = self.share
        turn = self.steps % self.groups
        self.passes[turn] = self._begin(turn)
        mine = (self.steps - share.stage) % self.groups
        hidden = None
        if self.steps >= share.stage and self.passes[mine] is not None:
            current = self.passes[mine]
            x = share.receive(current.x)
            if current.ends is not None:
                x = share.embedded(x)
            with self.slots[mine]:
                if current.ends is None:
                    hidden = self.decode[mine](x)
                else:
                    hidden = share.compute(x, ends=current.ends)
                hidden = share.send(hidden)
        last = (self.steps - self.groups + 1) % self.groups
        self.steps += 1
        return (
            [] if self.steps < self.groups or self.passes[last] is None else self._end(last, hidden)
        )

    def close(self) -> None:
        """Wait for what is on its way to another stage."""
        self.share.finish()

    def _begin(self, group: int) -> Pass | None:
        slots = self.slots[group]
        slots.drop(*self.schedule.settle(group))
        begun = self.schedule.begin(group)
        if begun:
            batch, ends = prefill.pack([[row.question for row in tree.rows] for tree in begun])
            slots.admit(batch, ends)
            self.prefilled += batch.input_ids.numel()
            rows = [row for tree in begun for row in tree.rows]
            return Pass(rows, self.share.take(batch), ends.to(self.share.device, non_blocking=True))
        rows = list(self.schedule.running[group])
        if not rows:
            return None
        self.row_steps += len(rows)
        return Pass(rows, slots.carry(), None)

    def _end(self, group: int, hidden: Tensor | None) -> list[Piece]:
        """The tokens of a pass, told to every rank, into the slots and to the caller."""
        slots = self.slots[group]
        done = self.passes[group]
        self.passes[group] = None
        rows = done.rows
        asked = [row.question for row in rows]
        choice = None
        if hidden is not None:
            hidden = hidden[:, 0] if done.ends is None else hidden
            options = [question.options for question in asked]
            draws = [_draw(question, row.count) for question, row in zip(asked, rows)]
            choice = next_tokens(self.share, hidden[: len(rows)], options, draws)
        told = self.share.tell(_packed(choice, asked, self.share.device))
        if done.ends is None:
            slots.advance()
        slots.tokens[slots.rows - len(rows) : slots.rows] = told[:, 0]
        return self._pieces(rows, told)

    def _pieces(self, rows: list[Row], told: Tensor) -> list[Piece]:
        """Here a step waits for the device, and nowhere else."""
        told = told.cpu()
        tokens = told[:, 0].tolist()
        most = (told.shape[1] - 2) // 2
        words = told[:, 2 : 2 + most].tolist()
        log_probabilities = told[:, 1].contiguous().view(torch.float32).tolist()
        others = told[:, 2 + most :].contiguous().view(torch.float32).tolist()
        pieces = []
        for i, end in self.schedule.take(rows, tokens):
            top = tuple(zip(words[i], others[i]))[: rows[i].question.options.logprobs]
            pieces.append(
                Piece(
                    name=rows[i].name,
                    token=tokens[i],
                    log_probability=log_probabilities[i],
                    top=top,
                    end=end,
                )
            )
        return pieces

    def _row(self, question: Question) -> Row:
        begun = len(question.begun)
        room = begun + min(self.capacity - question.length, self.known - question.reach)
        return Row(question.name, question.options.max_new_tokens, room, begun, question=question)

    def _check(self, question: Question, names: set[str]) -> None:
        name = question.name
        options = question.options
        if name in names:
            raise ValueError(
                f"There is a question named {name!r} already; give each a name of its own."
            )
        if options.beams > 1:
            raise ValueError(f"{name}: a replica has no beam search; use beams=1, or generate().")
        if options.logprobs > self.share.config.text.embedding_size:
            raise ValueError(
                f"{name}: logprobs={options.logprobs} are more words than there are; ask for fewer."
            )
        if question.length >= self.capacity:
            raise ValueError(
                f"{name}: the prompt has {question.length} tokens and an answer has {self.capacity} positions in all;"
                " make it shorter."
            )
        reach = question.reach
        if reach >= self.known:
            raise ValueError(
                f"{name}: the prompt takes {reach} positions and the model knows {self.known}; make it shorter, or"
                " show fewer crops."
            )
        if len(question.begun) >= options.max_new_tokens or self.schedule.eos in question.begun:
            raise ValueError(
                f"{name}: what was begun is a whole answer already; ask for more tokens."
            )


def _draw(question: Question, place: int) -> float:
    if not question.options.temperature:
        return 0.0
    return draw(question.options.seed, question.draws or question.name, place)


def _packed(choice: Choice | None, asked: list[Question], device: torch.device) -> Tensor:
    """int32 [R, 2 + 2 n]: token, log-probability, n likeliest tokens, their log-probabilities; float32 as its bits."""
    most = max(question.options.logprobs for question in asked)
    told = torch.empty(len(asked), 2 + 2 * most, dtype=torch.int32, device=device)
    if choice is not None:
        told[:, 0] = choice.tokens
        told[:, 1] = choice.log_probabilities.view(torch.int32)
        told[:, 2 : 2 + most] = choice.top_tokens
        told[:, 2 + most :] = choice.top_log_probabilities.contiguous().view(torch.int32)
    return told
