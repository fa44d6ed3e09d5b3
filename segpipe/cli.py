"""The command line: one thin command per verb.

What a verb needs is imported inside its command, so that `segpipe --help` answers at once.
Exit status: 0 done, 1 failed (one line on stderr), 2 wrong usage, 3 a promise is broken (audit) or
OUTPUT is not as it was left (verify), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, NoReturn

import click
from click.core import ParameterSource

from segpipe import __version__
from segpipe.config import (
    BOTH_GENERATORS,
    ENGINE_SETTINGS,
    AdoptSettings,
    CalibrateSettings,
    CompactSettings,
    DoctorSettings,
    EvaluateSettings,
    ExportSettings,
    ImportSettings,
    InspectSettings,
    LabelSettings,
    PromoteSettings,
    PullSettings,
    PushSettings,
    QueueSettings,
    SplitSettings,
    TrainSettings,
    VerifySettings,
)
from segpipe.console import (
    ABANDONED,
    Invocation,
    LogFormat,
    ResumableError,
    complain,
    echo,
    fail,
    is_unread,
    json_text,
    log_to_stderr,
    quiet_warnings,
    resumable,
    show,
    show_result,
    stopped,
)
from segpipe.errors import PolicyError
from segpipe.exchange.exports.table import EXPORTS
from segpipe.exchange.imports.table import IMPORTS
from segpipe.kinds import described
from segpipe.options import TEXT, build, options_of
from segpipe.printable import printable
from segpipe.stopping import StoppedError, stop_on_signals
from segpipe.tables import columns, result_lines
from segpipe.torchrun import torchrun_place

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy
    from segpipe.models.labeler import Labeler
    from segpipe.reports.content import ReportFacts

logger = logging.getLogger(__name__)

FOUND = 3


def main() -> NoReturn:
    """Run the command that the process was started with, and exit."""
    status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # what could not be written has been told, or its reader has gone
            if stream is not None:
                stream.flush()
    # No finalising: Arrow's threads may still read ahead through our file system, in Python, and a finished
    # run then ended in "Fatal Python error: PyGILState_Release" and status 134.
    os._exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit status and has said on stderr what went wrong, if anything did."""
    invocation = Invocation()
    try:
        with quiet_warnings(), stop_on_signals(partial(complain, f"stopped ({ABANDONED})")):
            return cli.main(list(arguments), "segpipe", standalone_mode=False, obj=invocation) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return complain("stopped", 130)
    except StoppedError as stop:
        return complain("stopped", stop.status)
    except ResumableError as stop:
        return complain(stopped(stop.remedy), stop.status)
    except Exception as error:
        return fail(error, invocation)
    except SystemExit:  # how click ends on any broken pipe, a server's too
        return 0 if is_unread() else complain("a connection was broken: try again", 1)


