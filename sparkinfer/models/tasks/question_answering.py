"""Answers a question with a part of a context.

The numbers are those of the pipeline that transformers 4 has for it: over a context that is too
long for the model goes a window, and the likeliest answer of all windows is taken. Its last
versions add up the scores of answers with the same words, which may exceed 1; here, as in those
before, a score is the probability of the one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkinfer.exceptions import ConfigError, ModelLoadError
from sparkinfer.models.direct_encoding import flat
from sparkinfer.models.encoded import Encoded, Inputs, joined
from sparkinfer.models.tasks.base import (
    ModelFiles,
    ModelTask,
    Runtime,
    Task,
    Tensors,
    without_rows,
)
from sparkinfer.models.tokens import Encoder
from sparkinfer.validation import Options, at_least

START, END = "start_char", "end_char"
"""Columns of tokens: where in the context an answer starts and ends that starts or ends with this
token; 1 is added to the first, which is 0 for a token that is none of the context's."""

DOC_STRIDE = 128
"""Source: `QuestionAnsweringPipeline.preprocess`."""


@dataclass(frozen=True, init=False)
class QuestionAnsweringOptions(Options):
    """How answers are looked for; named as by transformers."""

    max_seq_len: int = field(default=384, metadata=at_least(8))
    """Most tokens of a window, question and special tokens included."""
    doc_stride: int | None = field(default=None, metadata=at_least(1))
    """Tokens of the context that a window shares with the one before; None: 128, or half of a
    window if that is less."""
    max_question_len: int | None = field(default=None, metadata=at_least(1))
    """Tokens at which questions are cut; None: at half of a window."""
    max_answer_len: int = field(default=15, metadata=at_least(1))
    """Most tokens of an answer."""
    handle_impossible_answer: bool = False
    """Whether there may be no answer: it is empty, then, with the probability of that."""
    align_to_words: bool = True
    """Whether answers are whole words, where the tokenizer knows words."""


class QuestionAnswering(Task):
    """Extractive question answering; the question is the first text, the context the second.

    `start` and `end` count the characters of the context: `answer` is what lies between them. A
    question that is cut counts as truncated; a context never is.
    """

    name = "question-answering"
    pipeline = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    heads = ("ForQuestionAnswering", "ForQuestionAnsweringSimple")
    pairs = "required"
    options_class = QuestionAnsweringOptions

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The answer, its probability, and where it is."""
        return (
            pa.field("answer", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
        )

    def check(self) -> None:
        """Raises ConfigError for windows that would not move."""
        stride, longest = self.options.doc_stride, self.options.max_seq_len
        if stride is not None and stride >= longest:
            raise ConfigError(
                f"task.doc_stride={stride} with task.max_seq_len={longest}: a window would share "
                "all with the one before; give a smaller stride, or longer windows"
            )

    def of_model(self, files: ModelFiles) -> ModelTask:
        """Returns the task with the model's tokenizer; see `Task`."""
        if not files.tokenizer.is_fast:
            raise ModelLoadError(
                f"model {str(files.path)!r} has a tokenizer that does not say where its tokens are "
                "in the text; save a fast one (tokenizer.json) with it"
            )
        return _ModelTask(self, files.tokenizer)


