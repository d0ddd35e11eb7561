"""params.yaml as validated values: read once, then handed down typed.

One section for each stage or concern; dvc.yaml tracks the same sections. A mistake is reported before
anything runs, with the key, the value and what is allowed. No default and no conversion here changes a
result: DVC tracks the values in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML

from csdn.runtime.documents import check_values, read_yaml
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write
from csdn.runtime.sanitize import has_credentials

SHOWN_CHARACTERS = 200  # of a wrong value in an error
MAX_PIXELS = 178_956_970  # Pillow opens no larger image


def _no_credentials(address: str) -> str:
    if has_credentials(address):
        raise PydanticCustomError(
            "credentials", "it has a key or password in it; keys belong in the environment"
        )
    return address


def _store_address(address: str) -> str:
    if not re.fullmatch(r"(s3|gs|az|memory)://[^/]+(/.*)?", address):
        raise ValueError("not an address of an object store; expected s3://bucket/prefix (or gs://, az://)")
    return address


def _black_below_white(ends: list[int]) -> list[int]:
    if ends[0] >= ends[1]:
        raise ValueError("the first value (black) must be below the second (white)")
    return ends


Address = Annotated[str, AfterValidator(_no_credentials)]
StoreAddress = Annotated[str, AfterValidator(_no_credentials), AfterValidator(_store_address)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Grey16 = Annotated[int, Field(ge=0, le=65535)]
Grey16Range = Annotated[list[Grey16], Field(min_length=2, max_length=2), AfterValidator(_black_below_white)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataParams(Section):
    """The split into training and test people, and aliases of labels (csdn.ingest.identities)."""

    split_salt: str
    test_percent: Annotated[int, Field(ge=1, le=99)]
    aliases: str
    trial: Annotated[int, Field(ge=1, le=10)]  # which of RegDB's ten splits


class IngestParams(Section):
    watch: list[Address] = []
    store: StoreAddress | None = None
    max_bad_fraction: Fraction
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)]
    shard_megabytes: Annotated[int, Field(ge=1, le=2048)]
    trust_suggestions: bool  # unconfirmed ones, of `csdn suggest`
    grey16_range: dict[str, Grey16Range] = {}  # by camera; "*": all others (csdn.ingest.pack)


class ModelParams(Section):
    clip: str
    weights: str
    pretrained: str | None = None
    image_size: Annotated[list[Count], Field(min_length=2, max_length=2)]
    stem: Literal["clip", "published"]
    normalize: Literal["imagenet", "clip"]
    integration: Literal["sii", "sum", "concat", "visible", "infrared", "shared"]


class PhaseParams(Section):
    """One phase of stage 1; its learning rate follows `csdn.training.schedules.warmup_cosine`."""

    epochs: Count
    batch_size: Count
    learning_rate: Positive
    warmup_learning_rate: Positive
    final_learning_rate: Positive
    warmup_epochs: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    lr_update: Literal["epoch", "step"]

    @model_validator(mode="after")
    def _warmup_fits(self) -> PhaseParams:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is longer than epochs {self.epochs}")
        return self


class PromptsParams(Section):
    tokens: PhaseParams
    integration: PhaseParams


class ScheduleParams(Section):
    """The multiplier of stage 2's learning rates (csdn.training.schedules.lr_multiplier)."""

    kind: Literal["steps", "cosine"]
    lr_update: Literal["epoch", "step"]
    warmup_epochs: Annotated[float, Field(ge=0)]
    warmup_factor: Fraction
    milestones: list[Annotated[float, Field(gt=0)]] = []
    gamma: Fraction

    @model_validator(mode="after")
    def _milestones_rise(self) -> ScheduleParams:
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must increase")
        return self


class LossWeights(Section):
    identity: Annotated[float, Field(ge=0)]
    msel: Annotated[float, Field(ge=0)]
    triplet: Annotated[float, Field(ge=0)]
    hse_visible: Annotated[float, Field(ge=0)]
    hse_infrared: Annotated[float, Field(ge=0)]