def _set_debug(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        context.ensure_object(Invocation).debug = True


_debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show the traceback of a failure.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_model = click.option("--model", type=TEXT, required=True, help="Model bundle: a folder at any fsspec URL.")
_one_model = click.option(
    "--model",
    type=TEXT,
    help="Only this model's policies: its id, or its bundle or line at any URL; default: all under OUTPUT.",
)
_limit = click.option(
    "--limit", type=click.IntRange(min=1, max=2**31 - 1), help="Label at most this many images."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@_debug
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="SEGPIPE_LOG_FORMAT",
    help="What is logged on stderr: lines for people, or one JSON object each, with run_id and shard.",
)
@click.pass_context
def cli(context: click.Context, log_format: LogFormat) -> None:
    """Label image buckets with segmentation masks that carry a statistical promise."""
    context.obj.log_format = log_format
    # Of a training's processes the first one tells.
    follows = context.invoked_subcommand == "train" and torchrun_place().rank > 0
    log_to_stderr(log_format, logging.ERROR if follows else logging.INFO)


@cli.command()
@click.argument("data", type=TEXT)
@options_of(InspectSettings)
@_as_json
@_debug
def inspect(data: str, as_json: bool, **values: object) -> None:
    """Look at the labelled data set at DATA before anyone trains on it.

    Says what train, evaluate and calibrate would refuse or warn of, and more: what the masks hold, how small
    objects are, which images look alike, which promises so many images can carry. Reads every image once.
    """
    settings = build(InspectSettings, values)
    from segpipe.inspection.inspect import inspect_data
    from segpipe.reports.confidence import check_writable
    from segpipe.reports.inspection import inspection_lines, write_inspection

    if settings.report is not None:
        check_writable(settings.report)  # before the work, not after it
    inspected = inspect_data(data, settings.split)
    lines = inspection_lines(inspected.result)
    show(json_text(asdict(inspected.result)) if as_json else "\n".join(lines))
    if settings.report is not None:
        logger.info("report: %s", write_inspection(inspected, settings.report))


@cli.command()
@click.argument("data", type=TEXT)
@click.argument("target", type=TEXT)
@options_of(SplitSettings)
@_as_json
@_debug
def split(data: str, target: str, as_json: bool, **values: object) -> None:
    """Copy the labelled data set at DATA into train, val, calibration and test at TARGET, by whole groups.

    What belongs together, as the frames of a video, stays in one split. TARGET is an empty folder at any
    fsspec URL; groups.csv there says which image is of which group.
    """
    settings = build(SplitSettings, values)
    from segpipe.splitting import split_data

    show_result(asdict(split_data(data, target, settings)), as_json)


@cli.command()
@options_of(TrainSettings)
@_as_json
@_debug
def train(as_json: bool, **values: object) -> None:
    """Train a model on a labelled data set.

    Generator and discriminator go to --model, with the curves of the training.
    """
    source = click.get_current_context().get_parameter_source("architecture")
    if values["generator"] is not None and source is not ParameterSource.DEFAULT:
        raise click.UsageError(BOTH_GENERATORS)
    settings = build(TrainSettings, values)
    from segpipe.training.run import train

    with resumable("to go on, run the same command again with --resume"):
        result = train(settings)
    if torchrun_place().rank == 0:
        show_result(asdict(result), as_json)


@cli.command()
@click.argument("path", type=TEXT)
@options_of(AdoptSettings, *(name for name in AdoptSettings.model_fields if name != "path"))
@_as_json
@_debug
def adopt(path: str, as_json: bool, **values: object) -> None:
    """Make a model of a network that was trained elsewhere.

    PATH is a transformers folder that segments, or an .onnx file. The network stays as it is; a judge learns
    when its masks can be trusted, on images that it was not trained on. Everything after it goes as with a
    model that segpipe trained.
    """
    settings = build(AdoptSettings, {"path": path, **values})
    from segpipe.training.adopt import adopt

    show_result(asdict(adopt(settings)), as_json)


@cli.command()
@options_of(EvaluateSettings)
@_as_json
@_debug
def evaluate(as_json: bool, **values: object) -> None:
    """Measure masks and confidence on a split."""
    settings = build(EvaluateSettings, values)
    if settings.report is None:
        from segpipe.evaluation.measure import evaluate

        result = evaluate(
            settings.model,
            settings.data,
            settings.split,
            settings.device,
            settings.allow,
            settings.group_by,
        )
        show_result(asdict(result), as_json)
    else:
        _evaluate_and_report(settings, settings.report, as_json)


def _evaluate_and_report(settings: EvaluateSettings, report: str, as_json: bool) -> None:
    from segpipe.evaluation.measure import measure_checked, summarise
    from segpipe.models.labeler import load_without_policy
    from segpipe.reports.confidence import check_writable, write_report

    check_writable(report)  # before the work, not after it
    labeler = load_without_policy(settings.model, settings.device)
    policy, problem = _policy_to_show(settings.model, labeler)
    measurements = measure_checked(
        replace(labeler, policy=policy),
        settings.model,
        settings.data,
        settings.split,
        settings.allow,
        settings.group_by,
    )
    result = summarise(measurements)
    show_result(asdict(result), as_json)
    facts = _report_facts(settings, labeler.model_id, policy, problem)
    logger.info("report: %s", write_report(measurements, result, policy, facts, report))


def _policy_to_show(model: str, labeler: Labeler) -> tuple[Policy | None, str | None]:
    """The model's policy, or why there is none to show: a damaged one hinders no evaluation."""
    from segpipe.models.labeler import load_policy

    try:
        return load_policy(model, labeler.model_id, labeler.digest), None
    except PolicyError as error:
        logger.warning("the report leaves the policy aside: %s", error)
        return None, str(error)


def _report_facts(
    settings: EvaluateSettings, model_id: str, policy: Policy | None, problem: str | None
) -> ReportFacts:
    from segpipe.datasets import fingerprint, open_dataset
    from segpipe.reports.content import ReportFacts

    measured_on = None if policy is None else fingerprint(open_dataset(settings.data), settings.split)
    return ReportFacts(
        model=settings.model,
        model_id=model_id,
        data=settings.data,
        split=settings.split,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        calibration_split=policy is not None and policy.calibration_fingerprint == measured_on,
        policy_problem=problem,
    )


@cli.command()
@options_of(CalibrateSettings)
@_as_json
@_debug
def calibrate(as_json: bool, **values: object) -> None:
    """Certify what can be accepted.

    Finds the score above which masks can be accepted with a promise, and writes policy.json to the model.
    """
    settings = build(CalibrateSettings, values)
    from segpipe.confidence.policy import to_json
    from segpipe.evaluation.calibration import calibrate
    from segpipe.reports.lines import policy_lines

    policy = calibrate(settings)
    show(to_json(policy) if as_json else "\n".join(columns(policy_lines(policy))))


@cli.command()
@click.argument("source", type=TEXT)
@click.argument("output", type=TEXT)
@_model
@_limit
@options_of(LabelSettings, "inventory", "price_per_hour", "retry", *ENGINE_SETTINGS)
@_as_json
@_debug
def plan(source: str, output: str, model: str, limit: int | None, as_json: bool, **values: object) -> None:
    """Say what `label` would do, how long it would take and what it would cost; write nothing.

    The time is estimated from the rate of the newest run under OUTPUT; how many tiles an image is, from the
    sizes of images there.
    """
    settings = build(LabelSettings, values)
    from segpipe import storage
    from segpipe.labeling.engines.table import engine_of
    from segpipe.labeling.estimate import estimate, workers_of
    from segpipe.labeling.plan import make_plan, new_run_id, summarise_plan
    from segpipe.manifests.policies import nearest_policy
    from segpipe.models.labeler import load_model
    from segpipe.models.served import load_for_workers
    from segpipe.reports.summary import engine_line, estimate_line, passes_line, policy_line

    engine_of(settings)
    labeler = load_for_workers(model) if settings.has_workers else load_model(model, "cpu")
    now = datetime.now(UTC)
    policy = nearest_policy(storage.normalise(output), labeler.policy)
    policy_id = policy.policy_id if policy else None
    planned = make_plan(source, output, labeler.model_id, policy_id, settings, new_run_id(now), now, limit)
    summary = summarise_plan(planned)
    workers = workers_of(settings.engine, settings.workers)
    expected = estimate(summary.output, labeler.model_id, summary.images, settings.price_per_hour, workers)
    passes = labeler.passes(expected.shapes)
    if as_json:
        told = {name: value for name, value in asdict(expected).items() if name != "shapes"}
        engine = settings.model_dump(include=set(ENGINE_SETTINGS))
        show(json_text(asdict(summary) | {"engine": engine, "estimate": told, "passes": asdict(passes)}))
    else:
        grown = policy_line(policy)
        lines = columns(
            [
                *([("policy", grown)] if grown else []),
                ("engine", engine_line(settings)),
                ("passes", passes_line(passes)),
                ("estimate", estimate_line(expected)),
            ]
        )
        show("\n".join([*result_lines(asdict(summary)), *lines]))


@cli.command()
@click.argument("source", type=TEXT)
@click.argument("output", type=TEXT)
@_model
@_limit
@click.option("--run-id", type=TEXT, help="Name of the run; the name of a stopped run resumes it.")
@options_of(LabelSettings)
@_as_json
@_debug
def label(
    source: str,
    output: str,
    model: str,
    limit: int | None,
    run_id: str | None,
    as_json: bool,
    **values: object,
) -> None:
    """Label what is new under SOURCE.

    Masks, manifest and run record go to OUTPUT; both are folders at any fsspec URL. Exit status 1, with the
    result printed, when too large a share of the images failed.
    """
    settings = build(LabelSettings, values)
    from segpipe.labeling.engines.work import ServedModel
    from segpipe.labeling.giving_up import require_few_failures
    from segpipe.labeling.plan import new_run_id
    from segpipe.labeling.run import label_source
    from segpipe.manifests.policies import policy_of_run
    from segpipe.models.promotion_line import resolve
    from segpipe.models.served import load_for_run, load_planned
    from segpipe.reports.lines import label_report

    run_id = new_run_id(datetime.now(UTC)) if run_id is None else run_id
    with resumable(f"to go on, run the same command again with --run-id {run_id}"):
        served = ServedModel(resolve(model), load_planned)
        labeler = load_for_run(served.url, settings)
        summary = label_source(source, output, labeler, settings, run_id, limit, served=served)
    if as_json:
        show(json_text(asdict(summary)))
    else:
        policy = policy_of_run(summary.output, labeler.policy, summary.policy_id)
        show(label_report(summary, policy, model, settings.price_per_hour))
    require_few_failures(summary, settings.max_failure_rate)


# SQL may begin with a comment, "-- like this", which is no option.
@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("output", type=TEXT)
@click.argument("sql", type=TEXT)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="How rows are printed: aligned for people, a list of JSON records, or CSV with a header.",
)
@_debug
def query(output: str, sql: str, layout: Literal["table", "json", "csv"]) -> None:
    """Ask the manifest under OUTPUT in SQL.

    Views: labels (every row), latest (newest per image), accepted, review_queue, reviews, reviewed, failures,
    runs.

    \b
    segpipe query OUTPUT "SELECT reason, count(*) FROM latest GROUP BY reason"
    """
    from segpipe.manifests import query

    text = query.format_table(query.query(output, sql), layout)
    if layout == "csv" and not (sys.stdout and sys.stdout.isatty()):
        echo(text)  # for programs, which want the names as they are
    else:
        show(text)


