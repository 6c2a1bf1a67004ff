"""Base models, and what a training on one would take."""

from __future__ import annotations

from datetime import date
from enum import StrEnum

from pydantic import JsonValue

from studio.records.base import Record
from studio.records.probe import Probe


class BaseModel(Record):
    """A base model that is known by name. The starter is always there; its ID is its name."""

    id: str
    name: str
    path: str  # absolute folder
    architecture: str  # as config.json names it
    parameters: int  # a tied output layer counts once
    context: int  # tokens; 0 where config.json does not say
    loadable: bool  # it can answer and be trained
    reason: str  # why it is not loadable; "" where it is
    warnings: list[str] = []  # only where it is added: what of its folder is stored and not used
    probe: Probe | None = None  # only where it is added or shown; null for what can't be loaded
    notices: list[str] = []  # where it is added or shown alone: what is used otherwise than it was published, or ignored


class RemovedModel(Record):
    """A base model that is no longer known. Its files are deleted only where they lay in STUDIO_HOME."""

    name: str
    removed: bool = True
    kept: str = ""  # the folder whose files stay: one of the person's own, or of the Hugging Face cache


class CachedModel(Record):
    """A model of the hub that lies whole in the person's Hugging Face cache, and can be added without fetching anything."""

    repository: str  # OWNER/NAME
    path: str  # its newest snapshot
    architecture: str  # as config.json names it
    parameters: int
    bytes: int  # of its weights
    here: bool  # it is a base model already


class Fetched(Record):
    """How far a download is, in bytes of the files that are fetched."""

    done: int
    total: int


class HubModel(Record):
    """A text generation model of the Hugging Face hub, as a search finds it."""

    repository: str  # OWNER/NAME
    downloads: int
    gated: bool  # its terms must be accepted on its page first


class SizeSource(StrEnum):
    """Where the sizes of an entry of the catalogue come from."""

    CONFIG = "config"  # a public copy of its config.json
    LITGPT = "litgpt"  # litgpt's model configurations
    LIBRARY = "library"  # defaults of its class in transformers, which were made for it
    DOCUMENTATION = "documentation"  # a model card, a training recipe, or metadata of a GGUF file
    MEMORY = "memory"  # what is publicly known; compared with its published number of parameters alone


class KnownBaseModel(Record):
    """A base model that people use, whether or not it is here."""

    repository: str  # OWNER/NAME on the hub
    parameters: int
    context: int  # tokens
    licence: str
    template: str  # the form of its conversations
    gated: bool  # its terms must be accepted on its page first
    weights: str  # how they are stored
    good_for: str
    refusal: str  # why it can't be used here; "" where it can
    fits: dict[str, bool | None]  # recipe or "full" -> whether it fits this machine's memory; null where that is not known
    here: bool  # a base model of this name was added
    checked: bool  # against the hub, by this studio
    note: str
    download_bytes: int  # of its weights, in 16 bits
    trains: bool  # an adapter can be trained on it here
    chats: bool  # it can answer here
    reasons: list[str]  # why it does not train or chat here; empty where it does both
    notices: list[str]  # what is different with it here: parts that are not trained, rows in separate passes
    learned_share: float | None  # of the weights in its text model's blocks, that LoRA's default targets reach
    left_out: dict[str, float]  # kind of weight -> its share of the same, that they don't reach
    asked: str  # the libraries that said so, with their versions
    source: SizeSource  # of its sizes
    checked_on: date  # when the sizes were compared with its published number of parameters


# before a training: its memory, and what stands against it


class MemoryBreakdown(Record):
    """Predicted bytes on the device at the peak, by what they hold."""

    base_weights: int  # layers that can be quantised
    full_precision_weights: int  # embeddings, head, norms
    adapter: int  # what is trained, with its gradients
    optimizer: int
    activations: int
    logits: int  # the output layer
    overhead: int


class MemoryAdvice(Record):
    """One change that would save memory."""

    change: str  # in words, with the options
    saves_bytes: int
    options: dict[str, JsonValue]  # dotted keys


class MemoryCorrection(Record):
    """What past runs like this one on this machine say: measured / predicted."""

    factor: float
    runs: int


class ChatMemory(Record):
    """The same base model in the chat."""

    bytes: int
    stays_loaded: bool | None  # beside this training; null where the device is not known


class MemoryHolder(Record):
    """Who holds memory of a device now."""

    name: str
    bytes: int
    is_given_back: bool  # before a training that waits now begins


class AvailableMemory(Record):
    """What a training may take: what is free now and what the studio gives back for it, less a reserve."""

    free_bytes: int
    returned_bytes: int  # by the engine, the compressors and the job that runs
    reserve_bytes: int
    available_bytes: int
    holders: list[MemoryHolder]  # what the studio gives back first, then others


class PlanChange(Record):
    """One option that a plan changes, and why."""

    option: str
    value: JsonValue
    before: JsonValue
    reason: str


class MemoryPlan(Record):
    """The fastest choice of batch, recomputing, optimizer and, last, length that fits; `changes` is empty where nothing has to change."""

    changes: list[PlanChange]
    options: dict[str, JsonValue]  # the changes by dotted key
    needed_bytes: int  # with these changes, the program itself included
    fits: bool  # false: not even this fits
    beside: str  # what the chosen length would need, where the plan shortens it; else empty


class Fit(Record):
    """Predicted peak memory of one training. On a processor `process_bytes` come on top of it."""

    predicted_bytes: int
    breakdown: MemoryBreakdown  # adds up to predicted_bytes
    margin_bytes: int | None  # negative: so much is missing; null where the device is not known
    fits: bool | None
    advice: list[MemoryAdvice]  # the greatest saving first
    device: str  # cuda, cpu
    room_bytes: int | None  # what a training may take there
    process_bytes: int  # the imported trainer itself, on a processor
    paged_bytes: int  # optimizer states that may move to main memory
    error_bytes: int  # by which the prediction may be off, as measured
    peak_at: str  # the moment of the peak
    parameters: int
    trainable_parameters: int
    longest_max_length: int | None
    largest_batch: int | None
    chat: ChatMemory
    warnings: list[str]  # why a launch would refuse it
    notices: list[str] = []  # options that nobody set and that are made to fit the model
    correction: MemoryCorrection
    available: AvailableMemory | None = None  # who holds the rest; null where a size was given
    plan: MemoryPlan | None = None  # null where the device is not known


class MeasuredMemory(Record):
    """What a run really took, beside its prediction."""

    measured_bytes: int
    predicted_bytes: int
    device: str


class Refusal(Record):
    """One reason why a launch would be refused."""

    message: str
    fix: str
    change: dict[str, JsonValue]  # options that remove the reason; empty where a person has to decide
