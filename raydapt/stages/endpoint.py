"""Answers of a server that speaks OpenAI's protocol, such as ``vllm serve``: the other engine of language models."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from raydapt.cluster.addresses import leave_loopback_alone, through_proxy
from raydapt.cluster.nodes import require_cpu
from raydapt.errors import UserError
from raydapt.settings.groups import RaySettings
from raydapt.settings.language import EngineSettings
from raydapt.stages.commit import STOPPED
from raydapt.stages.questions import (
    ANSWER,
    ASKED,
    ERROR,
    NO_ANSWER,
    SECONDS,
    Prompt,
    PromptBuilder,
    Questions,
    SkipRow,
    as_result,
    engine_reason,
    without_thoughts,
)

if TYPE_CHECKING:
    import ray.data

_PATIENCE_S, _PATIENCE_UNKNOWN_S = 300.0, 20.0
"""How long a server is asked again that is busy or away: one that has answered before may be starting anew."""
_TIMEOUT_S, _CONNECT_S = 300.0, 10.0
_TIMEOUTS = 2
"""Times that a request may go without an answer; a server that hangs does so for all of them."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_STRANGE = (TypeError, ValueError)
"""What the client and `_text_of` raise for an answer that is no JSON, or another JSON."""
_REDIRECTS = 3
"""That are followed, one after another."""
_STRANGE_ANSWERS = 3
"""Such answers to one question, until the server is taken for something else: a gateway gives one in passing."""
_BUSY = (408, 409, 429)
_OF_ONE_ROW = (400, 413, 422)
"""Statuses that refuse a question and not the questioner: too long, too large, of no kind that the model takes."""


def ask_endpoint(
    dataset: ray.data.Dataset, questions: Questions, settings: EngineSettings, *, ray_settings: RaySettings
) -> tuple[ray.data.Dataset, int]:
    """Puts every row's question to a server; see `raydapt.stages.llm.ask_vllm` for what goes in and comes out.

    Raises:
        UserError: When no server is named, or its client is not installed.
    """
    from ray.data import ActorPoolStrategy

    setting = questions.setting
    require_endpoint(settings, setting)
    # The model is elsewhere: what is done here is decoding.
    nodes = require_cpu(ray_settings, ray_settings.decode_nodes, setting="ray.decode_nodes")
    clients = 1 if settings.replicas == "auto" else settings.replicas
    answered = dataset.map_batches(
        EndpointClient,
        fn_constructor_args=(questions.build, settings, questions.schema, setting),
        batch_size=settings.max_num_seqs,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=clients, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        label_selector=nodes,
    )
    return answered, clients


def require_endpoint(settings: EngineSettings, setting: str) -> None:
    """Raises UserError when no server is named, or its client is not installed."""
    if not settings.base_url:
        raise UserError(
            f"Setting {setting}.engine=openai needs {setting}.base_url: give the server's address, such as "
            "http://127.0.0.1:8000/v1."
        )
    if importlib.util.find_spec("openai") is None:
        raise UserError(f"Setting {setting}.engine=openai: the client is not installed: pip install 'raydapt[openai]'.")


class NoAnswer(Exception):  # noqa: N818 - it is a verdict on a row, not a failure of the program
    """An answer without a text."""


