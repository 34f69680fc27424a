"""The command line: thin, one function a command; what they do is elsewhere.

Heavy modules are imported inside the commands, so that `--help` is instant.
"""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from fewscan.harness.minutes import MinuteLines
from fewscan.harness.options import names, patterns, regions
from fewscan.slurm.session import Session
from fewscan.storage.conventions import registry
from fewscan.storage.conventions.brats import KEYS
from fewscan.storage.errors import (
    DiskFullError,
    FewscanError,
    disk_full_explained,
    not_writable_explained,
)
from fewscan.storage.system.forgiving import forgive_output

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


class Commands(click.Group):
    """Shows what a person can fix without a traceback, and exits with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with not_writable_explained(Path.cwd()), disk_full_explained(Path.cwd()):
                return super().invoke(ctx)
        except FewscanError as error:
            click.echo(f"error: {error}", err=True)
            passes = isinstance(error, DiskFullError)
            to_head = Session.TRY_AGAIN if passes else Session.REFUSED
            ctx.exit(to_head if Session.here().is_on_cluster else 1)
        except OSError as error:  # a path that no file system takes, a disk that has gone
            logging.getLogger(__name__).debug("the command's error", exc_info=error)
            click.echo(
                f"error: the system refuses: {error.strerror}\n  where: {error.filename}\n"
                "  remedy: check the path and its disk; FEWSCAN_LOG=DEBUG shows more",
                err=True,
            )
            ctx.exit(1)


PATH = click.Path(path_type=Path)
study_argument = click.argument("study", type=PATH)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help='Override a value of the study file, e.g. --set "finetune.seeds=[0,1]". Repeatable.',
)
only_option = click.option(
    "--only",
    multiple=True,
    metavar="WHAT",
    help="A part of the study: an arm by its name, labels=1,4, seeds=0 or targets=binary, and what "
    "it starts from. Repeatable: names and values add up, kinds narrow down.",
)
runs_option = click.option(
    "--runs", is_flag=True, help="A line for each run instead: for grep, sort and wc."
)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(package_name="fewscan")
def main() -> None:
    """How few labelled scans are enough, and does anomaly-detection pre-training lower the number?

    Scans → slices → pre-train → fine-tune → score → figure. Every command that works long may be
    killed and given again: it goes on.
    """
    if Session.here().is_on_cluster:
        forgive_output()
    logging.basicConfig(level=os.environ.get("FEWSCAN_LOG", "WARNING"))


def command(*examples: str, **how: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A command of `main` whose help ends with examples."""
    lines = "\n".join(f"  {line}" for line in examples)
    return main.command(epilog=f"\b\nExample:\n{lines}", **how)


@command("fewscan phantom demo/scans --subjects 40")
@click.argument("out", type=PATH)
@click.option("--subjects", type=click.IntRange(1), required=True, help="How many scans.")
@click.option("--seed", type=int, default=0, help="Same seed, same bytes.")
@click.option("--workers", type=click.IntRange(1), help="Processes. Default: the CPU cores.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["brats", "nnunet"]),
    default="brats",
    help="nnunet: a raw data set of thick coronal slices, 2 channels, 2 classes.",
)
def phantom(out: Path, subjects: int, seed: int, workers: int | None, form: Any) -> None:
    """Write synthetic scans into OUT, to try everything without data."""
    from fewscan.storage.phantom.write import write_phantoms

    with _bar("phantoms") as step:
        write_phantoms(out, subjects, seed, workers, lambda done: step(done, subjects), form)
    console.print(f"{subjects} scans in {out}")


