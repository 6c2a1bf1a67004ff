"""Whether the loggers that a job reports to are installed here, without importing them."""

from __future__ import annotations

import importlib.util

from jobs.config import JobConfig
from studio.errors import ConfigError

# as transformers calls them -> the packages of which one has to be there
LOGGERS = {
    "azure_ml": ("azureml",), "clearml": ("clearml",), "codecarbon": ("codecarbon",), "comet_ml": ("comet_ml",), "dagshub": ("dagshub",),
    "dvclive": ("dvclive",), "flyte": ("flytekit",), "mlflow": ("mlflow",), "neptune": ("neptune",), "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",),
}  # fmt: skip
NONE, ALL = "none", "all"  # `all`: those that are installed


def check(config: JobConfig) -> None:
    """Raises ConfigError for a logger that transformers does not know, or that is not installed."""
    wanted = config.report_to
    if isinstance(wanted, str):
        wanted = [wanted]
    for name in wanted:
        if name in (NONE, ALL):
            continue
        if name not in LOGGERS:
            raise ConfigError(
                f"report_to={name!r}: there is no such logger.",
                f"Choose none, all, or of {', '.join(LOGGERS)}.",
            )
        if not any(_is_installed(package) for package in LOGGERS[name]):
            fix = f"`pip install {LOGGERS[name][0]}` into the studio's environment, or leave report_to at none."
            raise ConfigError(f"report_to={name}: {name} is not installed here.", fix)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