class _ModelTask(ModelTask):
    def __init__(self, task: Task, tokenizer: Any) -> None:
        super().__init__(task)
        self.options: QuestionAnsweringOptions = task.options
        self.most_tokens = self.options.max_seq_len
        self._null_token = tokenizer.cls_token_id
        self._special_tokens = tokenizer.num_special_tokens_to_add(pair=True)

    def check_limit(self, max_length: int) -> None:
        """Raises ConfigError for windows without room for a question and a context."""
        if max_length < self._special_tokens + 2:
            raise ConfigError(
                f"max_length={max_length}: task='question-answering' needs at least "
                f"{self._special_tokens + 2} tokens, of which {self._special_tokens} are special"
            )

    def encode(self, encoder: Encoder, columns: Sequence[Sequence[str]]) -> Inputs:
        questions, contexts = columns
        windows = _Windows(encoder, self.options)
        parts = [windows.of(*texts) for texts in zip(questions, contexts, strict=True)]
        starts = np.cumsum([0, *(len(part.n_tokens) for part in parts)], dtype=np.int64)[:-1]
        kept = pa.table({"context": pa.array(contexts, pa.string())})
        return Inputs(joined((*encoder.input_names, START, END), parts), starts, kept)

    def run(self, runtime: Runtime, tensors: Tensors) -> Any:
        def both(outputs: Any, placed: Tensors) -> dict[str, Any]:
            return {name: outputs[name].float() for name in ("start_logits", "end_logits")}

        outputs = runtime.forward(tensors, both)
        return outputs["start_logits"], outputs["end_logits"]

    def decode(self, output: Any, tensors: Tensors) -> pa.RecordBatch:
        starts, ends = (self._likely(logits.numpy(), tensors) for logits in output)
        null = (starts * ends * self._is_null(tensors)).sum(axis=1)
        is_context = tensors[START].numpy() > 0
        first, last, score = best_spans(starts, ends, is_context, self.options.max_answer_len)
        rows = np.arange(len(score))
        columns = [
            pa.array(score),
            pa.array(tensors[START].numpy()[rows, first] - 1, pa.int32()),
            pa.array(tensors[END].numpy()[rows, last], pa.int32()),
            pa.array(null),
        ]
        decoded = pa.RecordBatch.from_arrays(columns, names=["score", "start", "end", "null"])
        return without_rows(decoded, ~np.isfinite(starts + ends).all(axis=1))

    def join(
        self, decoded: pa.RecordBatch, starts: npt.NDArray[np.int64], kept: pa.Table
    ) -> pa.RecordBatch:
        score, null = (_numbers(decoded, name) for name in ("score", "null"))
        inputs = range(len(starts))
        best = np.array([_first_largest(score, starts, i) for i in inputs], np.int64)
        no_answer: npt.NDArray[np.float32] = np.minimum.reduceat(null, starts)
        found = np.isfinite(np.add.reduceat(score, starts))
        is_empty = self.options.handle_impossible_answer & (no_answer > score[best])
        spans = decoded.take(pa.array(best, mask=~found))
        first, last = (
            np.where(is_empty, 0, spans.column(name).fill_null(0).to_numpy())
            for name in ("start", "end")
        )
        contexts = kept.column("context").to_pylist()
        answers = [context[i:j] for context, i, j in zip(contexts, first, last, strict=True)]
        columns = [answers, np.where(is_empty, no_answer, score[best]), first, last]
        types = self.schema.types
        arrays = [pa.array(one, kind) for one, kind in zip(columns, types, strict=True)]
        return without_rows(pa.RecordBatch.from_arrays(arrays, schema=self.schema), ~found)

    def try_out(self, runtime: Runtime, tensors: Tensors) -> pa.RecordBatch:
        """Returns for each token the probability that an answer starts and ends with it."""
        likely = [self._likely(one.numpy(), tensors) for one in self.run(runtime, tensors)]
        usable = self._may_be_chosen(tensors)
        offsets = pa.array(np.concatenate([[0], np.cumsum(usable.sum(axis=1))]), pa.int32())
        columns = [pa.ListArray.from_arrays(offsets, pa.array(one[usable])) for one in likely]
        tried = pa.RecordBatch.from_arrays(columns, names=["starts", "ends"])
        return without_rows(tried, ~np.isfinite(likely[0] + likely[1]).all(axis=1))

    def _likely(self, logits: npt.NDArray[np.float32], tensors: Tensors) -> npt.NDArray[np.float32]:
        """Returns the probabilities of tokens, 0 for those that cannot be chosen."""
        usable = self._may_be_chosen(tensors)
        with np.errstate(invalid="ignore"):  # logits may be infinite
            largest = np.where(usable, logits, -np.inf).max(axis=1, keepdims=True)
            exponents = np.exp(np.where(usable, logits - largest, -np.inf))
        likely: npt.NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
        return likely

    def _may_be_chosen(self, tensors: Tensors) -> npt.NDArray[np.bool_]:
        """Returns which are the context's or stand for no answer, bool (windows, longest)."""
        chosen: npt.NDArray[np.bool_] = (tensors[START].numpy() > 0) | self._is_null(tensors)
        return chosen

    def _is_null(self, tensors: Tensors) -> npt.NDArray[np.bool_]:
        """Returns which token means no answer: the first `[CLS]` of each window, if any."""
        ids = tensors["input_ids"].numpy()
        are = ids == self._null_token
        first: npt.NDArray[np.bool_] = are & (np.cumsum(are, axis=1) == 1)
        return first


