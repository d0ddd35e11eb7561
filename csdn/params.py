"""What pydantic finds wrong with a file, as lines for its author: the key, its value, and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from csdn.runtime.documents import check_values, read_yaml
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import has_credentials

SHOWN = 200  # characters of a wrong value


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each mistake in what was to be a `model`."""
    return [f"  {_mistake(one, model)}" for one in error.errors()]


def _mistake(error: Any, model: type[BaseModel]) -> str:
    location, kind = error["loc"], error["type"]
    key = ".".join(map(str, location))
    if kind == "extra_forbidden":
        allowed = _model_at(location[:-1], model).model_fields
        near = "".join(f"the nearest is {one}; " for one in get_close_matches(str(location[-1]), allowed, 1))
        return f"{key}: unknown key; {near}allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "model_type" and not location:
        return "the file is no mapping; expected the keys " + ", ".join(model.model_fields)
    message = error["msg"].removeprefix("Value error, ")
    if not location:
        return message
    # A credential is what must not be shown; what is wrong with a whole section names its values itself.
    if kind == "credentials" or isinstance(error["input"], dict):
        return f"{key}: {message}"
    given = repr(error["input"])
    return f"{key} = {given if len(given) <= SHOWN else given[:SHOWN] + '...'}: {message}"


def _model_at(location: tuple[Any, ...], model: type[BaseModel]) -> type[BaseModel]:
    """The model of the section at a place below `model`; it may be one that can be None."""
    for name in location:
        annotation = model.model_fields[name].annotation
        (model,) = (one for one in get_args(annotation) or [annotation] if one is not type(None))
    return model


# `params.yaml` as validated values: read once, handed down typed.
#
# Every section is one stage's or one concern's; DVC tracks the same sections (see dvc.yaml). A mistake stops
# before anything runs, with the key, the value and what is allowed.


def _no_credentials(address: str) -> str:
    if has_credentials(address):
        raise PydanticCustomError("credentials", "a key or password is in it; keys belong in the environment")
    return address


def _in_a_store(address: str) -> str:
    if not re.fullmatch(r"s3://[^/]+(/.*)?", address):
        raise ValueError("not an address of an object store; it is s3://bucket/prefix")
    return address


def _rising(ends: list[int]) -> list[int]:
    if ends[0] >= ends[1]:
        raise ValueError("the first value (black) must be below the second (white)")
    return ends


