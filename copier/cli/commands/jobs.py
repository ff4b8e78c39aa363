"""``copier jobs``: the queue that the tab has too, for scripts."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copier.app.job_json import job_json, use_json, view_json
from copier.cli.bars import duration
from copier.cli.commands.run import add_run_options, requested
from copier.cli.parser import Commands
from copier.cli.session import Answer, Session
from copier.cli.text import size, table

if TYPE_CHECKING:
    from copier.app.jobs import Job, JobService, JobView

_NOBODY = "nobody works the queue: `copier jobs run` does, and so does the tab while it is open"


def register(commands: Commands) -> None:
    """Add the commands."""
    jobs = commands.group(
        "jobs",
        "queue runs, and see what became of them",
        """
        Runs in a queue that outlives the program: what is submitted here is seen in the tab, and the other
        way round. One process works the queue, one job at a time: the tab while it is open, or `copier jobs
        run`. A job that was cut off is `interrupted`; `retry` goes on with the stages that it had finished.
        """,
    )
    jobs.add(
        "list",
        "all jobs, the newest first",
        "Show every job with its state, what it is, and how long it took.",
        ("list", "list --json"),
        _list,
    )
    _with_id(
        jobs.add(
            "show",
            "one job: its stages, its log, and why it failed",
            "Show a job. JOB is its id, or its number.",
            ("show 3", "show 0003-a1b2 --json"),
            _show,
        )
    )
    add_run_options(
        jobs.add(
            "submit",
            "put a run at the end of the queue",
            """
            Check a run and put it at the end of the queue; the options are those of `copier run`. It is run
            by whoever works the queue.
            """,
            ('submit copier-quick-pocket --a-prompt "a red star on cyan background" --edit grayscale',),
            _submit,
            checkpoint=True,
        )
    )
    jobs.add(
        "run",
        "work the queue here until it is empty",
        "Run what is queued, one job after the other. Ctrl-C interrupts the job that runs.",
        ("run",),
        _run,
    )
    _with_id(
        jobs.add(
            "stop",
            "stop a job",
            "Stop a job, wherever it runs; one that waits is taken out of the queue. Finished stages stay.",
            ("stop 3",),
            _stop,
        )
    )
    retry = jobs.add(
        "retry",
        "run a job again, also with other settings",
        """
        Put a job that has ended at the end of the queue again, as a new one. Stages that it had finished are
        reused. --set changes numbers of its recipe: a job that ran out of memory says which help.
        """,
        ("retry 3", "retry 3 --set training.batch_size=1"),
        _retry,
    )
    _with_id(retry)
    retry.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change a number of the recipe; may be repeated",
    )
    remove = jobs.add(
        "remove",
        "forget a job",
        """
        Forget a job that has ended. Its LoRAs and its finished stages stay, unless they are named here too;
        --dry-run shows what each would give back.
        """,
        ("remove 3", "remove 3 --output --stages", "remove 3 --dry-run"),
        _remove,
    )
    _with_id(remove)
    remove.add_argument(
        "--output", action="store_true", help="also the files that it wrote, those that nobody changed"
    )
    remove.add_argument("--stages", action="store_true", help="also finished stages that only it used")
    remove.add_argument("--dry-run", action="store_true", help="delete nothing")


def _with_id(parser: Any) -> None:
    parser.add_argument("job", metavar="JOB", help="id or number of the job")


def _service(session: Session) -> JobService:
    from copier.app.jobs import JobService

    return JobService(session.settings)


def _list(arguments: argparse.Namespace, session: Session) -> Answer:
    service = _service(session)
    jobs, now = service.jobs(), time.time()
    rows = [
        (job.id, job.state.value, job.kind, job.title, _took(job), duration(max(0.0, now - job.created)))
        for job in jobs
    ]
    text = table(rows, ("job", "state", "kind", "title", "took", "age")) if rows else "no jobs"
    return Answer({"jobs": [job_json(job) for job in jobs], "runner": service.runner()}, text)


def _show(arguments: argparse.Namespace, session: Session) -> Answer:
    service = _service(session)
    view = service.view(arguments.job)
    return Answer(view_json(view), _view_text(view))


def _submit(arguments: argparse.Namespace, session: Session) -> Answer:
    request = requested(arguments, session)
    service = _service(session)
    job = service.submit(request, control=arguments.control, seeds=arguments.seeds, title=arguments.title)
    _note_runner(service, session)
    return Answer(job_json(job), f"{job.id} is queued: {job.title}")


def _run(arguments: argparse.Namespace, session: Session) -> Answer:
    session.kept = "the job that ran is interrupted, and `copier jobs retry` goes on with it"
    done = _service(session).work(observer=session.progress, cancel=session.stoppable())
    session.progress.finish()
    rows = [(job.id, job.state.value, job.title, _took(job)) for job in done]
    return Answer({"jobs": [job_json(job) for job in done]}, table(rows) if rows else "the queue is empty")


def _stop(arguments: argparse.Namespace, session: Session) -> Answer:
    job = _service(session).cancel(arguments.job)
    said = "will stop soon" if not job.state.ended else f"is {job.state.value}"
    return Answer(job_json(job), f"{job.id} {said}")


def _retry(arguments: argparse.Namespace, session: Session) -> Answer:
    service = _service(session)
    job = service.retry(arguments.job, changes=arguments.set)
    _note_runner(service, session)
    return Answer(job_json(job), f"{job.id} is queued: {job.title}, again")


def _remove(arguments: argparse.Namespace, session: Session) -> Answer:
    service = _service(session)
    if arguments.dry_run:
        use = service.disk_use(arguments.job)
        text = table(
            [
                ("its record", size(use.job)),
                ("its files (--output)", size(use.output)),
                ("stages that only it used (--stages)", size(use.stages)),
            ]
        )
        return Answer({"dry_run": True, **use_json(use)}, text)
    use = service.remove(arguments.job, output=arguments.output, stages=arguments.stages)
    return Answer(use_json(use), f"deleted {size(use.total)}")


def _note_runner(service: JobService, session: Session) -> None:
    if service.runner() == "nobody":
        session.note(_NOBODY)


def _view_text(view: JobView) -> str:
    job = view.job
    lines = [("job", job.id), ("title", job.title), ("state", job.state.value), ("took", _took(job))]
    if job.retry_of:
        lines.append(("again", job.retry_of))
    if job.failure is not None:
        lines.append(("failed", job.failure.message))
        lines += [("try", f"copier jobs retry {job.id} --set {one}") for one in job.failure.settings]
    if job.outcome and "result" in job.outcome:
        lines.append(("result", str(Path(job.outcome["result"]))))
    rows = [
        (
            stage.name,
            stage.state,
            f"{stage.step}/{stage.steps}" if stage.steps else "",
            "" if stage.loss is None else f"{stage.loss:.4f}",
            "" if stage.seconds is None else duration(stage.seconds),
            stage.reason,
        )
        for stage in view.stages
    ]
    stages = table(rows, ("stage", "state", "step", "loss", "took", "why")) if rows else ""
    return "\n\n".join(part for part in (table(lines), stages) if part)


def _took(job: Job) -> str:
    return "" if job.seconds is None else duration(job.seconds)
