"""Embeds documents into a vector store, as a script for Determined does; see its test.

`python -m tests.embedding_example FOLDER`: the folder holds the encoder and, in `at.json`,
what happens where.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from sparkinfer import TorchBatchProcessor, TorchBatchProcessorContext, torch_batch_process
from tests.made_up_processor import Journal, wait_for_pause

ABSTRACTS = """\
We survey data mining techniques for large tables and compare their use of memory.
A compiler for tensor programs chooses loop orders by measured cost.
Coral reefs recover from warm summers where currents bring cold water.
The treaty of the two cities ended a quarrel about river tolls.
We prove a lower bound on the depth of sorting networks.
Bakers of the valley leaven bread with wild yeast from rye.
A telescope on a balloon maps faint dust between galaxies.
Graph databases answer path queries faster with landmark distances.
Nurses on night shifts sleep less and make more errors by day.
The violin maker varnished spruce with oil and amber resin.
Neural translation models copy rare names from the source sentence.
Glaciers in the northern range lost a third of their ice.
A vaccine against swine fever protects piglets after one dose.
Voters in small towns trust local papers more than television.
Cheap sensors measure soil moisture under olive trees.
We describe an index for nearest neighbour search on disk.
Bees find flowers by the electric field of petals.
The railway strike of that winter changed labour law.
A robot hand learns to turn a key by touch alone.
Quantum codes correct errors with fewer ancilla bits.
Poets of the court wrote riddles about falcons.
Batteries with salt electrolytes keep their charge in frost.
A random walk on a torus mixes in quadratic time.
Children who read aloud to dogs become fluent sooner.
Fungi carry phosphate between the roots of beech trees.
""".splitlines()


class Documents(Dataset):
    def __len__(self) -> int:
        return len(ABSTRACTS)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"_id": f"doc-{index}", "text": ABSTRACTS[index]}


class Encoder:
    """The mean of a BERT's token vectors, of length 1."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def encode(self, texts: list[str]) -> torch.Tensor:
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        hidden = self.model(**inputs.to(self.model.device)).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).cpu()


class ChromaStore:
    """A collection on this machine."""

    def __init__(self, folder: Path) -> None:
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(str(folder / "chroma"), settings)
        self._docs = client.get_or_create_collection("docs", embedding_function=None)

    def upsert(self, ids: list[str], texts: list[str], vectors: np.ndarray) -> None:
        self._docs.upsert(ids=ids, documents=texts, embeddings=vectors)

    def ids(self) -> list[str]:
        return self._docs.get()["ids"]

    def nearest(self, vector: np.ndarray) -> str:
        return self._docs.query(query_embeddings=[vector], n_results=1)["ids"][0][0]


class EmbeddingProcessor(TorchBatchProcessor):
    def __init__(self, context: TorchBatchProcessorContext) -> None:
        self.context = context
        self.rank = context.get_distributed_rank()
        self.folder = Path(context.get_hparams()["folder"])
        self.encoder = Encoder(self.folder / "encoder")
        self.encoder.model = context.prepare_model_for_inference(self.encoder.model)
        self.persisted = self.folder / "embeddings"
        self.persisted.mkdir(exist_ok=True)
        self.output: list[dict[str, Any]] = []
        self.last_index = 0

    def process_batch(self, batch: dict[str, list[str]], batch_idx: int) -> None:
        self.happens(f"batch:{self.rank}:{batch_idx}")
        vectors = self.encoder.encode(batch["text"])
        self.output.append({"id": batch["_id"], "text": batch["text"], "embeddings": vectors})
        self.last_index = batch_idx

    def on_checkpoint_start(self) -> None:
        if self.output:
            name = f"embeddings_worker_{self.rank}_end_batch_{self.last_index}"
            torch.save(self.output, self.persisted / name)
            self.output = []
        self.happens(f"checkpoint:{self.rank}:{self.last_index}")

    def on_finish(self) -> None:
        if self.rank == 0:
            store = ChromaStore(self.folder)
            for file in sorted(self.persisted.iterdir()):
                for batch in torch.load(file):
                    store.upsert(batch["id"], batch["text"], batch["embeddings"].numpy())
            self.happens("finish")

    def happens(self, place: str) -> None:
        """For the test: kills a process, or asks the driver to end."""
        what = json.loads((self.folder / "at.json").read_text()).get(place)
        if what is not None and Journal(self.folder / "journal").once(place):
            whose, signal_name = what
            driver = int((self.folder / "driver").read_text())
            pid = driver if whose == "driver" else os.getpid()
            os.kill(pid, signal.Signals[signal_name])
            if signal_name == "SIGTERM":
                wait_for_pause(self.folder / "run")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "driver").write_text(str(os.getpid()))
    torch_batch_process(
        EmbeddingProcessor,
        Documents(),
        batch_size=2,
        checkpoint_interval=2,
        output=str(folder / "run"),
        num_workers=3,
        hparams={"folder": str(folder)},
    )
