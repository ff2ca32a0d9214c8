"""A vLLM engine in a process beside this one, which small stages ask without Ray, one stage after the other.

vLLM binds threads, sets variables and takes over torch for its whole process, so it has one of its own. That process
ends with this one, or when the last `engines_kept` is left.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from raydapt.models.answer_work import answer_work
from raydapt.progress import said_if_slow
from raydapt.settings.language import EngineSettings
from raydapt.stages.commit import MODEL_S
from raydapt.stages.engine_work import work_columns
from raydapt.stages.questions import ANSWER, ASKED, ERROR, FAILED, SECONDS, PromptBuilder, Questions, SkipRow, as_result
from raydapt.stages.vllm_engine import (
    engine_arguments,
    engine_environment,
    model_and_revision,
    request_of,
    require_vllm,
    sampling_of,
)
from raydapt.stages.work import device_kind

TOKENS = "tokens"
"""Of the prompt and of the answer, in a row that an engine answered."""
_STARTS = 2
"""Times that an engine is started which dies with a question."""
_END_S = 30.0
_LAST_BYTES = 2000


class EngineLost(Exception):  # noqa: N818 - what is left of the engine is its last words
    """The engine's process is gone; the text is what it said last."""


class EngineProcess:
    """One engine in one process; the rows of one table are asked at a time."""

    def __init__(self, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Starts it and waits until it answers; it tells the name of its device.

        Args:
            arguments: Of vLLM's ``EngineArgs``.
            environment: Variables on top of this process's.

        Raises:
            EngineLost: When it does not start.
        """
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._connection, theirs = Pipe()
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env={**os.environ, **environment, **paths},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, whose end ends that one
            )
        with said_if_slow("starting the language model …"):
            self.device_name: str = self._exchange(dict(arguments))

    def ask(
        self, table: pa.Table, asker: PromptBuilder, chat: Mapping[str, str], sampling: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The rows of a table with their answers; see `raydapt.stages.llm.ask_vllm`.

        Raises:
            EngineLost: When the process dies over it.
        """
        rows: list[dict[str, Any]] = self._exchange((table, asker, dict(chat), dict(sampling)))
        return rows

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _exchange(self, message: Any) -> Any:
        try:
            self._connection.send(message)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.wait()
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LAST_BYTES))
            said = self._log.read().decode(errors="replace").strip()
            self.close()
            raise EngineLost(said) from None


class EngineClient:
    """Asks a kept engine the questions of tables, as `raydapt.stages.endpoint.EndpointClient` asks a server."""

    def __init__(
        self, questions: Questions, settings: EngineSettings, *, address: str, chat: Mapping[str, str]
    ) -> None:
        """Starts the engine, or finds the kept one.

        Raises:
            UserError: When vLLM is not installed.
            RuntimeError: When the engine does not start.
        """
        require_vllm(questions.setting)
        on_gpu = device_kind() == "cuda"
        name, pinned = model_and_revision(address)
        self._arguments = engine_arguments(settings, on_gpu=on_gpu, images=questions.images) | pinned | {"model": name}
        self._environment = engine_environment(on_gpu=on_gpu, local=True)
        self._questions, self._chat, self._sampling = questions, chat, sampling_of(settings)
        self._work, self._devices = answer_work(address), settings.tensor_parallel
        self._kept = ExitStack()
        self._kept.enter_context(engines_kept())
        try:
            _kept_engine(self._arguments, self._environment)
        except EngineLost as lost:
            self.close()
            raise _died(lost) from None

    def close(self) -> None:
        """Needs the engine no longer; others may keep it."""
        self._kept.close()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers a batch of rows.

        Raises:
            RuntimeError: When the engine dies, and again with the same questions.
        """
        schema, starts = self._questions.schema, 0
        while True:
            try:
                starts += 1
                engine = _kept_engine(self._arguments, self._environment)
                rows = engine.ask(batch, self._questions.build, self._chat, self._sampling)
            except EngineLost as lost:
                _KEPT.pop(_key(self._arguments, self._environment), None)
                if starts == _STARTS:
                    raise _died(lost) from None
            else:
                self._add_work(rows, engine.device_name)
                named = [*schema.names, FAILED]
                return as_result(pa.table({name: [row.get(name) for row in rows] for name in named}), schema)

    def _add_work(self, rows: list[dict[str, Any]], device_name: str) -> None:
        for row in rows:
            if MODEL_S in row:
                row |= work_columns(self._work, row.get(TOKENS, (0, 0)), row[MODEL_S], device_name, self._devices)


def _died(lost: EngineLost) -> RuntimeError:
    return RuntimeError(f"the language model's process died, its last words were:\n{lost}")


_KEPT: dict[str, EngineProcess] = {}
_keepers = 0


@contextmanager
def engines_kept() -> Iterator[None]:
    """Keeps the engines that start within for whoever asks the same model next, and ends them when it is left.

    Within another one, the engines stay until that one is left.
    """
    global _keepers
    _keepers += 1
    try:
        yield
    finally:
        _keepers -= 1
        while not _keepers and _KEPT:
            _KEPT.popitem()[1].close()


def _key(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    return repr((sorted(arguments.items()), sorted(environment.items())))


def _kept_engine(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> EngineProcess:
    key = _key(arguments, environment)
    if key not in _KEPT:
        _KEPT[key] = EngineProcess(arguments, environment)
    return _KEPT[key]


def serve(handle: int) -> None:
    """What the process does: makes the engine and answers tables until the other end is closed.

    Args:
        handle: File descriptor of its end of the pipe.
    """
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    with Connection(handle) as connection:
        engine = LLMEngine.from_engine_args(EngineArgs(**connection.recv()))
        connection.send(current_platform.get_device_name())
        while True:
            try:
                table, asker, chat, sampling = connection.recv()
            except EOFError:
                return
            connection.send(answers(engine, table.to_pylist(), asker, chat, sampling))


def answers(
    engine: Any,
    rows: list[dict[str, Any]],
    asker: PromptBuilder,
    chat: Mapping[str, str],
    sampling: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The rows with what the engine says, of how many tokens, in which share of its time, or why it says nothing."""
    from vllm import SamplingParams

    started: dict[str, float] = {}
    busy_s = 0.0
    for place, row in enumerate(rows):
        try:
            question = asker(row)
        except SkipRow as verdict:
            row[ERROR] = str(verdict)
            continue
        row[ASKED] = question.text
        request = request_of(question, chat, sampling)
        prompt = {"prompt": request["prompt"], "multi_modal_data": request.get("multimodal_data")}
        try:
            engine.add_request(str(place), prompt, SamplingParams(**request["sampling_params"]))
        except Exception as error:  # whatever it is, it is about this question: too long, an image of no kind
            row[FAILED] = f"{type(error).__name__}: {error}"
        started[str(place)] = time.perf_counter()
    while engine.has_unfinished_requests():
        before = time.perf_counter()
        outputs, now = engine.step(), time.perf_counter()
        busy_s += now - before
        for output in outputs:
            if output.finished:
                (said,) = output.outputs
                answer = {ANSWER: said.text, SECONDS: now - started[output.request_id]}
                tokens = {TOKENS: (len(output.prompt_token_ids), len(said.token_ids))}
                rows[int(output.request_id)].update(answer | tokens)
    for number in started:
        rows[int(number)][MODEL_S] = busy_s / len(started)
    return rows


if __name__ == "__main__":
    serve(int(sys.argv[1]))