@cli.command()
@click.argument("output", type=TEXT)
@options_of(CompactSettings)
@_as_json
@_debug
def compact(output: str, as_json: bool, **values: object) -> None:
    """Copy many small manifest parts under OUTPUT into few large files, for faster plans and queries.

    Nothing under OUTPUT/manifests changes; safe at any moment, also while runs label or others compact.
    """
    settings = build(CompactSettings, values)
    from segpipe.manifests.compaction import compact as compact_manifest

    show_result(asdict(compact_manifest(output, settings)), as_json)


@cli.command()
@click.argument("output", type=TEXT)
@options_of(VerifySettings)
@_as_json
@_debug
def verify(output: str, as_json: bool, **values: object) -> int:
    """Check that OUTPUT is as labelling has left it.

    Each row's decision against its reason, score and policy, masks against their digests, the parts of each
    run against their chain, compacted copies against the parts. Changes nothing. Exit status 3 on a finding.
    """
    settings = build(VerifySettings, values)
    from segpipe.manifests import verification

    result = verification.verify(output, settings)
    facts = {name: value for name, value in asdict(result).items() if name != "examples"}
    show_result(asdict(result) if as_json else facts, as_json)
    if not result.findings:
        return 0
    if not as_json:
        show("\n".join(["", *map(printable, verification.finding_lines(result))]))
    return complain(f"{sum(result.findings.values())} findings: OUTPUT is not as it was left", FOUND)