class EndpointClient:
    """The actor: asks the questions of a batch at the same time.

    The key is read here, from the environment of the node: it is in no setting, no file and no message between nodes.
    """

    def __init__(self, asker: PromptBuilder, settings: EngineSettings, schema: pa.Schema, setting: str) -> None:
        self._openai: Any = importlib.import_module("openai")
        leave_loopback_alone()
        self._client = self._openai.OpenAI(
            base_url=settings.base_url,
            api_key=os.environ.get(settings.api_key_variable, "none"),
            max_retries=0,  # asked again here, where it is known whether the server has ever answered
            timeout=self._openai.Timeout(_TIMEOUT_S, connect=_CONNECT_S),
            http_client=self._openai.DefaultHttpxClient(max_redirects=_REDIRECTS),
        )
        self._has_answered, self._stopped = False, ""
        self._asker, self._settings, self._schema, self._setting = asker, settings, schema, setting
        self._threads = ThreadPoolExecutor(max_workers=settings.max_num_seqs)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers a batch of rows."""
        asked = batch.to_pylist()
        rows: list[dict[str, Any]] = []
        while len(rows) < len(asked) and not (self._has_answered or self._stopped):
            rows.append(self._answer(asked[len(rows)]))  # one alone: no wrong address is asked a hundred times
        rows += self._threads.map(self._answer, asked[len(rows) :])
        return as_result(pa.table({name: [row.get(name) for row in rows] for name in self._schema.names}), self._schema)

    def close(self) -> None:
        """Ends its threads and connections; an actor of Ray ends with its process."""
        self._threads.shutdown()
        self._client.close()

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            question = self._asker(row)
        except SkipRow as verdict:
            return {**row, ERROR: str(verdict)}
        started = time.perf_counter()
        asked = {**row, ASKED: question.text}
        if self._stopped:
            return {**asked, ERROR: self._stopped}
        try:
            text = self._ask(question)
        except NoAnswer as verdict:
            self._has_answered = True
            return {**asked, ERROR: str(verdict)}
        except self._openai.APIStatusError as error:
            if error.status_code in _OF_ONE_ROW:
                self._has_answered = True
                return {**asked, ERROR: _refused(error)}
            return self._give_up(asked, error)
        except (self._openai.OpenAIError, ValueError, TypeError) as error:
            return self._give_up(asked, error)
        return {**asked, ANSWER: text, SECONDS: time.perf_counter() - started}

    def _give_up(self, row: dict[str, Any], error: Exception) -> dict[str, Any]:
        """Asks no more: what was answered before goes on to be kept, where an exception would lose it."""
        self._stopped = self._stopped or STOPPED + self._sentence(error)
        return {**row, ERROR: self._stopped}

    def _ask(self, question: Prompt) -> str:
        content: Any = question.text
        if question.image is not None:
            image = {"type": "image_url", "image_url": {"url": data_url(question.image)}}
            content = [image, {"type": "text", "text": question.text}]
        sampling: dict[str, Any] = {"temperature": 0.0}
        if not self._settings.greedy:
            sampling = {"temperature": 1.0, "seed": question.seed}
        text = self._repeated(
            model=self._settings.model,
            messages=[{"role": "user", "content": content}],
            max_tokens=self._settings.max_tokens,
            **sampling,
        )
        self._has_answered = True
        return text

    def _repeated(self, **request: Any) -> str:
        """The text of an answer; asked again, after growing pauses, while the server is busy, away or out of order."""
        api, started, timeouts, pause_s = self._openai, time.monotonic(), 0, _PAUSE_S
        strange = 0
        while True:
            try:
                return _text_of(self._client.chat.completions.create(**request))
            except _STRANGE:  # a gateway's page, or half an answer
                strange += 1
                if strange >= _STRANGE_ANSWERS:
                    raise
                pause_s *= 2
                time.sleep(pause_s)
            except api.APITimeoutError:
                timeouts += 1
                if timeouts >= _TIMEOUTS:
                    raise
            except (api.APIConnectionError, api.APIStatusError) as error:
                if _leads_nowhere(error):
                    raise
                status = getattr(error, "status_code", None)
                patience_s = _PATIENCE_S if self._has_answered else _PATIENCE_UNKNOWN_S
                if status is not None and status not in _BUSY and status < 500:
                    raise
                asked_for_s = _retry_after_s(error)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S) if asked_for_s is None else asked_for_s
                if time.monotonic() - started + pause_s > patience_s:
                    raise
                time.sleep(pause_s)

    def _sentence(self, error: Exception) -> str:
        settings = self._settings
        came = _what_came(error, settings.base_url or "")
        return (
            f"Setting {self._setting}.base_url={settings.base_url!r} {came}: check the address, "
            f"{self._setting}.model={settings.model!r} and the key in {settings.api_key_variable}, then run the "
            "command again."
        )


def _what_came(error: Exception, base_url: str) -> str:
    """What an address did in place of an answer, as the end of a sentence."""
    proxy, reason = through_proxy(base_url), (str(error).splitlines() or [""])[0]
    request = getattr(error.__cause__, "_request", None)
    reached = base_url if request is None else str(request.url)
    if _leads_nowhere(error):
        return f"leads{proxy} from address to address and to no server (last to {reached})"
    if isinstance(error, UnicodeDecodeError):
        return f"answered{proxy} with a text that is not in UTF-8, as JSON has to be"
    if isinstance(error, _STRANGE):
        return f"answered{proxy} nothing of OpenAI's protocol ({reason})"
    moved = "" if reached.startswith(base_url) else f" after it led to {reached}"
    return f"answered{proxy} {type(error).__name__}{moved} ({reason})"


def _leads_nowhere(error: Exception) -> bool:
    """Whether redirects lead in a circle, or to what is no address of a server."""
    return type(error.__cause__).__name__ in ("TooManyRedirects", "UnsupportedProtocol")  # of httpx or httpx2


def _refused(error: Any) -> str:
    """The reason of a row that a server refused: its status, and what the server said in whatever form."""
    code, said = f"Error code: {error.status_code}", str(error)
    if said == code:
        said = f"{code} - {' '.join(error.response.text.split())}"
    # engine_reason takes numbers away, so that reasons add up
    return engine_reason(said).replace("Error code: N", code, 1)


def _text_of(answer: Any) -> str:
    """The text of an answer, without what the model thought aloud.

    Raises:
        TypeError: If this is no answer of an OpenAI-compatible server, such as the page of a gateway.
        NoAnswer: If it has no text.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
        told = answer.model_dump(exclude_unset=True) if hasattr(answer, "model_dump") else answer
        said = getattr(answer, "error", None) or told
        raise TypeError(f"no answer but {' '.join(str(said).split())[:200]!r}")
    text = without_thoughts(_joined(choices[0].message.content or ""))
    if not text.strip():
        used_up = getattr(choices[0], "finish_reason", None) == "length"
        raise NoAnswer("no_text_within_max_tokens" if used_up else NO_ANSWER)
    return text


def _joined(content: Any) -> str:
    """The text of a content, which some servers give in parts, thoughts among them."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) for part in parts):
        raise TypeError(f"no answer but {' '.join(str(content).split())[:200]!r}")
    return "".join(str(part.get("text") or "") for part in parts if part.get("type", "text") in ("text", "output_text"))


def _retry_after_s(error: Exception) -> float | None:
    """Seconds that a server asks to wait, at most as long as any pause; None where it does not say."""
    response = getattr(error, "response", None)
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_PAUSE_S) if response is not None else None
    except (KeyError, ValueError):
        return None


def data_url(image: Image.Image) -> str:
    """The image itself as a URL, so that the server fetches nothing."""
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()
