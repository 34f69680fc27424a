"""What the networks of a study start from: its pre-trainings, imported checkpoints, or nothing."""

from collections.abc import Collection

from fewscan.experiments.results import RunRecord
from fewscan.experiments.schemes.scheme import Scheme
from fewscan.experiments.settings import Transfer
from fewscan.experiments.spec import Imported
from fewscan.harness.arms import SCRATCH, Arm
from fewscan.harness.concerns import require_fitting_store, require_pretraining_possible
from fewscan.harness.networks import network_of, pretraining_network
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError
from fewscan.storage.runs import StudyFolder
from fewscan.storage.slices import SliceStore


class Weights:
    """Of a study on its store, or on one fold of its cross-validation.

    Raises `StudyError` if a pre-training cannot learn from its store.
    """

    def __init__(self, study: Study, store: SliceStore) -> None:
        self._study = study
        self._store = store
        self._folder = StudyFolder(study.folder)
        self.imports = self._folder.read_imports()
        """Name of imported weights → run id."""
        self.network = network_of(study, store)
        """Of all fine-tunings."""
        self.stores = {name: self._store_of(name) for name in study.pretrain}
        """Name of a pre-training → what it learns from."""
        self.networks = {name: pretraining_network(study, name, store) for name in self.stores}
        """Name of a pre-training → its network."""
        self._planned: dict[tuple[str, int], str] = {}

    def _store_of(self, name: str) -> SliceStore:
        path = self._study.pretrain[name].store
        store = self._store if path is None else SliceStore.open(path)
        network = pretraining_network(self._study, name, self._store)
        require_pretraining_possible(self._study, name, store, network)
        if store is not self._store:
            require_fitting_store(self._study, name, store, self._store)
        return store

    def in_order(self) -> list[str]:
        """The pre-trainings as in the file, but parents before children.

        Raises `StudyError` if one has a name that is taken, an unknown parent, or is its own
        ancestor.
        """
        order: list[str] = []
        for name in self._study.pretrain:
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
        while name in self._study.pretrain and name not in order:
            if name in chain:
                raise StudyError(
                    f"pre-trainings start from each other: {' → '.join((*chain, name))}",
                    where=f"pretrain.{name}.init",
                    expected="a chain that begins at scratch or at an imported checkpoint",
                    remedy="change one init of the circle",
                )
            chain.append(name)
            name = self._study.pretrain[name].init
            self.require_known(name, where=f"pretrain.{chain[-1]}.init")
        return chain

    def require_known(self, init: str, where: str) -> None:
        """Raise `StudyError` if there is nothing of this name to start from."""
        known = [SCRATCH, *self._study.pretrain, *self.imports]
        if init not in known:
            raise StudyError(
                f"unknown parent {init!r}",
                where=where,
                expected=f"one of: {', '.join(known)}",
                remedy="name a pre-training of this study, or import a checkpoint under that name "
                "(`fewscan import-checkpoint`)",
            )

    def add(self, name: str, seed: int, run_id: str) -> None:
        """A pre-training has been planned: from now on others can start from it."""
        self._planned[name, seed] = run_id

    def start(self, init: str, seed: int) -> tuple[str | None, int | None]:
        """What a run of this seed starts from: the id of a run, and the pre-training's seed."""
        if init == SCRATCH:
            return None, None
        if init in self.imports:
            return self.imports[init], None
        own = self._study.pretrain[init].seed_for(seed)
        return self._planned[init, own], own

    def scheme_of(self, init: str) -> Scheme | None:
        """How weights were taught; None: not at all, or to segment."""
        if init in self._study.pretrain:
            scheme: Scheme = self._study.pretrain[init].scheme
            return scheme
        if init in self.imports:
            match RunRecord.read(self._folder.run(self.imports[init])).spec:
                case Imported(scheme=taught):
                    return taught
        return None

    def have_anomaly_score(self, init: str) -> bool:
        """Whether the network that was taught so tells an anomaly by itself."""
        scheme = self.scheme_of(init)
        return scheme is not None and scheme.has_anomaly_score

    def transfer_of(self, init: str) -> Transfer:
        """What a fine-tuning takes over unless its arm says otherwise.

        Raises `StudyError` if that is a decoder that has not learnt to use skip connections.
        """
        wish, scheme = self._study.finetune.transfer, self.scheme_of(init)
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

    def why_not(self, arm: Arm) -> str:
        """Why an arm cannot start as it says, without a full stop; empty if it can."""
        if arm.init is not None and (reason := self._misfit(arm.init, arm.transfer)):
            return reason
        scheme = None if arm.init is None else self.scheme_of(arm.init)
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
        """Of dimensions; whether imported weights fit is found when their run reads them."""
        own = self.networks[init].dims if init in self.networks else None
        if transfer == "inflate" and (self.network.dims == 2 or own == 3):
            return (
                f"inflate brings weights of a 2D network into a 3D one, and {init} is of "
                f"{own or 2}D, the study of {self.network.dims}D"
            )
        if transfer != "inflate" and own == 2 and self.network.dims == 3:
            return f"{init} is of a 2D network, which `transfer: inflate` brings into a 3D one"
        return ""