@command(
    "fewscan prepare BraTS2021_Training_Data brats2021.zarr",
    "fewscan prepare Task03_Liver liver.zarr --lesion cancer --unlabelled",
    help=f"""Turn NIfTI scans into a Zarr store of slices.

    SCANS is {registry.LAYOUTS}. docs/data.md has an example of each.

    A scan that cannot be used is listed with its reason and does not stop the others; fix it and
    give the command again. Exits with 1 if there is such a scan.
    """,
)
@click.argument("scans", type=PATH)
@click.argument("store", type=PATH)
@click.option("--size", type=click.IntRange(8), default=128, help="Pixels.")
@click.option(
    "--axis",
    type=click.Choice(["0", "1", "2", "sagittal", "coronal", "axial"]),
    help="Through the slices: an axis of the array, or a plane of the patient. Default: "
    f"{registry.AXES}, else the one with the largest spacing.",
)
@click.option(
    "--normalisation",
    type=click.Choice(["quantile", "percentiles", "window", "labelled-percentiles"]),
    help="quantile: divide by the 0.99 quantile of voxels above 0, for skull-stripped images "
    f"(default in {registry.normalised_by('quantile')}); percentiles: 0.5 to 99.5 of the "
    "foreground become 0 to 1, clipped; window: the values of --window do, for CT; "
    "labelled-percentiles: those of the labelled voxels of the training scans do, as nnU-Net has "
    "it for CT.",
)
@click.option(
    "--window",
    "windows",
    type=(float, float),
    multiple=True,
    metavar="LOW HIGH",
    help="For all channels, or repeated for each: the values that become 0, which is background, "
    "and 1; for soft tissue in CT -160 240.",
)
@click.option(
    "--split",
    type=PATH,
    help="YAML or JSON with the lists train, validation and test. Default: the published rule, "
    "with at least 5 patients in validation and 5 in the test.",
)
@click.option(
    "--validation",
    type=click.IntRange(min=1),
    metavar="N",
    help="Patients in validation, and in the test, at least; by default 5. For small data sets: "
    "there must be 5 times as many.",
)
@click.option(
    "--unlabelled",
    is_flag=True,
    help="Take in scans without a segmentation as well: pre-training may use them.",
)
@click.option(
    "--channels",
    metavar="NAME,…",
    callback=names,
    help="Some of the channels, in this order, such as t1c,t2f. Default: all.",
)
@click.option(
    "--labels",
    default="",
    show_default=False,
    metavar="EDITION or VALUE=CLASS,…",
    help="What the values in label files mean, where the data set does not say it: "
    f"{', '.join(KEYS)}, or such as 1=tumour,2=cyst,255=ignore.",
)
@click.option(
    "--lesion",
    metavar="CLASS,…",
    callback=names,
    help="The classes that are lesions; the others are organs, which healthy slices may show. "
    "Default: what the data set says, else all.",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="NAME=CLASS,…",
    callback=regions,
    help="Classes that are scored together as well, such as core=necrosis,enhancing. Repeatable.",
)
@click.option(
    "--healthy",
    type=PATH,
    help="A file of the ids of scans that are known to have no lesion, one a line.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes. Default: the CPU cores.")
def prepare(
    scans: Path,
    store: Path,
    size: int,
    axis: str | None,
    normalisation: Any,
    windows: tuple[tuple[float, float], ...],
    split: Path | None,
    validation: int | None,
    unlabelled: bool,
    channels: tuple[str, ...],
    labels: str,
    lesion: tuple[str, ...],
    regions: tuple[tuple[str, tuple[str, ...]], ...],
    healthy: Path | None,
    workers: int | None,
) -> None:
    from fewscan.storage.catalog import Selection
    from fewscan.storage.prepare import prepare as prepare_store

    through: Any = int(axis) if axis and axis.isdecimal() else axis
    with _bar("scans") as step:
        report = prepare_store(
            scans,
            store,
            size,
            workers,
            step,
            through,
            normalisation,
            split,
            Selection(unlabelled, channels, labels, lesion, regions),
            healthy,
            windows,
            validation,
        )
    of = f" of {report.patients} patients" if report.patients < report.subjects else ""
    console.print(f"{report.subjects} subjects{of} in {store}, fingerprint {report.fingerprint}")
    for line in report.account:
        click.echo(line, err=True)
    for subject, reason in report.skipped:
        click.echo(f"skipped {subject}: {reason}", err=True)
    if report.left_out:
        click.echo(f"in no part of the split: {', '.join(report.left_out)}", err=True)
    sys.exit(1 if report.skipped else 0)


