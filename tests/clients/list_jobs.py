"""List the jobs of the studio at the given URL with the generated client, which lies in the working folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from studio_client import Client
from studio_client.api.default import list_jobs_api_jobs_get as list_jobs
from studio_client.api.default import show_job_api_jobs_job_get as show_job

client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
jobs = list_jobs.sync(client=client)
shown = [show_job.sync(job.id, client=client) for job in jobs]
assert [job.to_dict()["config"]["max_steps"] for job in shown] == [1 for _ in jobs]
print(json.dumps([[job.id, job.name, job.status, job.progress.step] for job in jobs]))