class _Windows:
    """Cuts questions with their contexts into windows.

    Args:
        encoder: the tokenizer with the tokens of a window.
        options: of the task.
    """

    def __init__(self, encoder: Encoder, options: QuestionAnsweringOptions) -> None:
        self._tokenizer = encoder.tokenizer
        self._names = encoder.input_names
        self._options = options
        self._most = encoder.max_length
        self._room = self._most - self._tokenizer.num_special_tokens_to_add(pair=True)
        # As in the pipeline; models that are padded on the left expect the question at the end.
        self._question_first = self._tokenizer.padding_side == "right"

    def of(self, question: str, context: str) -> Encoded:
        """Returns the windows of a question with its context; one without tokens for an error."""
        try:
            return self._of(question, context)
        except Exception as error:  # whatever a tokenizer raises concerns this text
            return self._refused(f"tokenizer: {type(error).__name__}: {error}")

    def _of(self, question: str, context: str) -> Encoded:
        asked, n_tokens, is_cut = self._question(question)
        if not n_tokens or not context.strip():
            which = "context" if n_tokens else "question"
            return self._refused(f"question-answering: the {which} is empty")
        made = self._tokenizer(
            *((asked, context) if self._question_first else (context, asked)),
            truncation="only_second" if self._question_first else "only_first",
            max_length=self._most,
            stride=self._stride(n_tokens),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        places = [self._places(one) for one in made.encodings]
        if not any(starts.any() for starts, _ in places):
            return self._refused("question-answering: the tokenizer made no tokens of the context")
        columns = {name: flat(made[name]) for name in self._names}
        columns[START] = np.concatenate([starts for starts, _ in places])
        columns[END] = np.concatenate([ends for _, ends in places])
        lengths = np.array([len(ids) for ids in made["input_ids"]], np.int64)
        return Encoded(columns, lengths, np.full(len(lengths), is_cut))

    def _question(self, question: str) -> tuple[str, int, bool]:
        """Returns the question, its tokens, and whether it had to be cut."""
        most = min(self._options.max_question_len or self._most, max(self._room // 2, 1))
        encoding = self._tokenizer(question, add_special_tokens=False, verbose=False).encodings[0]
        if len(encoding.ids) <= most:
            return question, len(encoding.ids), False
        return question[: encoding.offsets[most - 1][1]], most, True

    def _stride(self, n_tokens: int) -> int:
        """Returns the tokens that windows share, fewer than those of the context in a window."""
        wanted = self._options.doc_stride or min(self._most // 2, DOC_STRIDE)
        left = self._room - n_tokens
        return wanted if wanted < left else left // 2

    def _places(self, encoding: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Returns where an answer starts and ends for each token of a window; see `START`.

        Source: `QuestionAnsweringPipeline.get_indices`.
        """
        starts, ends = np.array(encoding.offsets, np.int32).reshape(-1, 2).T.copy()
        sequence = 1 if self._question_first else 0
        inside = np.array([one == sequence for one in encoding.sequence_ids], np.bool_)
        if self._options.align_to_words:
            words = [-1 if one is None else one for one in encoding.word_ids]
            starts, ends = _aligned(starts, ends, np.where(inside, np.array(words, np.int64), -1))
        return np.where(inside, starts + 1, 0), np.where(inside, ends, 0)

    def _refused(self, reason: str) -> Encoded:
        columns = dict.fromkeys((*self._names, START, END), np.zeros(0, np.int32))
        return Encoded(columns, np.zeros(1, np.int64), np.zeros(1, np.bool_), {0: reason})


def best_spans(
    starts: npt.NDArray[np.float32],
    ends: npt.NDArray[np.float32],
    may_be_chosen: npt.NDArray[np.bool_],
    max_answer_len: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns the first and the last token of each window's likeliest answer, and its probability.

    Of equal ones, the first and shortest. Source: `decode_spans` of transformers 4.

    Args:
        starts: probabilities of tokens to start it, float32 (windows, longest).
        ends: the same to end it.
        may_be_chosen: which of them may.
        max_answer_len: most tokens of it.
    """
    first, last = (np.where(may_be_chosen, one, -1.0) for one in (starts, ends))
    windows, longest = starts.shape
    lengths = min(max_answer_len, longest)
    scores = np.full((windows, longest, lengths), -1.0, np.float32)
    for more in range(lengths):
        to = longest - more
        is_span = (first[:, :to] >= 0) & (last[:, more:] >= 0)
        scores[:, :to, more] = np.where(is_span, first[:, :to] * last[:, more:], -1.0)
    best = scores.reshape(windows, -1).argmax(axis=1)
    start, more = np.divmod(best, lengths)
    return start, start + more, scores.reshape(windows, -1)[np.arange(windows), best]


def _first_largest(
    scores: npt.NDArray[np.float32], starts: npt.NDArray[np.int64], index: int
) -> int:
    """Returns the sequence of an input with the largest score, the first of equal ones."""
    start = int(starts[index])
    end = int(starts[index + 1]) if index + 1 < len(starts) else len(scores)
    return start + int(np.argmax(scores[start:end]))


def _numbers(rows: pa.RecordBatch, name: str) -> npt.NDArray[np.float32]:
    """Returns a column, NaN where it is null, float32 (rows,)."""
    numbers: npt.NDArray[np.float32] = rows.column(name).to_numpy(zero_copy_only=False)
    return numbers.astype(np.float32)


def _aligned(
    starts: npt.NDArray[np.int32], ends: npt.NDArray[np.int32], words: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Returns where the words of tokens start and end; of tokens without a word (-1), as given."""
    is_first = np.diff(words, prepend=-2) != 0
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(words)) - 1
    word = np.cumsum(is_first) - 1
    has_word = words >= 0
    return (
        np.where(has_word, starts[first[word]], starts),
        np.where(has_word, ends[last[word]], ends),
    )
