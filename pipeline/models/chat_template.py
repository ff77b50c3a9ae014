"""Conversations to texts, by the chat template of a tokenizer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from headatlas.store.errors import ConfigError

from ..corpora.examples import Message
from .chat_process import MAX_TEXT_CHARS, MEMORY_BYTES, TOO_LARGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SECONDS = 5
"""Largest processor time of one conversation."""


class ChatTemplate:
    """Renders conversations in a process with limits. Use it in a ``with`` block, which ends the process.

    Raises
    ------
    ConfigError
        The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool) -> None:
        self._name = type(tokenizer).__name__
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise ConfigError(
                "the corpus has messages, but the model's tokenizer has no chat template that turns them into a text. "
                "Use the chat version of the model, or a corpus with a text in each record (corpus.text)."
            ) from error
        tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        setup = {"template": template, "tokens": tokens, "add_generation_prompt": add_generation_prompt}
        self._setup = json.dumps({**setup, "seconds": _SECONDS})

    def __enter__(self) -> ChatTemplate:
        command = [sys.executable, "-P", "-m", "headatlas.pipeline.models.chat_process"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._send(self._setup)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # the process stopped; reading its answer says why
            pass

    def render(self, messages: Sequence[Message]) -> tuple[str, tuple[Message, ...]] | str:
        """Return the text of a conversation and its messages with their spans, or the reason why it has no text.

        Raises
        ------
        ConfigError
            The template exceeds a limit of time, memory or size.
        """
        assert self._process.stdout is not None
        self._send(json.dumps([{"role": message.role, "content": message.content} for message in messages]))
        line = self._process.stdout.readline()
        if not line:
            limits = {
                -signal.SIGVTALRM: f"more than {_SECONDS} s of processor time",
                TOO_LARGE: f"more than {MEMORY_BYTES >> 20} MiB of memory, or a text of more than {MAX_TEXT_CHARS} characters",
            }
            cause = limits.get(self._process.wait(), f"a process that ended with code {self._process.returncode}")
            raise ConfigError(
                f"the chat template of {self._name} takes {cause} for one conversation. Use a model that you trust, or "
                "a corpus with a text in each record (corpus.text)."
            )
        answer = json.loads(line)
        if "error" in answer:
            return f"the chat template refuses it: {answer['error']}"
        spans = [span or (-1, -1) for span in answer["spans"]]
        placed = (replace(m, start=start, stop=stop) for m, (start, stop) in zip(messages, spans, strict=True))
        return answer["text"], tuple(placed)
