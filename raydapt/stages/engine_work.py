"""The work of a vLLM engine in the rows of its answers, for `raydapt.stages.commit.commit_part` to tell."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa

from raydapt.models.answer_work import AnswerWork
from raydapt.models.peak import peak_flop_per_s
from raydapt.stages.commit import MODEL_FLOP, MODEL_S, PEAK_FLOP

WORK_FIELDS = [(name, pa.float64()) for name in (MODEL_S, MODEL_FLOP, PEAK_FLOP)]
"""Columns of an answer's row; null where a server answers, whose work nobody knows here."""


def work_columns(
    work: AnswerWork, tokens: tuple[int, int], seconds: float, device_name: str, devices: int
) -> dict[str, float]:
    """The columns of one answer.

    Args:
        work: What a token costs.
        tokens: Of the prompt, its image's among them, and of the answer.
        seconds: The answer's share of the engine's time.
        device_name: As vLLM says it.
        devices: That the engine is spread over.
    """
    if not work.layers:
        return {MODEL_S: seconds}
    peak = peak_flop_per_s(device_name, work.precision) * devices
    return {MODEL_S: seconds, MODEL_FLOP: work.flop(*tokens), PEAK_FLOP: peak * seconds}


def timed(engine: type[Any], work: AnswerWork, devices: int) -> type[Any]:
    """The class of the actors of ray.data.llm's engine stage, whose answers tell the engine's work.

    An engine answers many questions at once. What an answer is charged is the time since the one before it, or since
    the engine had nothing to do: together they are the time in which it had questions.

    Args:
        engine: The class as ray.data.llm has it.
        work: What a token costs.
        devices: That an engine is spread over.
    """

    class Timed(engine):  # type: ignore[misc]
        batches, since = 0, 0.0

        async def udf(self, batch: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            from vllm.platforms import current_platform

            device_name = current_platform.get_device_name()
            if not self.batches:
                self.since = time.perf_counter()
            self.batches += 1
            try:
                async for row in super().udf(batch):
                    before, self.since = self.since, time.perf_counter()
                    tokens = (row["num_input_tokens"], row["num_generated_tokens"])
                    yield row | work_columns(work, tokens, self.since - before, device_name, devices)
            finally:
                self.batches -= 1

    Timed.__name__ = Timed.__qualname__ = engine.__name__  # what Ray calls the actors
    return Timed
