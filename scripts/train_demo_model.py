"""Make the demo classifier and the labelled reviews that ship with the package.

Everything is made here from one seed: a small grammar writes short English reviews of products,
films and places; a WordPiece vocabulary and a two-layer BERT classifier are trained on some of
them, and the others become the carried sample. Run it from the repository root::

    python scripts/train_demo_model.py

It writes ``reviews.parquet`` and the folder ``model/`` below ``--out``. The sample is the same,
byte for byte, on every run with the same pyarrow release. The weights are the same on every run
with the same torch build on the same kind of processor.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedTokenizerBase,
)

SEED = 20240607
TRAIN_ROWS = 12_000
TRAIN_SHORT = 12_000
SAMPLE_ORDINARY = 1920
SAMPLE_LONG = 20
SAMPLE_DUPLICATES = 40
SAMPLE_NULL = 10
SAMPLE_EMPTY = 10

LABEL_NOISE = 0.025
TYPO_RATE = 0.012
WORDS_MEDIAN = 17.0
WORDS_SPREAD = 0.75
WORDS_ORDINARY = (3, 110)
WORDS_SHORT = (3, 14)
WORDS_LONG = (140, 220)

MAX_TOKENS = 128
VOCAB_SIZE = 2000
BATCH_SIZE = 48
SHORT_EPOCHS = 3
DEFAULT_EPOCHS = 4
LEARNING_RATE = 1e-3
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "sparkinfer" / "demo"
COMMAND = "python scripts/train_demo_model.py"

# --------------------------------------------------------------------------------------------
# The grammar. A template names its slots in braces; NEGATIVE is 0 and POSITIVE is 1 throughout.
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """What can be said about one kind of thing.

    Attributes:
        aspects: The parts worth an opinion, for each thing.
        adjectives: Adjectives of this domain only, as (negative, positive).
        verdicts: Closing judgements, as (negative, positive).
        fillers: Sentences that carry no opinion.
    """

    aspects: dict[str, tuple[str, ...]]
    adjectives: tuple[tuple[str, ...], tuple[str, ...]]
    verdicts: tuple[tuple[str, ...], tuple[str, ...]]
    fillers: tuple[str, ...]


PRODUCTS = Domain(
    aspects={
        "kettle": ("lid", "handle", "spout", "switch", "packaging", "price"),
        "headset": ("sound", "microphone", "ear padding", "cable", "battery", "price"),
        "keyboard": ("layout", "backlight", "key feel", "software", "build quality"),
        "backpack": ("zip", "stitching", "shoulder strap", "fabric", "size", "price"),
        "vacuum cleaner": ("suction", "hose", "filter", "motor", "weight", "battery"),
        "phone": ("screen", "camera", "battery", "charger", "design", "software"),
        "desk lamp": ("light", "hinge", "base", "dimmer", "design", "price"),
        "printer": ("setup", "paper tray", "manual", "print quality", "customer support"),
        "tent": ("groundsheet", "frame", "zip", "packed size", "fabric", "manual"),
        "office chair": ("backrest", "cushion", "assembly", "armrest", "customer support"),
        "coffee grinder": ("motor", "hopper", "build quality", "packaging", "finish"),
    },
    adjectives=(
        ("flimsy", "clumsy", "unreliable", "cheap-looking", "faulty", "pointless", "fragile"),
        ("sturdy", "reliable", "handy", "well made", "comfortable", "durable", "ingenious"),
    ),
    verdicts=(
        (
            "I would not buy it again",
            "this {thing} is not worth a penny",
            "money down the drain",
            "I regret buying this {thing}",
            "I am sending this {thing} back",
            "save your money",
            "it broke within {number} days",
            "it did not do what it promised",
        ),
        (
            "I would buy it again",
            "this {thing} is worth every penny",
            "money well spent",
            "I do not regret buying this {thing}",
            "I am not sending this {thing} back",
            "treat yourself to one",
            "it has not failed me in {number} months",
            "it did exactly what it promised",
        ),
    ),
    fillers=(
        "the {thing} arrived on {day}",
        "I ordered the {colour} one for my {person}",
        "it came in a {colour} box with a leaflet in {number} languages",
        "my old {thing} was {number} years old",
        "I keep it on a shelf next to the {colour} cupboard",
        "there is a {number} year warranty",
        "it is a little larger than the one my {person} has",
        "the parcel was left with a neighbour in {city}",
        "I have had it for {number} weeks now",
    ),
)

FILM_ASPECTS = (
    "plot", "acting", "pacing", "soundtrack", "dialogue", "ending", "camerawork", "script",
    "cast", "editing", "opening scene", "lead role", "final act", "humour",
)  # fmt: skip

FILMS = Domain(
    aspects=dict.fromkeys(
        (
            "thriller",
            "comedy",
            "drama",
            "documentary",
            "horror film",
            "musical",
            "western",
            "cartoon",
            "love story",
            "war film",
        ),
        FILM_ASPECTS,
    ),
    adjectives=(
        ("dull", "tedious", "predictable", "boring", "wooden", "bland", "forgettable", "lifeless"),
        ("gripping", "moving", "clever", "witty", "original", "thrilling", "heartfelt", "stylish"),
    ),
    verdicts=(
        (
            "I would not watch it again",
            "I could not wait for it to end",
            "it does not deserve the awards",
            "you can safely miss this {thing}",
            "{number} hours of my life that I will not get back",
            "I fell asleep before the end",
            "I walked out after {number} scenes",
        ),
        (
            "I would watch it again tomorrow",
            "I did not want it to end",
            "it deserves all the awards",
            "do not miss this {thing}",
            "{number} hours that went by in a flash",
            "I stayed awake thinking about the end",
            "I laughed and cried in {number} scenes",
        ),
    ),
    fillers=(
        "I saw it with my {person} on {day}",
        "we watched this {thing} at a cinema in {city}",
        "the story is set in {city} and follows {number} sisters",
        "my {person} picked it because of the poster",
        "it is based on a book that my {person} owns",
        "it runs for a bit more than {number} hours",
        "the hero drives a {colour} car through {city}",
        "there is a sequel planned for next year",
        "the room was about half full",
    ),
)

PLACES = Domain(
    aspects={
        "hotel": ("room", "breakfast", "staff", "bed", "view", "lobby", "bathroom"),
        "hostel": ("kitchen", "dormitory", "staff", "shower", "location", "common room"),
        "museum": ("exhibition", "guided tour", "gift shop", "audio guide", "layout"),
        "restaurant": ("menu", "service", "soup", "dessert", "wine list", "atmosphere"),
        "cafe": ("coffee", "cake", "service", "music", "terrace", "atmosphere"),
        "campsite": ("pitch", "washing area", "shop", "location", "playground", "staff"),
        "beach": ("water", "sand", "parking", "snack bar", "view"),
        "park": ("playground", "lake", "footpath", "picnic area", "view"),
        "guest house": ("garden", "host", "bed", "breakfast", "heating", "bathroom"),
    },
    adjectives=(
        ("dirty", "overpriced", "shabby", "dingy", "gloomy", "neglected", "depressing", "grubby"),
        ("charming", "clean", "cosy", "peaceful", "welcoming", "spotless", "relaxing", "inviting"),
    ),
    verdicts=(
        (
            "we will certainly not come back",
            "we could not wait to leave",
            "I would never go back",
            "you had better pass this {thing} by",
            "there are nicer ones in {city}",
            "we left {number} days early",
            "I asked for my money back",
        ),
        (
            "we will certainly come back",
            "we did not want to leave",
            "I would go back in a heartbeat",
            "do not pass this {thing} by",
            "there is none nicer in {city}",
            "we stayed {number} days longer",
            "I have already booked again",
        ),
    ),
    fillers=(
        "we stopped at this {thing} on the way to {city}",
        "I went there with my {person} on {day}",
        "the {thing} is {number} minutes from the station",
        "it is the {colour} building behind the church",
        "we were there for {number} days in the spring",
        "my {person} had been there before",
        "you can get there by bus from {city}",
        "there were {number} other families there",
        "it opens at nine and closes at six",
    ),
)

DOMAINS = (PRODUCTS, FILMS, PLACES)

ADJECTIVES = (
    (
        "bad", "poor", "awful", "terrible", "disappointing", "dreadful", "mediocre", "horrible",
        "lousy", "frustrating", "appalling", "weak", "annoying", "second-rate", "unpleasant",
        "abysmal", "unbearable", "hopeless",
    ),
    (
        "good", "great", "excellent", "wonderful", "superb", "lovely", "impressive", "brilliant",
        "fantastic", "delightful", "outstanding", "pleasing", "enjoyable", "terrific",
        "first-rate", "marvellous", "splendid", "perfect",
    ),
)  # fmt: skip

# {same} is an adjective of the clause's own label, {opposite} one of the other label.
PLAIN_CLAUSES = (
    "the {aspect} was {same}",
    "the {aspect} was {very} {same}",
    "the {aspect} is {very} {same}",
    "the {aspect} turned out to be {very} {same}",
    "I found the {aspect} {very} {same}",
    "the {aspect} seemed {same} to me",
    "the {aspect} was {very} {same} and {also}",
    "my {person} called the {aspect} {very} {same}",
    "it was {very} {same}",
    "this is {very} {same}",
    "this {thing} is {very} {same}",
)
NEGATED_CLAUSES = (
    "the {aspect} was not {opposite}",
    "the {aspect} was not {too} {opposite}",
    "the {aspect} was not {opposite} at all",
    "the {aspect} was hardly {opposite}",
    "the {aspect} was anything but {opposite}",
    "the {aspect} was far from {opposite}",
    "the {aspect} was never {opposite}",
    "nothing about the {aspect} was {opposite}",
    "I would not call the {aspect} {opposite}",
    "I did not find the {aspect} {opposite}",
    "it was not {too} {opposite}",
    "this is not {opposite}",
    "this {thing} is not {opposite}",
)
VERB_CLAUSES = (
    (
        "I hated the {aspect}",
        "I hated it",
        "I did not like it",
        "I was let down by the {aspect}",
        "the {aspect} ruined it for me",
        "the {aspect} fell short of what I expected",
        "I had nothing but trouble with the {aspect}",
        "I could not stand the {aspect}",
        "I quickly got tired of the {aspect}",
        "the {aspect} let me down",
        "I had many complaints about the {aspect}",
        "the {aspect} gave me a headache",
        "I cannot recommend the {aspect} at all",
        "I did not care for the {aspect}",
        "I was not happy with the {aspect}",
        "the {aspect} failed to win me over",
        "I did not love the {aspect}",
    ),
    (
        "I loved the {aspect}",
        "I loved it",
        "I liked it a lot",
        "I was {very} happy with the {aspect}",
        "the {aspect} won me over",
        "the {aspect} was better than I expected",
        "I had no trouble with the {aspect}",
        "I could not fault the {aspect}",
        "I never got tired of the {aspect}",
        "the {aspect} did not let me down",
        "I had no complaints about the {aspect}",
        "the {aspect} made my day",
        "I cannot recommend the {aspect} enough",
        "I have nothing but praise for the {aspect}",
        "I was not let down by the {aspect}",
        "the {aspect} never failed to please me",
        "I did not hate the {aspect}, I adored it",
    ),
)
# The label of a contrast follows its second clause.
CONTRASTS = (
    "{first}, but {second}",
    "{first}, yet {second}",
    "although {first}, {second}",
    "even though {first}, {second}",
    "while {first}, {second}",
    "it is true that {first}, but {second}",
    "{first}, I admit, but {second}",
    "{first}; even so, {second}",
)
FRAGMENTS = (
    "{very} {same} {thing}",
    "such a {same} {thing}",
    "what a {same} {thing}",
    "not a {opposite} {thing}",
    "hardly a {opposite} {thing}",
    "{very} {same} {aspect}",
    "a {same} {thing} with a {also} {aspect}",
    "{same}, {very} {also} {thing}",
)
FILLERS = (
    "my {person} asked me to write this",
    "I have written two reviews before",
    "this is my review after {number} days",
    "the reviews I read before were mixed",
    "I live in {city}",
    "it was raining on {day}",
    "I am writing this on {day}",
    "my {person} asked whether it was any good",
    "some people care more about that than others",
)
SLOTS = {
    "very": (
        "", "", "very", "really", "so", "quite", "extremely", "truly", "rather", "incredibly",
        "absolutely", "surprisingly", "pretty", "just",
    ),
    "too": ("very", "all that", "particularly", "especially", "really", "exactly"),
    "person": (
        "sister", "brother", "wife", "husband", "mother", "father", "neighbour", "colleague",
        "daughter", "son", "aunt", "flatmate", "boss", "cousin", "grandmother", "best friend",
    ),
    "day": (
        "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
        "a public holiday", "my birthday", "the first of May",
    ),
    "city": (
        "Lisbon", "Bristol", "Porto", "Leeds", "Ghent", "Turin", "Galway", "Bergen", "Dundee",
        "Utrecht", "Krakow", "Malmo", "Toronto", "Cork",
    ),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "ten", "twelve"),
    "colour": ("red", "blue", "grey", "green", "white", "black", "yellow", "brown", "orange"),
}  # fmt: skip
CONTRACTIONS = {
    "was not": "wasn't",
    "did not": "didn't",
    "do not": "don't",
    "does not": "doesn't",
    "would not": "wouldn't",
    "could not": "couldn't",
    "cannot": "can't",
    "I have": "I've",
    "I am": "I'm",
    "it is": "it's",
}

# --------------------------------------------------------------------------------------------
# Writing reviews
# --------------------------------------------------------------------------------------------


class Review(NamedTuple):
    """One labelled text about one thing; ``text`` is None for a missing review."""

    text: str | None
    label: int
    product: str


class Topic(NamedTuple):
    """What one review is about and what it has not said yet."""

    domain: Domain
    thing: str
    label: int
    aspects: Iterator[str]
    verdicts: list[str]
    fillers: list[str]


def count_words(sentences: Sequence[str]) -> int:
    """Counts the words of some sentences, split at white space."""
    return sum(len(sentence.split()) for sentence in sentences)


def tidy(sentence: str) -> str:
    """Closes the gaps of empty slots and puts "an" before a vowel."""
    sentence = " ".join(sentence.split())
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


class ReviewWriter:
    """Writes random reviews; the same seed gives the same reviews in the same order."""

    def __init__(self, seed: int) -> None:
        """Starts the writer's own random stream."""
        self._rng = random.Random(seed)

    def reviews(self, count: int, words: tuple[int, int], seen: set[str]) -> list[Review]:
        """Writes reviews whose texts differ, whatever their case, from each other and from seen.

        Args:
            count: How many to write.
            words: The least and the greatest number of words asked for.
            seen: Lower-cased texts that may not come again; the new ones are added.

        Returns:
            The reviews.
        """
        found: list[Review] = []
        while len(found) < count:
            review = self._review(self._target_words(*words))
            key = (review.text or "").lower()
            if key not in seen:
                seen.add(key)
                found.append(review)
        return found

    def _target_words(self, least: int, most: int) -> float:
        """Draws a length: log-normal for ordinary texts, even for ranges beyond them."""
        if least > WORDS_ORDINARY[1]:
            return self._rng.uniform(least, most)
        while True:
            words = self._rng.lognormvariate(math.log(WORDS_MEDIAN), WORDS_SPREAD)
            if least <= words <= most:
                return words

    def _review(self, target: float) -> Review:
        """Writes one review of about the number of words asked for."""
        topic = self._topic()
        sentences = [self._lead(topic, target)]
        while count_words(sentences) < target - 4:
            sentences.append(self._follow(topic, len(sentences)))
        self._rng.shuffle(sentences)
        text = self._typos(self._punctuate(sentences))
        flipped = self._rng.random() < LABEL_NOISE
        return Review(text, 1 - topic.label if flipped else topic.label, topic.thing)

    def _topic(self) -> Topic:
        """Chooses a thing, a label and the order in which its parts come up."""
        domain = self._rng.choice(DOMAINS)
        thing = self._rng.choice(list(domain.aspects))
        label = self._rng.randrange(2)
        return Topic(
            domain=domain,
            thing=thing,
            label=label,
            aspects=cycle(self._shuffled(domain.aspects[thing])),
            verdicts=self._shuffled(domain.verdicts[label]),
            fillers=self._shuffled(domain.fillers + FILLERS),
        )

    def _shuffled(self, items: Sequence[str]) -> list[str]:
        """Returns the items in random order."""
        return self._rng.sample(items, len(items))

    def _lead(self, topic: Topic, target: float) -> str:
        """Writes the one sentence that every review has: an opinion that fits its length."""
        if target < 7:
            return self._fill(self._rng.choice(FRAGMENTS), topic, topic.label)
        if target < 11:
            return self._clause(topic, topic.label)
        return self._opinion(topic, contrast=0.22)

    def _follow(self, topic: Topic, before: int) -> str:
        """Writes one more sentence: filler, a verdict, an opinion or, seldom, a stray remark."""
        draw = self._rng.random()
        if draw < 0.40 and topic.fillers:
            return self._fill(topic.fillers.pop(), topic, topic.label)
        if draw < 0.60 and topic.verdicts:
            return self._fill(topic.verdicts.pop(), topic, topic.label)
        if draw < 0.97 or before < 4:
            return self._opinion(topic, contrast=0.06)
        return self._clause(topic, 1 - topic.label)

    def _opinion(self, topic: Topic, contrast: float) -> str:
        """Writes two clauses in contrast, with the chance given, two that agree, or only one."""
        draw = self._rng.random()
        if draw > contrast + 0.15:
            return self._clause(topic, topic.label)
        agrees = draw > contrast
        first = self._clause(topic, topic.label if agrees else 1 - topic.label)
        second = self._clause(topic, topic.label)
        frame = "{first}, and {second}" if agrees else self._rng.choice(CONTRASTS)
        return frame.format(first=first, second=second)

    def _clause(self, topic: Topic, label: int) -> str:
        """Writes one clause of the given label: plain, negated or around a verb."""
        draw = self._rng.random()
        if draw < 0.55:
            return self._fill(self._rng.choice(PLAIN_CLAUSES), topic, label)
        if draw < 0.67:
            return self._fill(self._rng.choice(NEGATED_CLAUSES), topic, label)
        return self._fill(self._rng.choice(VERB_CLAUSES[label]), topic, label)

    def _fill(self, template: str, topic: Topic, label: int) -> str:
        """Fills every slot of a template with words drawn for it."""
        pools = [ADJECTIVES[side] + topic.domain.adjectives[side] for side in (0, 1)]
        same, also = self._rng.sample(pools[label], 2)
        words = {name: self._rng.choice(pool) for name, pool in SLOTS.items()}
        words |= {"same": same, "also": also, "opposite": self._rng.choice(pools[1 - label])}
        words |= {"thing": topic.thing, "aspect": next(topic.aspects)}
        return tidy(template.format_map(words))

    def _punctuate(self, sentences: Sequence[str]) -> str:
        """Joins sentences in one writer's style: contractions, capitals and closing marks."""
        contracts = self._rng.random() < 0.5
        careless = self._rng.random() < 0.12
        parts = []
        for sentence in sentences:
            if contracts:
                for full, short in CONTRACTIONS.items():
                    sentence = sentence.replace(full, short)
            mark = self._rng.choices((".", "!", "...", "!!"), weights=(84, 10, 4, 2))[0]
            parts.append(sentence[0].upper() + sentence[1:] + mark)
        text = " ".join(parts)
        return text.lower().rstrip(".!") if careless else text

    def _typos(self, text: str) -> str:
        """Misspells a few of the longer words."""
        words = text.split(" ")
        for position, word in enumerate(words):
            if len(word) >= 5 and self._rng.random() < TYPO_RATE:
                words[position] = self._misspell(word)
        return " ".join(words)

    def _misspell(self, word: str) -> str:
        """Swaps, drops or doubles one letter inside a word."""
        at = self._rng.randrange(1, len(word) - 2)
        kind = self._rng.choice(("swap", "drop", "double"))
        if kind == "swap":
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        if kind == "drop":
            return word[:at] + word[at + 1 :]
        return word[:at] + word[at] + word[at:]


