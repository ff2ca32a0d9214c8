"""How an engine's time is divided among answers that it gives at once, on a clock that the test turns."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from raydapt.models.answer_work import AnswerWork
from raydapt.stages import engine_work
from raydapt.stages.commit import MODEL_FLOP, MODEL_S, PEAK_FLOP
from raydapt.stages.engine_work import timed, work_columns

WORK = AnswerWork(layers=100, head=10, precision="bf16")
START, END = 50.0, 3.0


class Turning:
    """A clock that moves when it is told to."""

    now = START

    def perf_counter(self) -> float:
        return self.now


class Engine:
    """As ray.data.llm has it: answers come as they are ready, those of two batches in turns."""

    def __init__(self, clock: Turning, turns: list[asyncio.Event]) -> None:
        self.clock, self.turns = clock, turns

    async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        for row in batch:
            await self.turns[row["turn"]].wait()
            self.clock.now += row["seconds"]
            yield {"num_input_tokens": row["turn"], "num_generated_tokens": 2}
            self.turns[row["turn"] + 1].set()


def test_answers_that_overlap_share_the_time_in_which_there_were_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    clock = Turning()
    monkeypatch.setattr(engine_work, "time", clock)

    async def both() -> list[dict[str, Any]]:
        turns = [asyncio.Event() for _ in range(6)]
        actor = timed(Engine, WORK, 1)(clock, turns)
        found: list[dict[str, Any]] = []

        async def ask(*rows: tuple[int, float]) -> None:
            async for row in actor.udf([{"turn": turn, "seconds": seconds} for turn, seconds in rows]):
                found.append(row)

        turns[0].set()
        await asyncio.gather(ask((0, 1.0), (2, 4.0)), ask((1, 2.0), (3, 8.0)))
        clock.now += 1000.0  # nobody asks
        await ask((4, END))
        return found

    rows = asyncio.run(both())
    assert [row[MODEL_S] for row in rows] == [1.0, 2.0, 4.0, 8.0, END]
    assert [row[MODEL_FLOP] for row in rows] == [2 * (100 * (turn + 2) + 10 * 2) for turn in range(5)]
    assert {row[PEAK_FLOP] for row in rows} == {0.0}
    assert timed(Engine, WORK, 1).__name__ == "Engine"


def test_the_peak_is_that_of_all_devices_in_the_time() -> None:
    columns = work_columns(WORK, (5, 2), 0.5, "NVIDIA H100 80GB HBM3", 4)
    assert columns == {MODEL_S: 0.5, MODEL_FLOP: 2 * (100 * 7 + 10 * 2), PEAK_FLOP: 4 * 989e12 * 0.5}
    assert work_columns(AnswerWork(), (5, 2), 0.5, "NVIDIA H100 80GB HBM3", 4) == {MODEL_S: 0.5}
