"""A pipeline that transformers does not have, registered by this file's last lines."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForSequenceClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from sparkinfer.models.any_pipeline import AnyPipeline

NAME = "made-up-spectrum"


class SpectrumPipeline(Pipeline):
    """Returns a label, the largest logit and all of them, by words for the text `split`."""

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def _sanitize_parameters(self, scale: float | None = None, **kwargs: Any) -> Any:
        return {}, {}, {} if scale is None else {"scale": scale}

    def preprocess(self, text: str) -> Any:
        if "boring" in text:
            raise ValueError("it is boring")
        return {**self.tokenizer(text, return_tensors="pt"), "text": text}

    def _forward(self, inputs: Any) -> Any:
        text = inputs.pop("text")
        return {"logits": self.model(**inputs).logits, "text": text}

    def postprocess(self, outputs: Any, scale: float = 1.0) -> Any:
        logits = outputs["logits"][0].double() * scale
        best = int(logits.argmax())
        found = {"label": str(self.model.config.id2label[best]), "logit": logits.max()}
        found["all"] = [] if outputs["text"] == "empty" else logits.numpy()
        if outputs["text"] == "odd":
            return {**found, "logit": "much"}
        return found


class WithMadeUpPipeline(AnyPipeline):
    """Has a worker that unpickles it know the pipeline."""


PIPELINE_REGISTRY.register_pipeline(
    NAME, SpectrumPipeline, pt_model=AutoModelForSequenceClassification, type="text"
)
