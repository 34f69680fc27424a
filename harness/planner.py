"""From a study to its runs: which there are, what each starts from.

The plan is a function of the study file and the store; it runs nothing. Runs are ordered so that
parents come before children.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import chain

from fewscan.experiments.catalogue import computed
from fewscan.experiments.cost import run_flops
from fewscan.experiments.image_scores import ImageScore
from fewscan.experiments.spec import Finetune, Pretrain, RunSpec, Score, Target, Training
from fewscan.harness.arms import SCRATCH, Arm, Place
from fewscan.harness.concerns import require_possible
from fewscan.harness.ensembles import networks_of, which_network
from fewscan.harness.grid import ArmGrid
from fewscan.harness.networks import require_room
from fewscan.harness.partner import Partner, partner_of
from fewscan.harness.plan import VERBS, Plan, PlannedRun, fold_words, slices_a_scan
from fewscan.harness.study import Study
from fewscan.harness.weights import Weights
from fewscan.storage.errors import StudyError
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
    left_out = dict.fromkeys(chain.from_iterable(planner.grid.left_out for planner in planners))
    return Plan(
        study,
        first_fold.store,
        runs,
        first_fold.weights.stores,
        left_out=tuple(left_out),
        folds=folds if study.split.folds else (),
    )


class _Planner:
    """Of the study, or of one fold of its cross-validation."""

    def __init__(self, study: Study, store: SliceStore, folds: Collection[SliceStore]) -> None:
        self.study = study
        self.store = store
        self.weights = Weights(study, store)
        self.partner: Partner | None = None
        if study.finetune.partner is not None:
            other = partner_of(study, store)
            self.partner = Partner(other, _Planner(other, store, folds).runs())
        self.grid = ArmGrid(study, self.weights, folds, self.partner)

    def runs(self) -> Iterator[PlannedRun]:
        order, study = self.weights.in_order(), self.study
        for name in order:
            yield from self._pretrainings(name)
        if "unsupervised" in study.baselines:
            for name in order:
                if self.weights.have_anomaly_score(name):
                    seeds = study.pretrain[name].seeds
                    yield from (self._unsupervised(name, seed) for seed in seeds)
            for name in self.weights.imports:
                if name in study.finetune.init_names and self.weights.have_anomaly_score(name):
                    yield self._unsupervised(name, 0)
        yield from map(self._image_score, study.image_scores)
        yield from self._finetunings()

    def _planned(
        self, spec: RunSpec, place: Place, name: str, store: SliceStore | None = None
    ) -> PlannedRun:
        store = store or self.store
        network = self.weights.network
        if place.arm.kind == "unsupervised":  # the score of a pre-training
            network = self.weights.networks.get(place.arm.init or "", network)
        if isinstance(spec, Pretrain | Finetune):
            require_room(self.study, spec, store, name)
        if store.fold is not None:
            place, name = replace(place, fold=store.fold), name + fold_words(store.fold)
        return PlannedRun(spec, place, name, run_flops(spec, network, store), store)

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
            self.weights.add(name, seed, run.run_id)
            yield run

    def _pretraining(
        self,
        name: str,
        seed: int,
        training: Training,
        rate_from: tuple[str, ...] = (),
        is_trial: bool = False,
    ) -> PlannedRun:
        wish, networks = self.study.pretrain[name], self.weights.networks
        parent, before = self.weights.start(wish.init, seed)
        if networks.get(wish.init, networks[name]) != networks[name]:
            raise StudyError(
                f"it has another network than {wish.init}, which it starts from",
                where=f"pretrain.{name}.dims",
                expected="the same network; only fine-tunings inflate weights",
                remedy="give both the same dims, or start from scratch",
            )
        spec = Pretrain(
            data=self.weights.stores[name].fingerprint,
            network=networks[name],
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
        return self._planned(spec, place, words, self.weights.stores[name])

    def _which(self, pretraining: str, seed: int) -> str:
        """ " · seed 1", where there are several."""
        wish = self.study.pretrain.get(pretraining)
        return f" · seed {seed}" if wish is not None and len(wish.seeds) > 1 else ""

    def _unsupervised(self, init: str, seed: int) -> PlannedRun:
        parent, own = self.weights.start(init, seed)
        assert parent is not None
        place = Place(Arm("unsupervised", init), "binary", None, seed, own)
        return self._score((parent,), place, f"unsupervised · {init}{self._which(init, seed)}")

    def _image_score(self, image: ImageScore) -> PlannedRun:
        """An anomaly score of the images alone."""
        if image.channel not in (None, *self.store.channels):
            raise StudyError(
                f"no channel {image.channel!r} for a baseline",
                where="baselines",
                expected=f"a channel of {self.store.path}: {', '.join(self.store.channels)}",
                remedy=f"write, for example, channel {self.store.channels[0]}",
            )
        if image.name in (*self.study.pretrain, *self.weights.imports):
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

    def _finetunings(self) -> Iterator[PlannedRun]:
        for target in self.study.finetune.targets:
            for arm, counts in self.grid.arms.items():
                trials = self._trials(arm, target)
                yield from trials
                for count in counts:
                    for seed in self.study.finetune.seeds:
                        place = Place(arm, target, count, seed)
                        yield from self._cell(place, tuple(it.run_id for it in trials))

    def _trials(self, arm: Arm, target: Target) -> list[PlannedRun]:
        """Trials of the arm's learning rate; none if none is asked for, and of a probe. Those of an
        ensemble are its single network's."""
        tune = self.study.finetune.tune
        if tune is None or arm.schedule == "probe":
            return []
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
        self, partner: Partner, single: Finetune, place: Place, name: str
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
        flops = self._score((own.run_id,), alone, name).flops + partner.score_flops[theirs.run_id]
        yield replace(both, flops=flops)

    def _started(self, place: Place) -> Place:
        """The place with the seed of the pre-training that its run starts from."""
        _, pretraining = self.weights.start(place.arm.init or SCRATCH, place.seed)
        return replace(place, pretraining=pretraining)

    def _finetuning(self, place: Place) -> Finetune:
        """Of the place's arm with one network."""
        finetune, arm = self.study.finetune, self.grid.whole(place.arm.single)
        assert place.target is not None
        assert place.labels is not None
        parent, _ = self.weights.start(arm.init or SCRATCH, place.seed)
        return Finetune(
            data=self.store.fingerprint,
            network=self.weights.network,
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