Address = Annotated[str, AfterValidator(_no_credentials)]
StoreAddress = Annotated[str, AfterValidator(_no_credentials), AfterValidator(_in_a_store)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Grey16 = Annotated[int, Field(ge=0, le=65535)]
Grey16Range = Annotated[list[Grey16], Field(min_length=2, max_length=2), AfterValidator(_rising)]
MOST_PIXELS = 178_956_970  # Pillow opens nothing larger


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataParams(Section):
    """Who is a test person, and by which name people are known (csdn.ingest.identities)."""

    split_salt: str
    test_percent: Annotated[int, Field(ge=1, le=99)]
    aliases: str
    trial: Annotated[int, Field(ge=1, le=10)] = 1  # which of RegDB's ten splits


class IngestParams(Section):
    watch: list[Address] = []
    store: StoreAddress | None = None
    max_bad_fraction: Fraction
    max_pixels: Annotated[int, Field(ge=1, le=MOST_PIXELS)]
    shard_megabytes: Count
    grey16_range: dict[str, Grey16Range] = {}  # by camera; "*": every other (csdn.ingest.grey16)


class ModelParams(Section):
    clip: str
    weights: str
    pretrained: str | None = None
    image_size: Annotated[list[Count], Field(min_length=2, max_length=2)]
    stem: Literal["clip", "published"]
    normalize: Literal["imagenet", "clip"]
    integration: Literal["sii", "sum", "concat", "visible", "infrared", "shared"]


class PhaseParams(Section):
    """One phase of stage 1; the learning rate is `csdn.training.schedules.warmup_cosine`."""

    epochs: Count
    batch_size: Count
    learning_rate: Positive
    warmup_learning_rate: Positive
    final_learning_rate: Positive
    warmup_epochs: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    lr_update: Literal["epoch", "step"]

    @model_validator(mode="after")
    def _warm_up_ends(self) -> PhaseParams:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is longer than epochs {self.epochs}")
        return self


class PromptsParams(Section):
    tokens: PhaseParams
    integration: PhaseParams


class ScheduleParams(Section):
    """Factor on the learning rates of stage 2 (csdn.training.schedules.lr_multiplier)."""

    kind: Literal["steps", "cosine"]
    lr_update: Literal["epoch", "step"]
    warmup_epochs: Annotated[float, Field(ge=0)]
    warmup_factor: Fraction
    milestones: list[Annotated[float, Field(gt=0)]] = []
    gamma: Fraction = 0.1

    @model_validator(mode="after")
    def _milestones_rise(self) -> ScheduleParams:
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must rise, each once")
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
    """Training from a champion: these replace the section embedding's (csdn.training.warm_start)."""

    prompts: Literal["new", "all"]
    epochs: Count
    learning_rate: Positive
    head_learning_rate: Positive


class TrainingParams(Section):
    """How stage 2 computes, on any machine."""

    precision: Literal["float32", "tf32", "bf16"]


class EvaluationParams(Section):
    protocol: Literal["cameras", "sysu", "sysu_official", "regdb", "llcm", "llcm_swapped"]
    trials: Count
    mode: Literal["all", "indoor"] | None = None
    shots: Literal[1, 10] | None = None
    flip_tta: bool
    batch_size: Count

    @model_validator(mode="after")
    def _options_are_the_protocols(self) -> EvaluationParams:
        for name in ("mode", "shots"):
            if getattr(self, name) is not None and not self.protocol.startswith("sysu"):
                raise ValueError(f"{name} is for sysu and sysu_official; leave it empty for {self.protocol}")
        if self.protocol == "regdb" and self.trials != 1:
            raise ValueError(
                "trials must be 1: regdb draws nothing; its ten trials are ten models (data.trial)"
            )
        if self.protocol == "sysu_official" and self.trials > 10:
            raise ValueError(f"trials {self.trials}: the authors of SYSU-MM01 drew 10 galleries")
        return self

    def described(self) -> str:
        """The protocol with what makes it another experiment, as in "sysu, indoor, 10-shot"."""
        shots = self.shots and f"{self.shots}-shot"
        return ", ".join(filter(None, (self.protocol, self.mode, shots)))

    def options(self) -> dict[str, Any]:
        """What `csdn.evaluation.protocol` takes besides name and index."""
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


class GateParams(Section):
    """The rule by which a candidate becomes the champion (csdn.retraining.gate)."""

    rank1_margin: Annotated[float, Field(ge=0, le=100)]
    map_margin: Annotated[float, Field(ge=0, le=100)]
    max_pair_drop: Annotated[float, Field(gt=0, le=100)]
    min_people: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    bootstrap_samples: Annotated[int, Field(ge=100)]

    def margin_of(self, metric: str) -> float:
        """Of "rank1" or "mAP", in points."""
        return self.map_margin if metric == "mAP" else self.rank1_margin


class ScalingParams(Section):
    """How fast, never what: none of these is part of a state key, but threads change the last digits."""

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


class RegistryParams(Section):
    """Where promoted models are (csdn.retraining)."""

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
    def _batches_can_be_split(self) -> Params:
        people, workers = self.embedding.identities_per_batch, self.scaling.workers
        if workers and people % workers:
            raise ValueError(
                f"embedding.identities_per_batch = {people} cannot be split over scaling.workers = {workers}: "
                "choose a number of workers that divides it"
            )
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a file; raises UserError naming each wrong key, its value and what is allowed."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; run the command in the project's root folder")
    return parse_params(read_yaml(path), source=str(path))


def parse_params(raw: Any, source: str = "parameters") -> Params:
    """Validate a mapping as Params; `source` names it in the error."""
    check_values(
        raw, source
    )  # it may come from elsewhere than a file that was read by csdn.runtime.documents
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join([f"{source}: not usable", *mistakes(error, Params)])) from None


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of what nested mappings hold in the end."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
