"""The catalogue for people: known base models with whether they fit here, and a search of the hub where there is a network."""

from __future__ import annotations

import json

from studio import processes
from studio.catalogue.known import KnownModel, known_models
from studio.errors import ModelError
from studio.records import HubModel, KnownBaseModel, Probe
from studio.services.fit import FitService
from studio.services.models import ModelService
from studio.services.probes import described
from studio.settings import Settings

SEARCH_S = 30
Known = list[KnownBaseModel]  # inside the class, `list` is a use case
Found = list[HubModel]
UNCHECKED = "Licence, gate and weights were written down from what is publicly known, and not checked here."


class KnownService:
    """What a person could bring here."""

    def __init__(self, settings: Settings, models: ModelService, fit: FitService) -> None:
        self.settings = settings
        self.models = models
        self.fit = fit

    def list(self) -> Known:
        """In the order of the catalogue."""
        here = {model.name.lower() for model in self.models.list()}
        return [self._record(model, here) for model in known_models()]

    def search(self, query: str) -> Found:
        """Text generation models of the hub by name, the most downloaded first. Raises ModelError without a network."""
        if not (wanted := query.strip()[:100]):
            return []
        if self.settings.hub_offline:
            raise ModelError(
                "This studio is set to stay offline.",
                "Unset HF_HUB_OFFLINE to search the hub, or add a folder.",
            )
        command = processes.module_command("studio.catalogue.hub", "--search", wanted)
        printed = processes.output_of(command, processes.child_environment(for_hub=True), SEARCH_S)
        try:
            answer = json.loads(printed)
        except ValueError:
            answer = {"error": {"message": "The hub gave no answer.", "fix": "Check the network, or add a folder."}}
        if answer.get("error"):
            raise ModelError(answer["error"]["message"], answer["error"]["fix"])
        return [HubModel.model_validate(model) for model in answer["models"]]

    def _record(self, model: KnownModel, here: set[str]) -> KnownBaseModel:
        probe = model.stored.probe
        reasons = [reason for reason in (model.refusal, _untrainable(probe)) if reason]
        asked, share, left_out, notices = "", None, {}, []
        if probe:
            notices = described(probe)[1:]  # without its class
            asked = f"transformers {probe.transformers}, peft {probe.peft}"
            share = probe.targets.share
            left_out = {str(kind): part for kind, part in probe.targets.left_out.items()}
        return KnownBaseModel(
            repository=model.repository,
            parameters=model.parameters,
            context=model.context,
            licence=model.licence,
            template=model.template,
            gated=model.is_gated,
            weights=model.weights,
            good_for=model.good_for,
            refusal=model.refusal,
            fits=self._fits(model),
            here=model.repository.rpartition("/")[2].lower() in here,
            checked=False,
            note=UNCHECKED,
            download_bytes=model.download_bytes,
            trains=not reasons,
            chats=not model.refusal,
            reasons=reasons,
            notices=notices,
            learned_share=share,
            left_out=left_out,
            asked=asked,
            source=model.source,
            checked_on=model.checked,
        )

    def _fits(self, model: KnownModel) -> dict[str, bool | None]:
        """Empty where the stored probe is of other libraries: asking the installed ones about every entry takes minutes."""
        if not model.remember():
            return {}
        return self.fit.methods_that_fit(model.config)


def _untrainable(probe: Probe | None) -> str:
    if probe is None or probe.targets.accepted:
        return ""
    return f"It can't be trained: {probe.targets.reason}"
