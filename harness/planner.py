"""From a study to its runs: which there are, what each starts from.

The plan is a function of the study file and the store; it runs nothing. Runs are ordered so that
parents come before children.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any, Literal

from fewscan.experiments.catalogue import computed
from fewscan.experiments.cost import run_flops
from fewscan.experiments.image_scores import ImageScore
from fewscan.experiments.results import RunRecord
from fewscan.experiments.schemes.scheme import Scheme
from fewscan.experiments.settings import FROM_SCRATCH, Transfer
from fewscan.experiments.spec import (
    Finetune,
    Imported,
    Pretrain,
    RunSpec,
    Score,
    Target,
    Training,
)
from fewscan.harness.arms import SCRATCH, Arm, Place
from fewscan.harness.concerns import (
    require_fitting_store,
    require_possible,
    require_pretraining_possible,
)
from fewscan.harness.ensembles import (
    dividable,
    ensembles_of,
    networks_of,
    not_divided,
    which_network,
)
from fewscan.harness.networks import network_of, pretraining_network, require_room
from fewscan.harness.partner import partner_of
from fewscan.harness.plan import (
    VERBS,
    Plan,
    PlannedRun,
    everything_of,
    fold_words,
    slices_a_scan,
)
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError
from fewscan.storage.runs import StudyFolder
from fewscan.storage.slices import SliceStore


def make_plan(study: Study) -> Plan:
    """All runs of the study, parents first.

    Raises `StoreError` if a store cannot be used and `StudyError` if a name, a count, the order of
    the pre-trainings or what they learn from makes no sense for it.
    """
    folds = SliceStore.open(study.store).outer_folds(study.split.folds)
    for store in folds:
        require_possible(study, store)
    planners = [_Planner(study, store, folds) for store in folds]
    unique: dict[str, PlannedRun] = {}
    for run in chain.from_iterable(planner.runs() for planner in planners):
        first = unique.setdefault(run.run_id, run)
        if first.name != run.name and run.made_in is first.made_in is None:
            raise StudyError(
                f"{first.name!r} and {run.name!r} are the same run",
                where="pretrain",
                expected="names for different things",
                remedy="give one another seed or setting, or leave it out",
            )
    runs, first_fold = tuple(unique.values()), planners[0]
    left_out = dict.fromkeys(chain.from_iterable(planner.left_out for planner in planners))
    return Plan(
        study,
        first_fold.store,
        runs,
        first_fold.stores,
        left_out=tuple(left_out),
        folds=folds if study.split.folds else (),
    )


def meaningful(arm: Arm) -> Arm:
    """The same fine-tuning without what has nothing to act on: random weights are not transferred,
    and what is transferred and does not learn has no rate."""
    if arm.init is None:
        arm = replace(arm, transfer="all", lr_scale=1.0)
    if arm.schedule == "probe" or (arm.schedule, arm.transfer) == ("frozen", "encoder"):
        arm = replace(arm, lr_scale=1.0)
    return arm


class _Planner:
    """Of the study, or of one fold of its cross-validation."""

    def __init__(self, study: Study, store: SliceStore, folds: Collection[SliceStore]) -> None:
        partner = None if study.finetune.partner is None else partner_of(study, store)
        self.partner = None if partner is None else _Partner(_Planner(partner, store, folds))
        self.study = study
        self.store = store
        self.folds = folds
        """What each fold has in common with the others is found in all of them."""
        self.everything = everything_of(folds)
        self.imports = StudyFolder(study.folder).read_imports()
        self.ids: dict[tuple[str, int | None], str] = {
            (name, None): run_id for name, run_id in self.imports.items()
        }
        """What runs start from: name and seed of a pre-training, or the name of imported weights,
        → run id. Pre-trainings are added as they are planned."""
        self.network = network_of(study, store)
        self.stores = {name: self._store_of(name) for name in study.pretrain}
        self.networks = {name: pretraining_network(study, name, store) for name in self.stores}
        """Of each pre-training."""
        self.left_out: list[str] = []
        self.whole: dict[Arm, Arm] = {}
        """Arm → the same with what all arms of the study share, which its name does not say."""

    def _store_of(self, name: str) -> SliceStore:
        path = self.study.pretrain[name].store
        store = self.store if path is None else SliceStore.open(path)
        network = pretraining_network(self.study, name, self.store)
        require_pretraining_possible(self.study, name, store, network)
        if store is not self.store:
            require_fitting_store(self.study, name, store, self.store)
        return store

    def runs(self) -> Iterator[PlannedRun]:
        pretrain, finetune = self.study.pretrain, self.study.finetune
        order = self._pretrainings_in_order()
        for name in order:
            yield from self._pretrainings(name)
        if "unsupervised" in self.study.baselines:
            for name in order:
                if pretrain[name].scheme.has_anomaly_score:
                    yield from (self._unsupervised(name, seed) for seed in pretrain[name].seeds)
            for name in self.imports:
                if name in finetune.init_names and self._has_score(name):
                    yield self._unsupervised(name, None)
        yield from map(self._image_score, self.study.image_scores)
        yield from self._grid()

    def _has_score(self, imported: str) -> bool:
        """Whether imported weights have an anomaly score."""
        scheme = self._scheme_of(imported)
        return scheme is not None and scheme.has_anomaly_score

    def _scheme_of(self, init: str) -> Scheme | None:
        """How a pre-training or imported weights were taught; None: not at all, or to segment."""
        if init in self.study.pretrain:
            scheme: Scheme = self.study.pretrain[init].scheme
            return scheme
        if init in self.imports:
            folder = StudyFolder(self.study.folder).run(self.imports[init])
            match RunRecord.read(folder).spec:
                case Imported(scheme=taught):
                    return taught
        return None

    def _pretrainings_in_order(self) -> list[str]:
        """As in the file, but parents before children."""
        order: list[str] = []
        for name in self.study.pretrain:
            if name in (SCRATCH, *self.imports):
                raise StudyError(
                    f"a pre-training is called {name!r}, which is taken",
                    where=f"pretrain.{name}",
                    expected="a name other than scratch and those of imported checkpoints",
                    remedy="rename it, here and in finetune.inits",
                )
            order += reversed(self._chain(name, order))
        return order

    def _chain(self, name: str, order: Collection[str]) -> list[str]:
        """A pre-training, what it starts from and so on, up to one that is in `order`."""
        chain: list[str] = []
        while name in self.study.pretrain and name not in order:
            if name in chain:
                raise StudyError(
                    f"pre-trainings start from each other: {' → '.join((*chain, name))}",
                    where=f"pretrain.{name}.init",
                    expected="a chain that begins at scratch or at an imported checkpoint",
                    remedy="change one init of the circle",
                )
            chain.append(name)
            name = self.study.pretrain[name].init
            self._check_known(name, where=f"pretrain.{chain[-1]}.init")
        return chain

    def _check_known(self, init: str, where: str) -> None:
        known = [SCRATCH, *self.study.pretrain, *self.imports]
        if init not in known:
            raise StudyError(
                f"unknown parent {init!r}",
                where=where,
                expected=f"one of: {', '.join(known)}",
                remedy="name a pre-training of this study, or import a checkpoint under that name "
                "(`fewscan import-checkpoint`)",
            )

    def _planned(
        self, spec: RunSpec, place: Place, name: str, store: SliceStore | None = None
    ) -> PlannedRun:
        store = store or self.store
        network = self.network
        if place.arm.kind == "unsupervised":  # the score of a pre-training
            network = self.networks.get(place.arm.init or "", network)
        if isinstance(spec, Pretrain | Finetune):
            require_room(self.study, spec, store, name)
        if store.fold is not None:
            place, name = replace(place, fold=store.fold), name + fold_words(store.fold)
        return PlannedRun(spec, place, name, run_flops(spec, network, store), store)

    def _start(self, init: str, seed: int) -> tuple[str | None, int | None]:
        """What a run of this seed starts from: the id of a run, and the pre-training's seed."""
        wish = self.study.pretrain.get(init)
        own = None if wish is None else wish.seed_for(seed)
        return (None if init == SCRATCH else self.ids[init, own]), own

    def _pretrainings(self, name: str) -> Iterator[PlannedRun]:
        """Trials of its learning rate, if there are to be some, and one run a seed."""
        wish = self.study.pretrain[name]
        trials: list[PlannedRun] = []
        if wish.tune is not None:
            for lr in wish.tune.lr:
                training = replace(wish.training, lr=lr)
                trials.append(self._pretraining(name, wish.tune.seed, training, is_trial=True))
            yield from trials
        rate_from = tuple(trial.run_id for trial in trials)
        training = replace(wish.training, lr=0.0) if trials else wish.training
        for seed in wish.seeds:
            run = self._pretraining(name, seed, training, rate_from)
            self.ids[name, seed] = run.run_id
            yield run

    def _pretraining(
        self,
        name: str,
        seed: int,
        training: Training,
        rate_from: tuple[str, ...] = (),
        is_trial: bool = False,
    ) -> PlannedRun:
        wish = self.study.pretrain[name]
        parent, before = self._start(wish.init, seed)
        if self.networks.get(wish.init, self.networks[name]) != self.networks[name]:
            raise StudyError(
                f"it has another network than {wish.init}, which it starts from",
                where=f"pretrain.{name}.dims",
                expected="the same network; only fine-tunings inflate weights",
                remedy="give both the same dims, or start from scratch",
            )
        spec = Pretrain(
            data=self.stores[name].fingerprint,
            network=self.networks[name],
            scheme=wish.scheme,
            training=training,
            seed=seed,
            init=parent,
            slices=wish.slices,
            rate_from=rate_from,
            is_trial=is_trial,
        )
        init = None if wish.init == SCRATCH else wish.init
        if is_trial:
            place = Place(Arm("tuning", name), None, None, seed, before)
            words = f"tune pre-training {name} · lr {training.lr:g}"
        else:
            place = Place(Arm("pre-training", init), None, None, seed, before)
            words = f"pre-train {name}{self._which(name, seed)}"
        return self._planned(spec, place, words, self.stores[name])

    def _which(self, pretraining: str, seed: int | None) -> str:
        """ " · seed 1", where there are several."""
        wish = self.study.pretrain.get(pretraining)
        return f" · seed {seed}" if wish is not None and len(wish.seeds) > 1 else ""

    def _unsupervised(self, init: str, seed: int | None) -> PlannedRun:
        place = Place(Arm("unsupervised", init), "binary", None, seed or 0, seed)
        name = f"unsupervised · {init}{self._which(init, seed)}"
        return self._score((self.ids[init, seed],), place, name)

    def _image_score(self, image: ImageScore) -> PlannedRun:
        """An anomaly score of the images alone."""
        if image.channel not in (None, *self.store.channels):
            raise StudyError(
                f"no channel {image.channel!r} for a baseline",
                where="baselines",
                expected=f"a channel of {self.store.path}: {', '.join(self.store.channels)}",
                remedy=f"write, for example, channel {self.store.channels[0]}",
            )
        if image.name in (*self.study.pretrain, *self.imports):
            raise StudyError(
                f"a pre-training or an imported checkpoint is called {image.name!r}, as a baseline",
                where="baselines",
                expected="names for different things",
                remedy="rename it, here and in finetune.inits",
            )
        place = Place(Arm("unsupervised", image.name), "binary", None, 0)
        return self._score((), place, f"unsupervised · {image.name}", image)

    def _score(
        self,
        parents: tuple[str, ...],
        place: Place,
        name: str,
        image: ImageScore = ImageScore(),  # noqa: B008 (frozen)
    ) -> PlannedRun:
        """The score of trained networks together, or of the images alone."""
        evaluation, target = self.study.evaluation, place.target or "binary"
        wanted = computed(evaluation, target, self.store.keeps_scan_labels)
        metrics = tuple(metric.key for metric in wanted)
        regions = self.store.regions if target == "multiclass" else ()
        data = self.store.fingerprint
        mirror = self.study.score.mirror and bool(parents)
        spec = Score(
            data,
            evaluation,
            parents,
            metrics=metrics,
            regions=regions,
            image=image,
            mirror=mirror,
        )
        return self._planned(spec, place, name)

    def _grid(self) -> Iterator[PlannedRun]:
        finetune = self.study.finetune
        for init in finetune.init_names:
            self._check_known(init, where="finetune.inits")
        arms = self._arms()
        for target in finetune.targets:
            for arm, counts in arms.items():
                trials = self._trials(arm, target)
                yield from trials
                for count in counts:
                    for seed in finetune.seeds:
                        place = Place(arm, target, count, seed)
                        yield from self._cell(place, tuple(it.run_id for it in trials))

    def _arms(self) -> dict[Arm, list[int]]:
        """The arms of each target with their label counts: the grid's with their ensembles,
        baselines, probes."""
        finetune, baselines = self.study.finetune, self.study.baselines
        counts = self._label_counts(finetune.label_counts, "finetune.label_counts")
        counts_of_grid = counts
        divided = dividable(counts, finetune, self.folds)
        self.left_out += not_divided(counts, divided, finetune)
        everything = self.everything
        self.whole = self._named(self._combinations())
        found = dict.fromkeys(self.whole, counts)
        ensembles = {arm: ensembles_of(arm, finetune, counts, divided) for arm in found}
        scratch = next(filter(lambda arm: arm.is_scratch, found), self._arm(SCRATCH))
        if "supervised" in baselines:
            found[scratch] = sorted({*found.get(scratch, ()), everything})
        if "supervised long" in baselines:
            found[replace(scratch, schedule="long")] = [everything]
        if "random features" in baselines:
            found[self._probe(SCRATCH, 0)] = counts
        if (probes := finetune.probes) is not None:
            if max(probes.levels) > self.study.network.depth:
                raise StudyError(
                    f"level {max(probes.levels)} of a network of depth {self.study.network.depth}",
                    where="finetune.probes.levels",
                    expected=f"levels from 0, the last map, to {self.study.network.depth}",
                    remedy="leave it out",
                )
            wanted = probes.label_counts or finetune.label_counts
            counts = self._label_counts(wanted, "finetune.probes.label_counts")
            for level in probes.levels:
                for init in dict.fromkeys((SCRATCH, *finetune.init_names)):
                    arm = self._probe(init, level)
                    if reason := self._impossible(arm):
                        self.left_out.append(f"finetune.probes: no {arm.key}: {reason}")
                    else:
                        found[arm] = sorted({*found.get(arm, ()), *counts})
        together: dict[Arm, list[int]] = {}
        for arm, own in found.items():
            together |= {arm: own} | ensembles.get(arm, {})
            if self.partner is not None and arm in ensembles and arm.is_ranked:
                together |= self._with_partner(self.partner, arm, counts_of_grid)
        return together

    def _with_partner(
        self, partner: "_Partner", arm: Arm, counts: Sequence[int]
    ) -> dict[Arm, list[int]]:
        """The average with another study's same arm, at the label counts of both."""
        grid = product(self.study.finetune.targets, self.study.finetune.seeds)
        places = [*grid]
        shared = [n for n in counts if all((t, arm, n, s) in partner.cells for t, s in places)]
        if not shared:
            self.left_out.append(
                f"finetune.partner: no {arm.key} with {partner.name}, which lacks the arm, or its "
                "label counts, seeds or targets"
            )
            return {}
        return {replace(arm, partner=partner.name): shared}

    def _arm(self, init: str) -> Arm:
        """Plain fine-tuning from this init."""
        return Arm("fine-tuning", None if init == SCRATCH else init, self._transfer(init))

    def _probe(self, init: str, level: int) -> Arm:
        """A new head on features of this init."""
        return replace(self._arm(init), schedule="probe", level=level)

    def _combinations(self) -> list[Arm]:
        """The arms that `finetune.inits` asks for, each once, with all that is said of them.

        A single one that cannot be is refused; in a grid it is left out, and that is said. What
        means nothing to an arm is as by default: scratch comes once, whatever is transferred.
        """
        finetune, found = self.study.finetune, dict[Arm, None]()
        for grid in finetune.grids:
            ways = product(
                grid.init,
                grid.transfer or (None,),
                grid.schedule or (finetune.schedule,),
                grid.lr_scale or (finetune.lr_scale,),
                grid.oversample_foreground or (finetune.oversample_foreground,),
            )
            for init, transfer, schedule, lr_scale, share in ways:
                asked = replace(
                    Arm("fine-tuning", None if init == SCRATCH else init),
                    transfer=transfer or self._transfer(init),
                    schedule=schedule,
                    lr_scale=lr_scale,
                    oversample_foreground=share,
                )
                arm = meaningful(asked)
                reason = self._impossible(arm)
                if reason and grid.is_one:
                    raise StudyError(
                        f"{arm.key} cannot be: {reason}",
                        where="finetune.inits",
                        expected="an init, and a way to fine-tune it that its weights allow",
                        remedy="change transfer or schedule there, or leave it out",
                    )
                if reason:
                    self.left_out.append(f"finetune.inits: no {arm.key}: {reason}")
                    continue
                if arm != asked and grid.is_one and (grid.lr_scale or grid.transfer):
                    self.left_out.append(
                        f"finetune.inits: {asked.key} is {arm.key}: what it names besides has "
                        "nothing to act on"
                    )
                found[arm] = None
        return list(found)

    def _impossible(self, arm: Arm) -> str:
        """Why an arm cannot be, without a full stop; empty if it can."""
        scheme = None if arm.init is None else self._scheme_of(arm.init)
        if arm.init is not None and (reason := self._misfit(arm.init, arm.transfer)):
            return reason
        if arm.transfer != "encoder" and scheme is not None and not scheme.skips:
            return (
                f"{arm.init} was pre-trained without skip connections, so its decoder has not "
                "learnt to use them; transfer the encoder"
            )
        if arm.schedule == "probe" and arm.level == 0 and arm.transfer == "encoder":
            return (
                "a probe of the last map sees it through the decoder, which is random; "
                "finetune.probes.levels has the encoder's"
            )
        return ""

    def _misfit(self, init: str, transfer: Transfer) -> str:
        """Why the weights of an init do not fit the network; of imported ones the run says it."""
        own = self.networks[init].dims if init in self.networks else None
        if transfer == "inflate" and (self.network.dims == 2 or own == 3):
            return (
                f"inflate brings weights of a 2D network into a 3D one, and {init} is of "
                f"{own or 2}D, the study of {self.network.dims}D"
            )
        if transfer != "inflate" and own == 2 and self.network.dims == 3:
            return f"{init} is of a 2D network, which `transfer: inflate` brings into a 3D one"
        return ""

    def _named(self, arms: Sequence[Arm]) -> dict[Arm, Arm]:
        """Each arm by what it does not share with all others; what is not learnt is always said."""
        shared: dict[str, Any] = {}
        for name in ("schedule", "lr_scale", "oversample_foreground"):
            values = {getattr(arm, name) for arm in arms}
            if len(values) == 1 and not values & {"frozen", "probe"}:
                shared[name] = getattr(Arm("fine-tuning"), name)
        if len({arm.lr_scale for arm in arms if arm.init is not None}) == 1:
            shared["lr_scale"] = 1.0  # scratch has none
        return {replace(arm, **shared): arm for arm in arms}

    def _whole(self, arm: Arm) -> Arm:
        """The arm with what all arms of the study share."""
        if arm in self.whole:
            return self.whole[arm]
        finetune = self.study.finetune
        own = finetune.schedule if arm.schedule == "long" else arm.schedule
        if own == "plain" or (arm.schedule == "long" and own not in FROM_SCRATCH):
            own = finetune.schedule if finetune.schedule in FROM_SCRATCH else "plain"
        share = arm.oversample_foreground or finetune.oversample_foreground
        return replace(arm, schedule=own, oversample_foreground=share)

    def _label_counts(self, wanted: Collection[int | Literal["all"]], where: str) -> list[int]:
        everything = self.everything
        counts = [everything if c == "all" else c for c in wanted]
        if max(counts) > everything:
            raise StudyError(
                f"label count {max(counts)} is larger than the training split",
                where=where,
                expected=f"at most {everything}, the training scans in {self.store.path}",
                remedy="leave it out, or write all for the whole training split",
            )
        return sorted(set(counts))

    def _trials(self, arm: Arm, target: Target) -> list[PlannedRun]:
        """Trials of the arm's learning rate; none if none is asked for, and of a probe. Those of an
        ensemble are its single network's."""
        tune = self.study.finetune.tune
        if tune is None or arm.schedule == "probe":
            return []
        self._label_counts([tune.on.labels], "finetune.tune.on.labels")
        plain = arm.single
        plain = replace(plain, schedule="plain") if plain.schedule == "long" else plain
        place = Place(plain, target, tune.on.labels, tune.on.seed)
        found = []
        for lr in tune.lr:
            spec = self._finetuning(place)
            spec = replace(spec, training=replace(spec.training, lr=lr), is_trial=True)
            there = replace(self._started(place), arm=replace(plain, kind="tuning"))
            found.append(self._planned(spec, there, f"tune {target} · {plain.key} · lr {lr:g}"))
        return found

    def _cell(self, place: Place, rate_from: tuple[str, ...] = ()) -> Iterator[PlannedRun]:
        """The fine-tuning of one cell and seed, or those of an ensemble, and their score."""
        name = f"{VERBS[Score.kind]} {place.cell}"
        single, place = self._finetuning(place), self._started(place)
        if rate_from:
            training = replace(single.training, lr=0.0)
            single = replace(single, training=training, rate_from=rate_from)
        trained = []
        if place.arm.partner and self.partner is not None:
            yield from self._averaged(self.partner, single, place, name)
            return
        for spec in networks_of(place.arm, single):
            own = replace(place, arm=place.arm.single) if spec == single else place
            words = f"{VERBS[spec.kind]} {own.cell}{which_network(spec)}"
            trained.append(self._planned(spec, own, words))
        yield from trained
        parents = tuple(run.run_id for run in trained)
        yield self._score(parents, place, name)

    def _averaged(
        self, partner: "_Partner", single: Finetune, place: Place, name: str
    ) -> Iterator[PlannedRun]:
        """The network of a cell and that of another study's, and the score of both together."""
        alone = replace(place, arm=place.arm.single)
        assert place.target is not None
        assert place.labels is not None
        own = self._planned(single, alone, f"{VERBS[single.kind]} {alone.cell}")
        theirs = partner.cells[place.target, alone.arm, place.labels, place.seed]
        if own.run_id == theirs.run_id:
            raise StudyError(
                f"{own.name!r} is the same network in {partner.name}",
                where="finetune.partner",
                expected="a study whose networks differ from this one's",
                remedy="name another study, or ask for finetune.members",
            )
        yield own
        yield from partner.with_parents(theirs)
        both = self._score((own.run_id, theirs.run_id), place, name)
        each = (
            planner._score((run.run_id,), place, name).flops
            for planner, run in ((self, own), (partner.planner, theirs))
        )
        yield replace(both, flops=sum(each))

    def _started(self, place: Place) -> Place:
        """The place with the seed of the pre-training that its run starts from."""
        _, pretraining = self._start(place.arm.init or SCRATCH, place.seed)
        return replace(place, pretraining=pretraining)

    def _finetuning(self, place: Place) -> Finetune:
        """Of the place's arm with one network."""
        finetune, arm = self.study.finetune, self._whole(place.arm.single)
        assert place.target is not None
        assert place.labels is not None
        parent, _ = self._start(arm.init or SCRATCH, place.seed)
        return Finetune(
            data=self.store.fingerprint,
            network=self.network,
            target=place.target,
            label_count=place.labels,
            training=self._training(place.arm, place.labels),
            augmentation=finetune.augmentation,
            seed=place.seed,
            init=parent,
            transfer=arm.transfer,
            selection=finetune.selection,
            schedule="plain" if arm.schedule == "long" else arm.schedule,
            probe_level=arm.level,
            lr_scale=arm.lr_scale,
            oversample_foreground=arm.oversample_foreground,
        )

    def _training(self, arm: Arm, labels: int) -> Training:
        finetune = self.study.finetune
        if arm.schedule == "probe" and finetune.probes and finetune.probes.training:
            return finetune.probes.training
        training = finetune.training_for(labels, labels * slices_a_scan(self.store))
        return training.stretched(finetune.long) if arm.schedule == "long" else training

    def _transfer(self, init: str) -> Transfer:
        """What a fine-tuning takes over from this init."""
        wish, scheme = self.study.finetune.transfer, self._scheme_of(init)
        if scheme is None:
            return "all" if wish is None or init == SCRATCH else wish
        transfer = wish or scheme.transfer
        if transfer == "all" and not scheme.skips:
            raise StudyError(
                f"{init!r} was pre-trained without skip connections, so its decoder has not learnt "
                "to use them",
                where="finetune.transfer",
                expected="encoder",
                remedy="set finetune.transfer to encoder",
            )
        return transfer


