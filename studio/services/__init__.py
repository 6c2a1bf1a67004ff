"""The studio as one object: a service per noun. Page, HTTP and command line all call these; none of them imports torch or gradio."""

from __future__ import annotations

from dataclasses import dataclass

from studio.catalogue import torch_view
from studio.catalogue.probes import keep_in
from studio.db import migrations
from studio.db.session import Database, database
from studio.services.adapters import AdapterService
from studio.services.bundles import BundleService
from studio.services.chat import ChatService
from studio.services.comparisons import ComparisonService
from studio.services.compression import CompressionService
from studio.services.curation import CurationService
from studio.services.datasets import DatasetService
from studio.services.exports import ExportService
from studio.services.fit import FitService
from studio.services.harvest import HarvestService
from studio.services.jobs import JobService
from studio.services.judging import JudgingService
from studio.services.keys import KeyService
from studio.services.known import KnownService
from studio.services.merging import MergeService
from studio.services.models import ModelService
from studio.services.preferences import PreferenceService
from studio.services.ratings import RatingService
from studio.services.reports import ReportService
from studio.services.restoring import recover
from studio.services.sessions import SessionService
from studio.services.storage import StorageService
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
    harvest: HarvestService
    comparisons: ComparisonService
    compression: CompressionService
    keys: KeyService
    sessions: SessionService
    system: SystemService
    storage: StorageService
    exports: ExportService
    merging: MergeService
    judging: JudgingService
    ratings: RatingService
    preferences: PreferenceService
    reports: ReportService
    fit: FitService
    known: KnownService

    @classmethod
    def open(cls, settings: Settings, *, at_terminal: bool = False) -> Studio:
        """Make the folders, bring the database up to date, and build the services.

        `at_terminal`: the caller is the person whose machine this is, so models may be named by their folder.
        Raises StudioError when the folder can't be written or the database is newer than this program.
        """
        recover(settings)
        settings.make_folders()
        keep_in(settings.cache)
        torch_view.keep_in(settings.cache)
        db = database(settings.db_url, settings.sqlite_journal, settings.home)
        migrations.migrate(db)
        models = ModelService(settings, db, at_terminal=at_terminal)
        adapters = AdapterService(settings, db, models)
        datasets = DatasetService(settings, db, models)
        curation = CurationService(settings, db, datasets, models)
        jobs = JobService(settings, db, datasets, models)
        chat = ChatService(settings, db, models, adapters)
        comparisons = ComparisonService(settings, db, datasets, adapters)
        system = SystemService(settings, db, models, jobs)
        bundles, storage = BundleService(jobs), StorageService(settings, db)
        access = (KeyService(settings, db), SessionService(settings, db))
        exports, merging = ExportService(settings, db, adapters), MergeService(settings, db, adapters)
        judging, ratings = JudgingService(settings, db, comparisons, adapters), RatingService(settings, db, comparisons)
        compression = CompressionService(settings, db, models, datasets, adapters, judging)
        preferences = PreferenceService(settings, db, datasets, comparisons)
        deciding = (judging, ratings, preferences, ReportService(settings, db))
        talking = (adapters, chat, HarvestService(chat, datasets), comparisons, compression, *access, system)
        fit = FitService(settings, db, models)
        known = KnownService(settings, models, fit)
        return cls(settings, db, datasets, curation, models, jobs, bundles, *talking, storage, exports, merging, *deciding, fit, known)