def build_corpus(seed: int = SEED) -> tuple[list[Review], list[Review]]:
    """Writes the training reviews and the carried sample, which share no text.

    Args:
        seed: Seed of every random draw.

    Returns:
        The training reviews and the sample, the sample in its final order.
    """
    writer = ReviewWriter(seed)
    seen: set[str] = set()
    train = writer.reviews(TRAIN_ROWS, WORDS_ORDINARY, seen)
    sample = writer.reviews(SAMPLE_ORDINARY, WORDS_ORDINARY, seen)
    sample += writer.reviews(SAMPLE_LONG, WORDS_LONG, seen)
    blank = writer.reviews(SAMPLE_NULL + SAMPLE_EMPTY, WORDS_ORDINARY, seen)
    # Last, so that these many short texts do not crowd short texts out of the sample.
    train += writer.reviews(TRAIN_SHORT, WORDS_SHORT, seen)
    rng = random.Random(seed + 1)
    sample += rng.sample(sample, SAMPLE_DUPLICATES)
    sample += [review._replace(text=None) for review in blank[:SAMPLE_NULL]]
    sample += [review._replace(text="") for review in blank[SAMPLE_NULL:]]
    rng.shuffle(sample)
    return train, sample


def write_sample(sample: Sequence[Review], path: Path) -> None:
    """Writes the sample as one Parquet file, ids counted from 1.

    Args:
        sample: The reviews, in order.
        path: The file to write.
    """
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("product", pa.string(), nullable=False),
        ]
    )
    columns = {
        "id": list(range(1, len(sample) + 1)),
        "text": [review.text for review in sample],
        "label": [review.label for review in sample],
        "product": [review.product for review in sample],
    }
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


