"""metrics/ablation.json: the ablation's table as it was measured, with what it was measured on.

The project ships it without a table: what the report shows is what was measured where it stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from csdn.ablation import FIGURES, VARIANTS, Experiment, Line, experiment_name, lines
from csdn.documents import read_json
from csdn.errors import UserError
from csdn.files import write_json

FORMAT = 1
# Sections and keys of params.yaml that are the run's own, or that the data's hash stands for.
_LEFT_OUT = ("seed", "ingest", "report", "scaling", "warm", "gate", "retrain", "registry")
_PROVENANCE = ("commit", "data", "protocol", "test_people", "parameters")


@dataclass(frozen=True)
class Table:
    """The variants over their seeds, and what all of their experiments had in common."""

    lines: Sequence[Line]
    commit: str
    data: str  # MD5 of data/samples.parquet
    protocol: str
    test_people: int
    parameters: Mapping[str, Any]  # by dotted key, without those that a variant changes in all experiments


def measured_table(commit: str, experiments: Sequence[Experiment]) -> Table:
    """The experiments of a commit (one at least) as a table.

    Raises UserError where they had other parameters or data than one another, beside what the variants
    change: they have no common table.
    """
    first, common = experiments[0], {}
    for one in experiments:
        if one.data != first.data:
            raise _unlike(first, one, "data", first.data[:12], one.data[:12])
        for key, value in _decisive(one.parameters, VARIANTS[one.variant]).items():
            owner, known = common.setdefault(key, (one, value))
            if known != value:
                raise _unlike(owner, one, key, known, value)
    parameters = {key: value for key, (_, value) in common.items()}
    return Table(
        lines=lines(experiments),
        commit=commit,
        data=first.data,
        protocol=parameters["evaluation.protocol"],
        test_people=first.test_people,
        parameters=parameters,
    )


def _decisive(parameters: Mapping[str, Any], without: Mapping[str, Any] = {}) -> dict[str, Any]:
    return {
        key: value
        for key, value in parameters.items()
        if key.partition(".")[0] not in _LEFT_OUT and key not in without
    }


def _unlike(one: Experiment, other: Experiment, what: str, value: object, other_value: object) -> UserError:
    names = [experiment_name(run.variant, run.seed) for run in (one, other)]
    return UserError(
        f"{names[0]} ran with {what} = {value}, {names[1]} with {other_value}; they have no common table: "
        "queue them again on what should be measured (csdn ablation, dvc exp run --run-all)"
    )


def other_parameters(table: Table, parameters: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs: key -> (the table's, that of `parameters`)."""
    return {
        key: (table.parameters[key], value)
        for key, value in _decisive(parameters).items()
        if key in table.parameters and table.parameters[key] != value
    }


def data_hash(samples: Path) -> str:
    """The hash by which DVC knows the file (MD5)."""
    with samples.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def write_table(path: Path, table: Table) -> None:
    variants = [
        {
            "variant": line.variant,
            "seeds": list(line.seeds),
            "figures": {name: {"mean": mean, "std": std} for name, (mean, std) in line.figures.items()},
        }
        for line in table.lines
    ]
    provenance = {name: getattr(table, name) for name in _PROVENANCE}
    write_json(path, {"format": FORMAT, "measured": {**provenance, "variants": variants}})


def read_table(path: Path) -> Table | None:
    """The table of a file; None where it holds none, or is not there. Raises UserError for anything else."""
    if not path.exists():
        return None
    try:
        found = _File.model_validate(read_json(path)).measured
    except ValidationError as error:
        fault = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    except UserError as error:
        raise _damaged(path, str(error)) from None
    if found is None:
        return None
    return Table(
        [_line(variant) for variant in found.variants],
        **found.model_dump(exclude={"variants"}),
    )


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: not a table of the ablation ({reason}); write it again with `csdn table --out {path}`, "
        f"or take back what Git has: git checkout -- {path}"
    )


def _line(variant: _Variant) -> Line:
    # In the order of FIGURES: the file's is alphabetical.
    figures = {
        name: (variant.figures[name].mean, variant.figures[name].std)
        for name in FIGURES
        if name in variant.figures
    }
    return Line(variant.variant, tuple(variant.seeds), figures)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Figure(_Part):
    mean: Annotated[float, Field(ge=0, le=100)]
    std: Annotated[float, Field(ge=0)] | None


class _Variant(_Part):
    variant: str
    seeds: Annotated[list[int], Field(min_length=1)]
    figures: dict[Literal["ir_to_vis.rank1", "ir_to_vis.mAP", "vis_to_ir.rank1", "vis_to_ir.mAP"], _Figure]


class _Measured(_Part):
    commit: str
    data: str
    protocol: str
    test_people: int
    parameters: dict[str, Any]
    variants: Annotated[list[_Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def _same_figures(self) -> _Measured:
        if len({tuple(sorted(variant.figures)) for variant in self.variants}) > 1:
            raise ValueError("the variants have different figures")
        return self


class _File(_Part):
    format: Literal[1]
    measured: _Measured | None
