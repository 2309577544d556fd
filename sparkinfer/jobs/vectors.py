"""The vector store of a run: looked at before the run starts, made for it, filled by it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial

from sparkinfer.exceptions import ConfigError, OutputError
from sparkinfer.jobs.done import Done
from sparkinfer.jobs.manifest import Manifest
from sparkinfer.jobs.output import Output
from sparkinfer.plan.prelude import Prelude
from sparkinfer.rows.several import members_of
from sparkinfer.sinks.vectors import open_store
from sparkinfer.sinks.vectors.asked import AskedVectors, asked_vectors
from sparkinfer.sinks.vectors.base import (
    About,
    StoreAwayError,
    VectorStore,
    space_of,
    unreachable,
)
from sparkinfer.sinks.vectors.delivery import Delivery, patiently
from sparkinfer.sinks.vectors.uri import CHROMA


class RunVectors:
    """A store as one run uses it.

    Args:
        asked: what goes there.
        store: where to.
        output: of the run.
        overwrite: whether the run replaces an earlier one.
    """

    def __init__(
        self, asked: AskedVectors, store: VectorStore, output: Output, overwrite: bool
    ) -> None:
        self._asked = asked
        self._store = store
        self._output = output
        self._overwrite = overwrite

    def check(self) -> None:
        """Raises OutputError unless the store can be used; changes nothing."""
        uri = self._asked.uri
        if uri.kind == CHROMA and self._output.overlaps(uri.place):
            raise ConfigError(
                f"{uri} and output {self._output.path!r} are folders within one another; name "
                "another folder for one of them"
            )
        found = look(self._asked, self._store)
        if found is not None and found.run not in self._output.runs():
            self._refuse_stranger(found)

    @property
    def keeps_files(self) -> bool:
        """Whether the output has its files as well."""
        return self._asked.keeps_files

    def delivery(self, manifest: Manifest, may_go_on: Callable[[], object]) -> Delivery:
        """Returns the way to the store, which then holds nothing of runs that this one replaces.

        Args:
            manifest: of the run.
            may_go_on: raises if this writer must not go on.

        Raises:
            OutputError: the store holds what is not of this output, or cannot be made.
            JobError: it does not answer.
        """
        found = patiently(self._asked, self._store.look)
        if found is None or found.run != manifest.run:
            if found is not None and found.run not in manifest.replaced:
                self._refuse_stranger(found)
            found = self._about(manifest)
            patiently(self._asked, partial(self._store.make, found))
        delivery = Delivery(self._asked, self._store, self._output.path, found, may_go_on)
        delivery.forget_others()
        return delivery

    def _about(self, manifest: Manifest) -> About:
        space = space_of(manifest.settings, self._asked.model)
        dimension = space["task.resolved.dimension"]
        if dimension is None:
            raise ConfigError(
                f"{self._asked.uri}: the model's configuration does not say how many numbers its "
                "vectors have (hidden_size); give another model"
            )
        return About(
            run=manifest.run,
            output=self._output.path,
            space=space,
            dimension=dimension,
            distance=self._asked.distance,
            key=self._asked.key,
            metadata=self._asked.metadata,
            token=uuid.uuid4().hex[:16],
        )

    def _refuse_stranger(self, found: About) -> None:
        """Raises OutputError unless the store's vectors are of this output, and to be replaced."""
        if found.output != self._output.path:
            raise OutputError(
                f"{self._asked.uri} holds the vectors of output {found.output!r}; name another "
                "collection or table, or remove it there"
            )
        if not self._overwrite:
            raise OutputError(
                f"{self._asked.uri} holds the vectors of an earlier run on output "
                f"{found.output!r}; give --overwrite to replace them, or name another"
            )


def look(asked: AskedVectors, store: VectorStore) -> About | None:
    """Returns what is kept about a store's vectors, None if there are none; asks once.

    Raises:
        ConfigError: it does not keep the metadata.
        OutputError: it cannot be reached, used or made.
    """
    store.refuse_names(asked.metadata)
    try:
        return store.look()
    except StoreAwayError as error:
        raise unreachable(asked.uri, error) from error


@contextmanager
def run_vectors(prelude: Prelude, output: Output) -> Iterator[RunVectors | None]:
    """Yields the store of a run, which is there or can be made; None if it has none.

    Raises:
        UsageError: it cannot be used.
    """
    asked = asked_vectors(prelude.config, prelude.asked)
    if asked is None:
        yield None
        return
    asked.check(prelude.asked_columns)
    with closing(open_store(asked.uri)) as store:
        vectors = RunVectors(asked, store, output, prelude.config.overwrite)
        vectors.check()
        yield vectors


def count_vectors(prelude: Prelude, delivery: Delivery | None, done: Done) -> int | None:
    """Returns how many vectors are in the store of a finished run, None if it has none.

    Raises:
        OutputError: more or fewer than rows without an error.
    """
    if delivery is None:
        return None
    found, expected = delivery.count(), done.rows - done.errors
    # Of several models, the errors of all are counted together.
    if len(members_of(prelude.asked)) == 1 and found != expected:
        raise OutputError(
            f"the vector store holds {found} vectors of {expected}: something else has added or "
            "removed some. Remove the collection or table there, and run the same command to have "
            "it filled again"
        )
    return found