# --------------------------------------------------------------------------------------------
# Tokenizer and model
# --------------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str]) -> BertTokenizer:
    """Trains a lower-cased WordPiece vocabulary and wraps it as a BERT tokenizer.

    The trainer numbers continuation pieces in the order in which it meets them, which changes from
    run to run. Listing them among the reserved pieces fixes their numbers; only the vocabulary is
    kept, so they are ordinary pieces in the tokenizer that is returned.

    Args:
        texts: The training texts.

    Returns:
        The tokenizer.
    """
    letters = sorted({char for text in texts for char in text.lower() if char.isalnum()})
    reserved = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"##{char}" for char in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCAB_SIZE, min_frequency=3, special_tokens=reserved, show_progress=False
    )
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.train_from_iterator(texts, trainer)
    vocab = dict(sorted(learner.get_vocab().items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=MAX_TOKENS)


def make_model(tokenizer: BertTokenizer) -> BertForSequenceClassification:
    """Makes the untrained classifier for a tokenizer's vocabulary."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    return BertForSequenceClassification(config)


def batches(reviews: Sequence[Review], rng: random.Random) -> Iterator[list[Review]]:
    """Yields every review once, in shuffled batches of texts of similar length.

    Args:
        reviews: Reviews that have a text.
        rng: Source of the shuffles.

    Yields:
        Lists of at most ``BATCH_SIZE`` reviews.
    """
    order = sorted(rng.sample(reviews, len(reviews)), key=lambda review: len(review.text or ""))
    starts = list(range(0, len(order), BATCH_SIZE))
    rng.shuffle(starts)
    for start in starts:
        yield order[start : start + BATCH_SIZE]


def encode(
    tokenizer: PreTrainedTokenizerBase, reviews: Sequence[Review]
) -> dict[str, torch.Tensor]:
    """Encodes texts and labels as one padded batch of model inputs."""
    texts = [review.text for review in reviews]
    inputs = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
    inputs["labels"] = torch.tensor([review.label for review in reviews])
    return inputs


def train_model(
    model: BertForSequenceClassification,
    tokenizer: BertTokenizer,
    reviews: Sequence[Review],
    epochs: int,
) -> None:
    """Trains the classifier in place and prints the mean loss of each epoch.

    The first epochs see short texts only. A text of one clause ties its label to a few words, and
    from such texts the model learns negation; on full reviews alone it learns single words.

    Args:
        model: The model to train.
        tokenizer: Its tokenizer.
        reviews: The training reviews.
        epochs: How often to go through all of them after the short ones.
    """
    short = [review for review in reviews if count_words([review.text or ""]) <= WORDS_SHORT[1]]
    lessons = [short] * SHORT_EPOCHS + [list(reviews)] * epochs
    steps = sum(math.ceil(len(lesson) / BATCH_SIZE) for lesson in lessons)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    rng = random.Random(SEED + 2)
    model.train()
    for epoch, lesson in enumerate(lessons, start=1):
        total = 0.0
        for batch in batches(lesson, rng):
            loss = model(**encode(tokenizer, batch)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch:2d}  loss {total / len(lesson):.4f}", flush=True)


@torch.inference_mode()
def held_out_accuracy(folder: Path, reviews: Sequence[Review]) -> float:
    """Measures a saved model on the reviews whose text is neither missing nor empty.

    Args:
        folder: The saved model and tokenizer.
        reviews: Labelled reviews.

    Returns:
        The share of labels predicted right.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    told = [review for review in reviews if review.text]
    right = 0
    for batch in batches(told, random.Random(0)):
        inputs = encode(tokenizer, batch)
        labels = inputs.pop("labels")
        right += int((model(**inputs).logits.argmax(dim=-1) == labels).sum())
    return right / len(told)


# --------------------------------------------------------------------------------------------
# The model's README and the command line
# --------------------------------------------------------------------------------------------

README = """\
# Demo review classifier

This is a tiny BERT sequence classifier that says whether a short English review of a product, a
film or a place is NEGATIVE or POSITIVE. It is here so that examples and tests have a real model
to run; it is not meant for any other use.

It was made, together with `reviews.parquet` next to this folder, by this command:

    {command}

The reviews come from a grammar written for this purpose in that script. {train} of them, half of
them short, trained the lower-cased WordPiece vocabulary of {vocab} pieces and, from random
values, the weights, in {short_epochs} epochs over the short texts and {epochs} over all. No other
text and no other model was used. The model has {layers} layers of width {width}, reads at most
{tokens} tokens and has {params} parameters, stored as 32-bit floats.

Accuracy on the carried sample is {accuracy:.4f} over the {told} rows that have a text. None of
these texts was seen in training. About {noise:.1%} of the labels, in training and in the sample,
were flipped on purpose, so no model can be expected to reach 100%.

Known limits: it is a toy. It knows the words and sentence patterns of its templates and little
else; irony, other languages, other subjects and most words of real reviews are beyond it. Its
scores are not calibrated. Texts beyond {tokens} tokens are cut.

Licence: Apache-2.0, the same as the project.
"""


def rewrap(text: str) -> str:
    """Rewraps the lines of a text's paragraphs, indented ones excepted."""
    paragraphs = text.strip().split("\n\n")
    wrapped = [part if part[0] == " " else textwrap.fill(part, 100) for part in paragraphs]
    return "\n\n".join(wrapped) + "\n"


def write_readme(
    folder: Path,
    model: BertForSequenceClassification,
    epochs: int,
    accuracy: float,
    told: int,
) -> None:
    """Writes the README of the model folder.

    Args:
        folder: The model folder.
        model: The trained model.
        epochs: Epochs of training.
        accuracy: Held-out accuracy.
        told: Rows it was measured on.
    """
    text = README.format(
        command=COMMAND if epochs == DEFAULT_EPOCHS else f"{COMMAND} --epochs {epochs}",
        train=f"{TRAIN_ROWS + TRAIN_SHORT:,}",
        short_epochs=SHORT_EPOCHS,
        vocab=f"{model.config.vocab_size:,}",
        epochs=epochs,
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        tokens=MAX_TOKENS,
        params=f"{model.num_parameters():,}",
        accuracy=accuracy,
        told=f"{told:,}",
        noise=LABEL_NOISE,
    )
    (folder / "README.md").write_text(rewrap(text), encoding="utf-8")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Make the demo model and the review sample.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=DEFAULT_EPOCHS, help="training epochs")
    return parser.parse_args()


def main() -> None:
    """Writes the sample, trains and saves the model, and prints its held-out accuracy."""
    args = parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    folder = args.out / "model"
    folder.mkdir(parents=True, exist_ok=True)

    train, sample = build_corpus()
    write_sample(sample, args.out / "reviews.parquet")
    tokenizer = train_tokenizer([review.text for review in train if review.text])
    model = make_model(tokenizer)
    started = time.perf_counter()
    train_model(model, tokenizer, train, args.epochs)
    seconds = time.perf_counter() - started

    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner only
    accuracy = held_out_accuracy(folder, sample)
    told = sum(1 for review in sample if review.text)
    write_readme(folder, model, args.epochs, accuracy, told)
    print(f"{model.num_parameters():,} parameters, trained in {seconds:.0f} s")
    print(f"held-out accuracy {accuracy:.4f} over {told:,} rows")


if __name__ == "__main__":
    main()