@cli.command()
@options_of(PromoteSettings)
@_as_json
@_debug
def promote(as_json: bool, **values: object) -> None:
    """Let a new model replace the one in use, if it is better.

    Compares both image by image on a split that neither has learnt from, of 30 images or more. A line's
    first model is taken as it is. Give the line's folder as --model to label, and in the sources file.
    """
    settings = build(PromoteSettings, values)
    from segpipe.evaluation.promotion import promote

    show_result(asdict(promote(settings)), as_json)


@cli.command()
@click.argument("line", type=TEXT)
@_as_json
@_debug
def rollback(line: str, as_json: bool) -> None:
    """Let a LINE of models stand for the model before its present one again; repeated: one further back."""
    from segpipe.evaluation.promotion import go_back

    show_result(asdict(go_back(line)), as_json)


@cli.command()
@options_of(DoctorSettings)
@_as_json
@_debug
def doctor(as_json: bool, **values: object) -> None:
    """Check that a run can work here: a line per check, with the remedy; exit 1 when one fails.

    Writes one small object below --output and removes it again.
    """
    settings = build(DoctorSettings, values)
    from segpipe.doctor.examination import examine

    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            show(finding.line())
    if as_json:
        show(json_text([asdict(finding) for finding in findings]))
    if any(finding.status == "FAIL" for finding in findings):
        click.get_current_context().exit(1)