@command(
    "fewscan table UPENN-GBM scans.csv --channel flair='*_FLAIR.nii.gz' "
    "--channel t1c='*_T1GD.nii.gz' --label '*_segm.nii.gz' --labels 1=core,2=oedema,4=enhancing",
)
@click.argument("folder", type=PATH)
@click.argument("out", type=PATH, default="scans.csv")
@click.option(
    "--channel",
    "channels",
    metavar="NAME=PATTERN",
    multiple=True,
    required=True,
    callback=patterns,
    help="Which files are this channel: a pattern of their names, or of their paths in FOLDER if "
    "there is a / in it. Repeatable.",
)
@click.option(
    "--label",
    default="",
    show_default=False,
    metavar="PATTERN",
    help="Which files are segmentations.",
)
@click.option(
    "--id",
    "id_pattern",
    default="",
    show_default=False,
    metavar="REGEX",
    help="What a scan's id looks like in a file's path. Default: what * stands for in its name, "
    "else its folder.",
)
@click.option(
    "--patient",
    default="",
    show_default=False,
    metavar="REGEX",
    help="Likewise the patient's id, where one has several scans. Default: as in BIDS and BraTS.",
)
@click.option(
    "--labels",
    default="",
    show_default=False,
    metavar="VALUE=CLASS,…",
    help="What the label values mean.",
)
@click.option("--lesion", metavar="CLASS,…", callback=names, help="The classes that are lesions.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is there.")
def table(
    folder: Path,
    out: Path,
    channels: dict[str, str],
    label: str,
    id_pattern: str,
    patient: str,
    labels: str,
    lesion: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Write a table of the scans in FOLDER, of any naming, for `fewscan prepare OUT STORE`.

    Look through it, and change it as you like: a row a scan. Exits with 1 if files do not make
    whole scans; they are named.
    """
    from fewscan.storage.table_of_files import write_table

    found = write_table(
        folder, out, channels, label, id_pattern, patient, labels, lesion, overwrite
    )
    console.print(f"{found.scans} scans, {found.labelled} with a label, in {out}", soft_wrap=True)
    for scan, missing in found.incomplete.items():
        click.echo(f"{scan}: no file for {missing}", err=True)
    for path in found.unmatched:
        click.echo(f"a label of no scan: {path}", err=True)
    for path in found.unreadable:
        click.echo(f"a folder that may not be read: {path}", err=True)
    if found.not_matched:
        click.echo(f"{found.not_matched} images that no pattern means", err=True)
    sys.exit(1 if found.incomplete or found.unmatched or found.unreadable else 0)


@command("fewscan check brats2021.zarr")
@click.argument("store", type=PATH)
def check(store: Path) -> None:
    """Verify every checksum of STORE and say what is in it."""
    from fewscan.storage.check import check as check_store

    with _bar("subjects") as step:
        report = check_store(store, step)
    console.print(report.render(), soft_wrap=True)


@command(
    "fewscan init brats2021.zarr",
    "fewscan init brats2021.zarr studies/mine.yaml --from paper",
)
@click.argument("store", type=PATH)
@click.argument("out", type=PATH, required=False)
@click.option(
    "--from",
    "name",
    metavar="NAME",
    help="Copy a study file that comes with fewscan, such as paper, and set its store and folder; "
    "an unknown name lists them.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What the study is to run on, which its size depends on. Default: what is found here.",
)
def init(store: Path, out: Path | None, name: str | None, device: Any) -> None:
    """Write a commented study file that fits STORE; an existing file is never replaced.

    OUT is by default STORE's name, or that of --from, with the ending .yaml, in this folder.
    `fewscan keys` explains what may stand in it.
    """
    from fewscan.harness.first_study import write_copy, write_first_study

    out = out or Path(f"{name or store.stem}.yaml")
    if name:
        if misfit := write_copy(name, store, out):
            click.echo(f"note: on this store it cannot run as it stands: {misfit}", err=True)
    else:
        import torch

        write_first_study(store, out, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    file = shlex.quote(str(out))
    console.print(f"{out} is written; look through it, then", soft_wrap=True)
    console.print(f"    fewscan plan {file}     what it costs; runs nothing", soft_wrap=True)
    console.print(f"    fewscan sweep {file}    run it, or go on with it", soft_wrap=True)


@command("fewscan keys", "fewscan keys finetune.training", "fewscan keys mae")
@click.argument("key", required=False)
def keys(key: str | None) -> None:
    """Explain the keys of a study file: what each takes, its default, what it means.

    KEY is a block or a key, by its path or the end of it, or the kind of a scheme. Default: all.
    """
    from fewscan.harness.study_keys import explained, reference

    click.echo(explained(key) if key else reference(), nl=bool(key))


@command("fewscan import-checkpoint dae.pt my.yaml --as dae", name="import-checkpoint")
@click.argument("file", type=PATH)
@study_argument
@click.option("--as", "name", required=True, help="The name it gets in finetune.inits.")
@set_option
def import_checkpoint(file: Path, study: Path, name: str, overrides: tuple[str, ...]) -> None:
    """Take a trained network, to fine-tune from it.

    FILE is a checkpoint of the public DenoisingAE code, or the folder of a finished training of
    another study of yours (STUDY/runs/ID).
    """
    from fewscan.harness.imports import import_published, import_run
    from fewscan.harness.study_file import load_study

    take = import_run if file.is_dir() else import_published
    run = take(file, load_study(study, overrides), name)
    console.print(f"{name} is run {run}; add {name!r} to finetune.inits to start from it")


@command(
    "fewscan plan experiments/paper.yaml --set store=brats2021.zarr",
    'fewscan plan mine.yaml --pilot small.yaml --set "finetune.seeds=[0,1,2,3,4]"',
)
@study_argument
@set_option
@only_option
@runs_option
@click.option(
    "--pilot",
    type=PATH,
    help="A study with finished runs, from which the power of this one is estimated. Default: what "
    "the study file states (power), else its own finished runs.",
)
def plan(
    study: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    runs: bool,
    pilot: Path | None,
) -> None:
    """Say which runs there are, what is done, what it costs and what it would find. Runs nothing.

    Many runs are grouped; a few, or all with --runs, are listed with their parents. What it would
    find is the smallest gain, in the area under the label-efficiency curve, with 80 % power.
    """
    from fewscan.harness.first_pace import first_pace
    from fewscan.harness.listing import render_plan, run_lines
    from fewscan.harness.loading import load_plan
    from fewscan.harness.only import only as part_of
    from fewscan.harness.status import read_status

    loaded = part_of(load_plan(study, overrides), only)
    if runs:
        click.echo("\n".join(run_lines(read_status(loaded))))
    else:
        console.print(render_plan(loaded, first_pace))
        from fewscan.harness.report.power import power_lines

        for line in power_lines(loaded, load_plan(pilot) if pilot else None):
            console.print(escape(line), soft_wrap=True)


@command(
    "fewscan sweep experiments/demo.yaml",
    "fewscan sweep experiments/demo.yaml --only denoise --only labels=1,4 --only seeds=0",
)
@study_argument
@set_option
@only_option
@click.option(
    "--on",
    "where",
    type=click.Choice(["local", "slurm"]),
    default="local",
    help="Here, or in Slurm jobs as the study's `slurm` section says; then it returns at once.",
)
def sweep(study: Path, overrides: tuple[str, ...], only: tuple[str, ...], where: str) -> None:
    """Run the study, or go on with it: the same command.

    Exits with 1 if a run failed (the others are finished all the same) or was interrupted.
    """
    from fewscan.harness.loading import load_plan
    from fewscan.harness.on_slurm import launch_sweep
    from fewscan.harness.only import only as part_of
    from fewscan.harness.sweep import begin_again
    from fewscan.harness.sweep import sweep as run_sweep

    loaded = part_of(load_plan(study, overrides), only)
    if where == "slurm":
        job = launch_sweep(loaded)
        console.print(f"Slurm job {job} is the head; `fewscan status STUDY` tells how it goes")
        return
    status = run_sweep(loaded, console, on_ray_lost=begin_again)
    for run in status.failed():
        message = status.plan.folder_of(run).read_error()["message"]
        click.echo(f"failed: {run.run_id} {run.name}: {message}", err=True)
    for run in status.blocked():
        click.echo(f"blocked by a failed parent: {run.run_id} {run.name}", err=True)
    if status.count()["finished"]:
        from fewscan.harness.report.studies import one_study

        _show_report(one_study(status.plan))
    if not status.is_finished:
        click.echo("not finished: give the same command to go on", err=True)
        done_with = Session.INCOMPLETE if status.is_over else Session.TRY_AGAIN
        sys.exit(done_with if Session.here().is_on_cluster else 1)


@command("fewscan status experiments/demo.yaml")
@study_argument
@set_option
@runs_option
def status(study: Path, overrides: tuple[str, ...], runs: bool) -> None:
    """Where the study stands: label count × init × seed, pace, Slurm jobs, errors with their logs.

    From the shared disk, on any node; where Slurm's commands are missing, its jobs are shown as the
    head last saw them.
    """
    from fewscan.harness.listing import render_estimate, render_status, run_lines
    from fewscan.harness.loading import load_plan
    from fewscan.harness.status import read_status

    loaded = load_plan(study, overrides)
    now = read_status(loaded)
    if runs:
        click.echo("\n".join(run_lines(now)))
        return
    console.print(render_status(now))
    if not now.is_finished:
        console.print(render_estimate(now), soft_wrap=True)
    if loaded.folder.cluster.exists():
        from fewscan.harness.on_slurm import render_cluster

        console.print(render_cluster(loaded.folder))


@command("fewscan cancel experiments/paper.yaml")
@study_argument
@set_option
def cancel(study: Path, overrides: tuple[str, ...]) -> None:
    """Stop the study's Slurm jobs; runs checkpoint first. The same sweep command goes on later."""
    from fewscan.harness.study_file import load_study
    from fewscan.slurm import cancel as cancel_jobs
    from fewscan.storage.runs import StudyFolder

    jobs = cancel_jobs(StudyFolder(load_study(study, overrides).folder).cluster)
    console.print(f"{len(jobs)} Slurm jobs are cancelled; the runs so far are kept")


@command("fewscan doctor experiments/paper.yaml")
@click.argument("study", type=PATH, required=False)
@set_option
def doctor(study: Path | None, overrides: tuple[str, ...]) -> None:
    """Check what a sweep on Slurm needs here, and say how to fix what is missing.

    With a STUDY whose file has a slurm section, also on a node of its partition. Exits with 1 if
    something is missing.
    """
    from fewscan.harness.study_file import load_study
    from fewscan.slurm.doctor import checks

    loaded = load_study(study, overrides) if study else None
    folder = loaded.folder if loaded else Path.cwd()
    found = checks(folder, loaded.slurm if loaded else None)
    for check in found:
        console.print(f"{'[green]✓[/]' if check.ok else '[red]✗[/]'} {check.name}: {check.found}")
        if check.remedy:
            console.print(f"    {check.remedy}")
    sys.exit(0 if all(check.ok for check in found) else 1)


@command(
    "fewscan report experiments/demo.yaml",
    "fewscan report experiments/demo.yaml --set report.reach.binary=0.7",
    "fewscan report first.yaml second.yaml",
)
@study_argument
@click.argument("other", type=PATH, required=False)
@set_option
def report(study: Path, other: Path | None, overrides: tuple[str, ...]) -> None:
    """Say what can be concluded from what is finished: a page, figures, tables.

    With a second study, OTHER, the two are compared: arms of the same name, OTHER minus STUDY.
    --set is for the first. report.reach names the score for which the labelled scans that each arm
    needs are said.
    """
    from fewscan.harness.loading import load_plan
    from fewscan.harness.report.studies import one_study, two_studies
    from fewscan.harness.report.write import write_report

    loaded = load_plan(study, overrides)
    studies = one_study(loaded) if other is None else two_studies(loaded, load_plan(other))
    write_report(studies)
    _show_report(studies)


@command("fewscan ui experiments/demo.yaml")
@study_argument
@set_option
@click.option("--port", type=click.IntRange(1, 65535), help="Default: a free one.")
def ui(study: Path, overrides: tuple[str, ...], port: int | None) -> None:
    """Serve the MLflow UI on this study, on 127.0.0.1, until Ctrl-C."""
    from fewscan.harness.loading import load_plan
    from fewscan.harness.tracking.tracker import serve_ui

    serve_ui(load_plan(study, overrides), port=port)


@command("fewscan sync experiments/paper.yaml --to http://mlflow.lab:5000")
@study_argument
@set_option
@click.option("--to", "uri", help="Default: where the sweep tracks to.")
@click.option(
    "--register",
    metavar="NAME",
    help="Also register the best model of each target as NAME-TARGET, chosen by validation loss.",
)
def sync(study: Path, overrides: tuple[str, ...], uri: str | None, register: str | None) -> None:
    """Rebuild the MLflow view from the run folders, here or elsewhere.

    Giving it again changes nothing, and completes what was interrupted.
    """
    from fewscan.harness.loading import load_plan
    from fewscan.harness.tracking.tracker import sync as sync_view

    with _bar("runs") as step:
        registered = sync_view(load_plan(study, overrides), uri, register, step)
    for target, model in registered.items():
        console.print(f"the best {target} model  {model.uri}", soft_wrap=True)
        for sentence in model.sentences:
            console.print(f"    {sentence}", highlight=False, markup=False, soft_wrap=True)


@command(
    "fewscan predict demo/study/runs/0123456789ab demo/scans/BraTS2021_00003 lesion.nii.gz",
    "fewscan predict models:/m-0123 imagesTs/case_07_*.nii.gz case_07.nii.gz --mirror",
    "fewscan predict experiments/demo.yaml:denoise@4 imagesTs segmentations",
    "fewscan predict 'mine.yaml:denoise (5 members)@all' imagesTs segmentations --seed 1",
    help=f"""Segment new scans with the networks of RUN; OUT is on the scan's own grid.

    RUN is the folder of a finished run (`fewscan plan STUDY` tells which is which), an MLflow
    model URI, or an arm of a study with its labelled scans, STUDY:ARM@LABELS. Of RUN,RUN,… the
    probabilities are averaged. Without --threshold they need a score of just these networks.

    SCAN is a folder, or the channels' files in the order of the model's channels; the
    names of {registry.NAMES} tell the order as well. OUT has the label values of the scan's
    convention, or 1 for any lesion; of a pre-training it is the anomaly map.

    If OUT is a folder, or has no ending, SCAN is a folder or table of many scans, and OUT gets a
    file ID.nii.gz for each. Given again, the command goes on with those that are missing. A scan
    that cannot be used is listed at the end; then it exits with 1.
    """,
)
@click.argument("run", metavar="RUN[,RUN…]")
@click.argument("scan", type=PATH, nargs=-1, required=True)
@click.argument("out", type=PATH)
@click.option(
    "--probabilities",
    "maps_out",
    type=PATH,
    help="Also write the probabilities (of each class, as one 4D file) or anomaly scores there; a "
    "folder if OUT is one.",
)
@click.option(
    "--mirror",
    is_flag=True,
    help="Average over mirror images: four times the work, eight in 3D. Done anyway with what was "
    "scored so.",
)
@click.option(
    "--target",
    type=click.Choice(["binary", "multiclass"]),
    help="Of an arm of a study. Default: the first in its file that the arm has.",
)
@click.option(
    "--seed", type=int, help="Of an arm of a study. Default: the first; no result chooses."
)
@set_option
@click.option(
    "--threshold",
    type=click.FloatRange(0, 65504),
    help="Of a model without classes. Default: the one that validation chose.",
)
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
def predict(
    run: str,
    scan: tuple[Path, ...],
    out: Path,
    maps_out: Path | None,
    mirror: bool,
    target: Any,
    seed: int | None,
    overrides: tuple[str, ...],
    threshold: float | None,
    device: str,
    overwrite: bool,
) -> None:
    from fewscan.harness.named_runs import named_runs
    from fewscan.harness.predict import (
        ScanPredictor,
        is_folder,
        require_writable,
        write_prediction,
    )

    def load() -> ScanPredictor:
        named = named_runs(run, target=target, seed=seed, overrides=overrides)
        for sentence in named.said:
            click.echo(f"note: {sentence}", err=True)
        runs = named.runs
        return ScanPredictor.load(runs, mirror=mirror, threshold=threshold, device=device)

    if maps_out == out:
        raise click.UsageError("--probabilities needs a file of its own, not OUT")
    if is_folder(out):
        _predict_all(load, scan, out, maps_out, overwrite)
        return
    for path in filter(None, (out, maps_out)):
        require_writable(path, scan, overwrite)
    found = load().predict(scan)
    write_prediction(found, out, maps_out)
    for sentence in found.assumed:
        click.echo(f"note: {found.files.id}: {sentence}", err=True)
    what = [f"{name} {volume:.1f} ml" for name, volume in found.volumes_ml.items()]
    console.print(f"{out}: {', '.join(what) or 'anomaly map'}", soft_wrap=True)
    if maps_out:
        console.print(f"{maps_out}: {', '.join(found.map_names)}", soft_wrap=True)


def _predict_all(
    load: Callable[[], Any],
    scans: tuple[Path, ...],
    out: Path,
    maps_out: Path | None,
    overwrite: bool,
) -> None:
    from fewscan.harness.predict_all import predict_all
    from fewscan.storage.errors import named

    if len(scans) > 1:
        raise click.UsageError("with a folder as OUT, SCAN is one folder or table of scans")
    with _bar("scans") as step:
        report = predict_all(load(), scans[0], out, maps_out, overwrite=overwrite, progress=step)
    there = f"; {len(report.there)} were there already" if report.there else ""
    console.print(f"{out}: {len(report.written)} segmentations{there}", soft_wrap=True)
    for sentence, ids in report.assumed.items():
        click.echo(f"note: {named(ids)}: {sentence}", err=True)
    for scan, problem in sorted(report.problems.items()):
        click.echo(f"skipped {scan}: {problem}", err=True)
    sys.exit(1 if report.problems else 0)


def _show_report(studies: Any) -> None:
    from fewscan.harness.report.terminal import render_report

    console.print(render_report(studies))
    folder = studies.report_folder
    console.print(f"page    {folder / 'report.html'}", soft_wrap=True)
    console.print(f"figure  {folder / 'figure.png'}, the tables beside it", soft_wrap=True)
    where = os.environ.get("MLFLOW_TRACKING_URI") or studies.first.folder.mlflow_database
    console.print(f"MLflow  {where}, shown by `fewscan ui STUDY`", soft_wrap=True)


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that receives (done, total); where the output is a file, a line a minute."""
    lines = MinuteLines(console)
    with Progress(console=console) as progress:
        task = progress.add_task(description, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            lines.say(f"{description}: {done} of {total}")

        yield advance


if __name__ == "__main__":
    main()
