"""The studio as one object: a service per noun. Page, HTTP and command line all call these; none of them imports torch or gradio."""

from __future__ import annotations

from dataclasses import dataclass

from studio.db import migrations
from studio.db.session import Database, database
from studio.services.adapters import AdapterService
from studio.services.bundles import BundleService
from studio.services.chat import ChatService
from studio.services.comparisons import ComparisonService
from studio.services.curation import CurationService
from studio.services.datasets import DatasetService
from studio.services.jobs import JobService
from studio.services.keys import KeyService
from studio.services.models import ModelService
from studio.services.system import SystemService
from studio.settings import Settings


@dataclass(frozen=True)
class Studio:
    """Every use case there is. Safe to share between threads."""

    settings: Settings
    db: Database
    datasets: DatasetService
    curation: CurationService
    models: ModelService
    jobs: JobService
    bundles: BundleService
    adapters: AdapterService
    chat: ChatService
    comparisons: ComparisonService
    keys: KeyService
    system: SystemService

    @classmethod
    def open(cls, settings: Settings, *, at_terminal: bool = False) -> Studio:
        """Make the folders, bring the database up to date, and build the services.

        `at_terminal`: the caller is the person whose machine this is, so models may be named by their folder.
        Raises StudioError when the folder can't be written or the database is newer than this program.
        """
        settings.make_folders()
        db = database(settings.db_url, settings.sqlite_journal)
        migrations.migrate(db)
        models = ModelService(settings, db, at_terminal=at_terminal)
        adapters = AdapterService(settings, db, models)
        datasets = DatasetService(settings, db, models)
        curation = CurationService(settings, db, datasets, models)
        jobs = JobService(settings, db, datasets, models)
        chat = ChatService(settings, db, models, adapters)
        comparisons = ComparisonService(settings, db, datasets, adapters)
        system = SystemService(settings, db, models, jobs)
        return cls(settings, db, datasets, curation, models, jobs, BundleService(jobs), adapters, chat, comparisons, KeyService(db), system)