@cli.command()
@click.argument("output", type=TEXT)
@click.option("--run", "run_id", type=TEXT, help="Id of the run; the newest if not given.")
@click.option(
    "--model", type=TEXT, help="Model bundle, or line of models, whose promise and threshold are to be shown."
)
@click.option(
    "--to", type=TEXT, help="Where the page goes, at any fsspec URL.  [default: OUTPUT/runs/RUN/report.html]"
)
@_debug
def report(output: str, run_id: str | None, model: str | None, to: str | None) -> None:
    """Write one self-contained page about a run under OUTPUT, to be looked at without a server.

    What was decided and why, scores, drift, the slowest leg, and galleries of accepted masks, of those to
    review and of what failed. A file that holds images: share it as you would share them.
    """
    from segpipe.models.labeler import load_model
    from segpipe.reports.run import write_run_report

    policy = load_model(model, "cpu").policy if model else None
    show(write_run_report(output, run_id, policy, to))


@cli.command()
@click.argument("output", type=TEXT)
@click.argument("target", type=TEXT)
@click.option(
    "--format",
    "layout",
    required=True,
    type=click.Choice(list(EXPORTS)),
    help=f"Format of the data set. {described(EXPORTS)}.",
)
@options_of(ExportSettings)
@_as_json
@_debug
def export(output: str, target: str, layout: str, as_json: bool, **values: object) -> None:
    """Write the accepted masks under OUTPUT, corrected ones included, to TARGET as a data set.

    TARGET is an empty folder at any fsspec URL; images.csv there says which file is which image.
    """
    settings = build(ExportSettings, values)
    from segpipe.exchange.export import export

    show_result(asdict(export(output, target, layout, settings.split)), as_json)


@cli.command("import")
@click.argument("source", type=TEXT)
@click.argument("target", type=TEXT)
@click.option(
    "--format",
    "layout",
    required=True,
    type=click.Choice(list(IMPORTS)),
    help=f"Layout of SOURCE. {described(IMPORTS)}.",
)
@options_of(ImportSettings)
@_as_json
@_debug
def import_(source: str, target: str, layout: str, as_json: bool, **values: object) -> None:
    """Turn a public data set at SOURCE into the one that train takes, at TARGET.

    What cannot be used is left out, counted and named in TARGET's left_out.csv.
    """
    settings = build(ImportSettings, values)
    from segpipe.exchange.importing import import_dataset

    show_result(asdict(import_dataset(source, target, layout, settings)), as_json)


@cli.command()
@click.argument("output", type=TEXT)
@_one_model
@_as_json
@_debug
def audit(output: str, model: str | None, as_json: bool) -> int:
    """Check promises against audits.

    Compares what people said about the accepted masks drawn for the audit with what their policy promised. A
    policy whose promise is shown broken is suspended: its masks all go to review until segpipe calibrate
    makes another. Exit status 3 while the policy in use is broken, else 1 where one cannot be read, after the
    others were audited, else 0.
    """
    from segpipe.reports.lines import audit_report
    from segpipe.review.audit import audit_output, suspend_broken
    from segpipe.review.audit_words import unjudged_in_words

    audits = audit_output(output, None if model is None else _model_id(model))
    suspended = suspend_broken(output, audits.found)
    if as_json:
        show(json_text([asdict(found) for found in audits.found]))
    elif audits.found or not audits.unjudged:
        show(audit_report(audits.found))
    broken = [
        found for found in audits.found if found.in_use and (found.suspended or found.state == "broken")
    ]
    for unjudged in audits.unjudged:
        complain(unjudged_in_words(unjudged), 1)
    for found in {(one.policy_id, one.group): one for one in (*suspended, *broken)}.values():
        of_group = f" about group {printable(found.group)}" if found.group else ""
        complain(f"the promise of policy {found.policy_id}{of_group} is broken: it is suspended", FOUND)
    if suspended or broken or any(one.in_use for one in audits.unjudged):
        return FOUND
    return 1 if audits.unjudged else 0