class EmbeddingParams(Section):
    epochs: Count
    identities_per_batch: Annotated[int, Field(ge=2)]
    images_per_identity: Annotated[int, Field(ge=2)]
    padding: Annotated[int, Field(ge=0)]
    learning_rate: Positive
    head_learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: ScheduleParams
    losses: LossWeights


class WarmParams(Section):
    """Training from the champion: these replace values of `embedding` (csdn.training.warm_start)."""

    prompts: Literal["new", "all"]
    epochs: Count
    learning_rate: Positive
    head_learning_rate: Positive


class TrainingParams(Section):
    """Arithmetic and kernels of all stages (csdn.model.device); with_precision replaces "auto"."""

    precision: Literal["auto", "float32", "tf32", "bf16"]
    deterministic: bool
    compile: bool


class EvaluationParams(Section):
    protocol: Literal["cameras", "sysu", "sysu_official", "regdb", "llcm", "llcm_swapped"]
    trials: Count
    mode: Literal["all", "indoor"] | None = None
    shots: Literal[1, 10] | None = None
    flip_tta: bool
    rerank: bool
    batch_size: Count
    max_queries: Count | None = None

    @model_validator(mode="after")
    def _options_fit_the_protocol(self) -> EvaluationParams:
        for name in ("mode", "shots"):
            if getattr(self, name) is not None and not self.protocol.startswith("sysu"):
                raise ValueError(f"{name} is for sysu and sysu_official; leave it empty for {self.protocol}")
        if self.protocol == "regdb" and self.trials != 1:
            raise ValueError(
                "trials must be 1: regdb draws no galleries; its ten trials are ten models (data.trial)"
            )
        if self.protocol == "sysu_official" and self.trials > 10:
            raise ValueError(f"trials {self.trials}: the authors of SYSU-MM01 drew 10 galleries")
        return self

    def described(self) -> str:
        """The protocol with its mode and shots, as in "sysu, indoor, 10-shot"."""
        shots = self.shots and f"{self.shots}-shot"
        return ", ".join(filter(None, (self.protocol, self.mode, shots)))

    def options(self) -> dict[str, Any]:
        """The arguments of `csdn.evaluation.protocol` besides name and index."""
        given = {"trials": self.trials, "mode": self.mode, "shots": self.shots}
        if self.protocol == "regdb":
            del given["trials"]
        return {name: value for name, value in given.items() if value is not None}


class ReportParams(Section):
    queries: Count
    store: StoreAddress | None = None


class RetrainParams(Section):
    """How much new data starts a retraining (csdn.retraining.trigger)."""

    images: Count
    people: Count
    days: Count
    drift: bool
    blame_runs: Annotated[int, Field(ge=0)]


class GateParams(Section):
    """When a candidate replaces the champion (csdn.retraining.gate)."""

    rank1_margin: Annotated[float, Field(ge=0, le=100)]
    map_margin: Annotated[float, Field(ge=0, le=100)]
    max_pair_drop: Annotated[float, Field(gt=0, le=100)]
    min_people: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    bootstrap_samples: Annotated[int, Field(ge=100)]
    memory: Annotated[int, Field(ge=0)]

    def margin_of(self, metric: str) -> float:
        """The margin of "rank1" or "mAP", in percentage points."""
        return self.map_margin if metric == "mAP" else self.rank1_margin


class CacheParams(Section):
    """Shards of an object store on the local disk of each machine (csdn.data.shard_cache); 0: none."""

    folder: str | None = None
    gigabytes: Annotated[float, Field(ge=0)] = 50.0


