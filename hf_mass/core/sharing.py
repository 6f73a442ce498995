"""Rows of a task that begin alike, as one sequence: what they share goes through the model once, forward and backward.

The rests of the rows stand one behind the other after the common prefix. A token looks at the prefix and at its own
rest alone, and has the position that it would have in its row, so every hidden state is that of the row by itself. All
rows of a sequence have the same adapted weights, so sums of their losses, and derivatives of any order of such sums,
are those of the rows apart: the backward pass of the prefix adds up what comes from each rest. Gradients of single rows
cannot be told apart in it; inner products with all of them can, by one forward pass with tangents.

Not for a model that keeps a state from token to token, that makes its own mask, or that counts positions by itself
(`hf_mass.lm.sharing` finds out), nor under dropout, whose masks belong to a row and a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

LONGEST = 4096
"""Tokens of one sequence: its mask has the square of that many entries."""


class Sharing(NamedTuple):
    """Which rows of a task may become one sequence.

    Args:
        longest_row: The longest that may, in tokens; 0 for none.
        gain: Least factor by which the tokens of a task's rows must become fewer.
    """

    longest_row: int
    gain: float = 1.25


NO_SHARING = Sharing(0)


@dataclass(frozen=True, eq=False)
class Sequences:
    """G sequences that hold R rows.

    Args:
        input_ids: [G, L] int64.
        positions: [G, L] int64, those in the rows.
        parts: [G, L] int64: 0 in the prefix, 1, 2, ... in the rest of each row, −1 in padding.
        place: [R, S] int64: where in the flattened [G · L] the hidden state of each row's token is.
        first: [G] int64, a row of each.
    """

    input_ids: Tensor
    positions: Tensor
    parts: Tensor
    place: Tensor
    first: Tensor

    @classmethod
    def of(cls, ids: Tensor, lengths: Tensor, groups: Sequence[Sequence[int]]) -> Sequences:
        """Each group of rows as one sequence.

        Args:
            ids: [R, S] int64, padded behind the text.
            lengths: Tokens of each row [R] int64.
            groups: Row numbers of each sequence; together they are all rows, each once.
        """
        place, made, ends = torch.zeros_like(ids), list[tuple[Tensor, Tensor, Tensor]](), lengths.tolist()
        for group in groups:
            shared = common_prefix(ids[group], lengths[group])
            order = torch.arange(ids.shape[1], device=ids.device)
            tokens, places, sizes = [ids[group[0], :shared]], [order[:shared]], [shared]
            for r in group:
                place[r] = torch.where(order < shared, order, order - shared + sum(sizes))
                tokens.append(ids[r, shared : ends[r]])
                places.append(order[shared : ends[r]])
                sizes.append(ends[r] - shared)
            of_part = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(ids.device)
            made.append((torch.cat(tokens), torch.cat(places), of_part))
        packed, positions, parts = (
            pad_sequence(list(each), batch_first=True, padding_value=padding)
            for each, padding in zip(zip(*made, strict=True), (0, 0, -1), strict=True)
        )
        for number, group in enumerate(groups):
            place[group] += number * packed.shape[1]
        first = torch.tensor([group[0] for group in groups], device=ids.device)
        return cls(packed, positions, parts, place, first)

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """What the model is called with; the mask [G, 1, L, L] is added to attention scores of type `dtype`."""
        query, key = self.parts[:, :, None], self.parts[:, None, :]
        order = torch.arange(self.parts.shape[1], device=self.parts.device)
        seen = ((key == 0) | (key == query)) & (order[:, None] >= order)
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
        return {"input_ids": self.input_ids, "position_ids": self.positions, "attention_mask": mask[:, None]}


def common_prefix(ids: Tensor, lengths: Tensor) -> int:
    """How many tokens at the start of rows [rows, S] of these lengths [rows] are the same in all of them."""
    shortest = int(lengths.min())
    same = (ids[:, :shortest] == ids[:1, :shortest]).all(0)
    return int(same.cumprod(0).sum())


def sequence_numbers(ids: Tensor, lengths: Tensor, row_task: Tensor, sharing: Sharing) -> Tensor:
    """Which rows become one sequence: its number for each row [R] int64; rows by themselves have one of their own.

    A row joins those before it of its task as long as attention, whose work goes by the square of a sequence, does not
    take longer than over the rows apart.

    Args:
        ids: [R, S] int64, padded behind the text.
        lengths: Tokens of each row [R] int64.
        row_task: [R] int64; only rows of a task are put together.
        sharing: What may share.
    """
    numbers, count = torch.arange(len(row_task)), len(row_task)
    for task in row_task.unique().tolist() if sharing.longest_row else []:
        members = (row_task == task).nonzero()[:, 0]
        shared, of_members = common_prefix(ids[members], lengths[members]), lengths[members].tolist()
        if not shared or max(of_members) > sharing.longest_row:
            continue
        length, pairs, total, found = 0, 0, 0, list[int]()
        for each in of_members:
            joined = length + each - shared
            if not found or joined > LONGEST or joined**2 > pairs + each**2:
                count, joined, pairs, total = count + 1, each, 0, total + shared
            length, pairs, total = joined, pairs + each**2, total + each - shared
            found.append(count)
        if sum(of_members) >= sharing.gain * total:
            numbers[members.cpu()] = torch.tensor(found)
    return numbers.unique(return_inverse=True)[1].to(row_task.device)