@cli.command()
@click.argument("output", type=TEXT)
@_one_model
@_as_json
@_debug
def recalibrate(output: str, model: str | None, as_json: bool) -> int:
    """Let a certificate grow with the reviews under OUTPUT.

    Counts what people said about the masks that were drawn blind to the score and, where they prove a looser
    threshold, writes the next policy to OUTPUT/policies; the next run labels with it. For policies of segpipe
    calibrate --grow. Exit status 1 when one is suspended or cannot be read, after the others have grown.
    """
    from segpipe.reports.lines import recalibration_report
    from segpipe.review.recalibration import recalibrate

    told = recalibrate(output, None if model is None else _model_id(model))
    if as_json:
        show(json_text([asdict(one) for one in told.found]))
    elif told.found:
        show(recalibration_report(told.found))
    for line in (stopped := [*told.suspended, *told.failed]):
        complain(line, 1)
    return 1 if stopped else 0


def _model_id(model: str) -> str:
    """The id that is given, or that of the bundle or line at this URL."""
    if re.fullmatch(r"[0-9a-f]{12}", model):
        return model
    from segpipe.models.bundle import read_card
    from segpipe.models.promotion_line import resolve

    return read_card(resolve(model)).model_id


@cli.group()
def review() -> None:
    """What people are to look at."""


_label_studio = click.option(
    "--label-studio",
    "server",
    type=TEXT,
    required=True,
    help="Address of Label Studio, for example http://127.0.0.1:8080.",
)


def _label_studio_token() -> str:
    return os.environ.get("LABEL_STUDIO_API_KEY", "")


@review.command("push")
@click.argument("output", type=TEXT)
@_label_studio
@options_of(PushSettings)
@options_of(QueueSettings)
@_as_json
@_debug
def review_push(output: str, server: str, as_json: bool, **values: object) -> None:
    """Send the masks under OUTPUT that people should look at to Label Studio, as drafts.

    The token comes from LABEL_STUDIO_API_KEY. What is in the project already is not sent again.
    """
    settings = build(PushSettings, {name: values[name] for name in PushSettings.model_fields})
    chosen = build(QueueSettings, {name: values[name] for name in QueueSettings.model_fields})
    from segpipe.review.label_studio import open_label_studio
    from segpipe.review.push import push

    with open_label_studio(server, _label_studio_token()) as label_studio:
        show_result(asdict(push(output, settings, chosen, label_studio)), as_json)


@review.command("pull")
@click.argument("output", type=TEXT)
@_label_studio
@options_of(PullSettings)
@_as_json
@_debug
def review_pull(output: str, server: str, as_json: bool, **values: object) -> None:
    """Bring people's decisions from Label Studio into the reviews of OUTPUT.

    The token comes from LABEL_STUDIO_API_KEY. What was brought before is not brought again; a decision that
    was changed since replaces the earlier one.
    """
    settings = build(PullSettings, values)
    from segpipe.review.label_studio import open_label_studio
    from segpipe.review.pull import pull

    with open_label_studio(server, _label_studio_token()) as label_studio:
        show_result(asdict(pull(output, settings.project, label_studio)), as_json)


@review.command("list")
@click.argument("output", type=TEXT)
@options_of(QueueSettings)
@_as_json
@_debug
def review_list(output: str, as_json: bool, **values: object) -> None:
    """Say which masks under OUTPUT a person should look at next.

    Doubtful masks and, hidden among them, the audits of accepted ones, oldest first; as many as the budget
    allows. --json says which are audits: keep that from the reviewers.
    """
    settings = build(QueueSettings, values)
    from segpipe.review.queue import make_queue

    queue = make_queue(output, settings)
    if as_json:
        show(json_text(asdict(queue)))
        return
    rows = [
        (item.item_id, f"{item.confidence or 0:.3f}", item.image_uri, item.mask_uri) for item in queue.items
    ]
    show("\n".join(columns([("item", "confidence", "image", "mask"), *rows])))
    show(f"\n{len(rows)} of {queue.waiting} masks, some {queue.minutes:.0f} minutes")