class _Partner:
    """Another study of the same store, whose networks are averaged with this one's."""

    def __init__(self, planner: _Planner) -> None:
        self.planner = planner
        self.name = planner.study.name
        runs = [self._named(run) for run in planner.runs()]
        self._runs = {run.run_id: run for run in runs}
        self.cells: dict[tuple[Target, Arm, int, int], PlannedRun] = {}
        """Target, arm, labelled scans and seed → the fine-tuning of a single network."""
        for run in runs:
            if isinstance(run.spec, Finetune) and run.place.arm.kind == "partner":
                arm = replace(run.place.arm, kind="fine-tuning", study="")
                assert run.place.target is not None
                assert run.place.labels is not None
                key = (run.place.target, arm, run.place.labels, run.place.seed)
                if not run.spec.member and not run.spec.folds:
                    self.cells[key] = run

    def _named(self, run: PlannedRun) -> PlannedRun:
        """As a run of another study, none of whose places is one of this study's grid."""
        arm = run.place.arm.of_study(self.name)
        if arm.kind == "fine-tuning":
            arm = replace(arm, kind="partner")
        return replace(
            run,
            place=replace(run.place, arm=arm),
            name=f"{self.name}: {run.name}",
            made_in=self.planner.study.folder,
        )

    def with_parents(self, run: PlannedRun) -> Iterator[PlannedRun]:
        """What a run starts from, directly or not, and the run."""
        for parent in run.parents:
            if parent in self._runs:
                yield from self.with_parents(self._runs[parent])
        yield run