class ScalingParams(Section):
    """Speed and resources. No state key and no stage depends on them; threads change the last digits only."""

    workers: Annotated[int, Field(ge=0)]
    threads: Annotated[int, Field(ge=0)]
    loader_workers: Annotated[int, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda"]
    address: Address | None = None
    use_gpu: bool = False
    cpus_per_worker: Count = 1
    checkpoint_dir: Address | None = None
    max_failures: Annotated[int, Field(ge=0)] = 3
    checkpoint_seconds: Annotated[int, Field(ge=0)] = 600
    cache: CacheParams = CacheParams()


class RegistryParams(Section):
    """The branch that promotions move (csdn.retraining)."""

    branch: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")]


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    data: DataParams
    ingest: IngestParams
    model: ModelParams
    prompts: PromptsParams
    embedding: EmbeddingParams
    warm_start: WarmParams
    training: TrainingParams
    evaluation: EvaluationParams
    report: ReportParams
    retrain: RetrainParams
    gate: GateParams
    scaling: ScalingParams
    registry: RegistryParams

    @model_validator(mode="after")
    def _compiled_by_one_worker(self) -> Params:
        if self.training.compile and self.scaling.workers > 1:
            raise ValueError(
                f"training.compile = true with scaling.workers = {self.scaling.workers} was never tried: "
                "set compile to false, or workers to 0 or 1"
            )
        return self

    @model_validator(mode="after")
    def _batches_can_be_split(self) -> Params:
        people, images = self.embedding.identities_per_batch, self.embedding.images_per_identity
        workers = self.scaling.workers
        if workers and people * images % workers:
            raise ValueError(
                f"embedding.identities_per_batch x images_per_identity = {people} x {images} cannot be split "
                f"over scaling.workers = {workers}: choose a number of workers that divides {people * images}"
            )
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a file; the UserError names each wrong key, its value and what is allowed."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; run the command in the project's root folder")
    return parse_params(read_yaml(path), source=str(path))


def parse_params(raw: Any, source: str = "parameters") -> Params:
    """Validate a mapping as Params; `source` names it in the error."""
    check_values(raw, source)  # for values that were not read by csdn.runtime.documents, such as overrides
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join([f"{source}: not usable", *mistakes(error, Params)])) from None


# ---- changes of the file, which keep its comments


@contextmanager
def edited(path: Path) -> Iterator[Any]:
    """Yield the file's nested mappings; what the block changes in them is written, all else is kept."""
    params = round_trip().load(path)
    before = deepcopy(params)
    yield params
    if params != before:
        with atomic_write(path) as temporary:
            round_trip().dump(params, temporary)


def round_trip() -> YAML:
    """A parser that keeps comments, order, quotes, blank lines and the spelling of numbers."""
    parser = YAML()
    parser.preserve_quotes = True
    parser.width = 4096
    return parser


def set_value(path: Path, key: str, value: Any) -> None:
    """Set one dotted key of a parameter file, in place."""
    *sections, last = key.split(".")
    with edited(path) as params:
        reduce(getitem, sections, params)[last] = value


# ---- errors


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each problem that pydantic found when it validated a `model`."""
    return [f"  {_mistake(problem, model)}" for problem in error.errors()]


def _mistake(error: Any, model: type[BaseModel]) -> str:
    location, kind = error["loc"], error["type"]
    key = ".".join(map(str, location))
    if kind == "extra_forbidden":
        allowed = _model_at(location[:-1], model).model_fields
        nearest = get_close_matches(str(location[-1]), allowed, 1)
        hint = f"the nearest is {nearest[0]}; " if nearest else ""
        return f"{key}: unknown key; {hint}allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "model_type" and not location:
        return "not a mapping; expected the keys " + ", ".join(model.model_fields)
    message = error["msg"].removeprefix("Value error, ")
    if not location:
        return message
    # Never show a credential. The message about a whole section contains the values already.
    if kind == "credentials" or isinstance(error["input"], dict):
        return f"{key}: {message}"
    value = repr(error["input"])
    return f"{key} = {value[:SHOWN_CHARACTERS]}{'...' * (len(value) > SHOWN_CHARACTERS)}: {message}"


def _model_at(location: tuple[Any, ...], model: type[BaseModel]) -> type[BaseModel]:
    """The model of the section at `location` below `model`, which may be optional."""
    for name in location:
        annotation = model.model_fields[name].annotation
        kinds: Sequence[Any] = get_args(annotation) or [annotation]
        (model,) = (kind for kind in kinds if kind is not type(None))
    return model


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
