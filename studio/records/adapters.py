"""Adapters, merges and exports."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, JsonValue

from studio.records.base import Record
from studio.records.jobs import JobProgress, JobStatus


class Adapter(Record):
    """An adapter that can answer on its base model: trained here, merged, or brought from elsewhere."""

    id: str
    name: str
    base_model: str
    method: str  # lora, dora, ia3, prompt-tuning, ...
    job: str | None  # the job that trained it
    path: str  # absolute folder
    bytes: int  # of all its files
    created_at: float


class MergeMethod(StrEnum):
    """How adapters are added up."""

    LINEAR = "linear"  # the sum of the updates, each times its weight
    TIES = "ties"  # the largest values of each, where their signs agree
    DARE = "dare"  # a random part of each, scaled up to make up for the rest


class ExportFormat(StrEnum):
    """What others can load an export with."""

    ADAPTER = "adapter"  # safetensors as peft writes them; needs the base model
    MERGED = "merged"  # the whole model in 16 bit, as transformers writes it
    GGUF = "gguf"  # the whole model for llama.cpp and ollama
    GGUF_LORA = "gguf-lora"  # the adapter for llama.cpp; needs the base model as GGUF


class Outtype(StrEnum):
    """How a GGUF file stores the weights of a whole model."""

    F16 = "f16"  # 16 bits per weight
    BF16 = "bf16"  # 16 bits per weight with the range of 32: what most models are published in
    Q8_0 = "q8_0"  # 8.5 bits per weight
    Q6_K = "q6_k"  # 6.6 bits per weight; this and the following are made by llama.cpp's quantizer
    Q5_K_M = "q5_k_m"  # about 5.7 bits per weight
    Q4_K_M = "q4_k_m"  # about 4.9 bits per weight


K_QUANTS = (Outtype.Q6_K, Outtype.Q5_K_M, Outtype.Q4_K_M)


class ReaderProof(Record):
    """What another program makes of the same file."""

    model_config = ConfigDict(extra="ignore")  # kept in files, which a later version may have written

    identical: int | None = None  # null in a file that it does not load
    max_logit_diff: float | None = None
    worst_share: float | None = None
    clear_tokens: int | None = None
    wrong_tokens: int | None = None
    router_ties: int | None = None
    same_template_ids: bool | None = None
    passed: bool
    reason: str


class RoundingProof(Record):
    """Whether the tensors of a quantised file are those of its 16-bit file, rounded."""

    model_config = ConfigDict(extra="ignore")  # as ReaderProof

    tensors: dict[str, int]  # how many have each type, such as Q4_K
    worst_error: float  # the largest relative error of a tensor (root mean square)
    worst_tensor: str
    importance: int  # tensors that were rounded with an importance matrix from the training rows
    passed: bool
    reason: str


class ExportProof(Record):
    """Whether the written files, read back, behave like the base model with the adapter. Both answer the same prompts.

    What no program here can read is not proved: `passed` is null, and of the figures only `prompts` is there.
    """

    model_config = ConfigDict(extra="ignore")  # as ReaderProof

    prompts: int
    identical: int | None = None  # prompts whose greedy answers are the same
    max_logit_diff: float | None = None  # the largest difference of a logit, over every position of the answers
    effect: float | None = None  # by how much the adapter changes the logits: the median of the largest change at each position
    worst_share: float | None = None  # the largest difference as a share of what the adapter changes; 0.05 would fail
    clear_tokens: int | None = None  # positions where the adapter prefers its token by more than the difference
    wrong_tokens: int | None = None  # of these, where the files prefer another one
    router_ties: int | None = None  # positions left out: a router was near a tie, and rounding chose another expert
    same_template_ids: bool | None = None  # tokenizer and template make the same ids of a conversation
    passed: bool | None  # null: not proved
    reason: str  # why it did not pass, or why it is not proved; "" where it passed
    reader: str | None = None  # the program that read the files for these figures
    readers: dict[str, ReaderProof] | None = None  # other programs that read the file, such as llama.cpp
    rounding: RoundingProof | None = None  # of a K-quant, which is proved by its 16-bit file and by what rounding did
    notes: list[str] = []  # what a program that loads the files does otherwise than the model, and what they leave out

    def as_json(self) -> dict[str, JsonValue]:
        """Without figures that are not there. `passed` always is: null says that nothing was proved."""
        return {"passed": self.passed, **self.model_dump(mode="json", exclude_none=True)}


class WrittenExport(Record):
    """What the process of an export has written and proved."""

    model_config = ConfigDict(extra="ignore")  # as ReaderProof

    path: str
    bytes: int
    format: ExportFormat
    files: list[str]
    verified: ExportProof

    def as_json(self) -> dict[str, JsonValue]:
        """As its proof: without figures that are not there."""
        return {**self.model_dump(mode="json", exclude={"verified"}), "verified": self.verified.as_json()}


class Export(Record):
    """An adapter in a form that others can load, with its proof. Its ID is that of its job."""

    id: str
    name: str
    adapter: str
    base_model: str
    format: ExportFormat
    outtype: Outtype | None  # of format gguf only
    status: JobStatus
    reason: str
    fix: str
    path: str  # absolute folder
    bytes: int  # of all its files; 0 while it is written, and after it was deleted
    files: list[str]  # names in `path` that are still there
    verified: ExportProof | None  # null before the files were read back
    progress: JobProgress
    created_at: float


class PushedExport(Record):
    """An export that was uploaded to the Hugging Face hub."""

    repository: str
    url: str
