"""Everything that page.html.j2 shows, made of what the stages wrote."""

from __future__ import annotations

from typing import Any

from csdn.evaluation.summary import notes
from csdn.params import Params
from csdn.report import facts, words
from csdn.report.ablation import ablation_shown
from csdn.report.cameras import camera_grids
from csdn.report.confusions import confusions
from csdn.report.distances import distance_panels
from csdn.report.figures import LOW, NARROW, SMALL, line_chart
from csdn.report.gallery import Gallery
from csdn.report.inputs import ReportInputs
from csdn.report.losses import loss_curves
from csdn.report.naming import naming_bars, naming_words
from csdn.report.next_steps import Evidence, next_steps
from csdn.report.png import Drawn
from csdn.report.projection import planes, scatter
from csdn.report.ranked_lists import ranked_lists
from csdn.report.results import cmc_curves, direction_results
from csdn.report.text_overlays import text_maps_shown
from csdn.report.training_rules import phase_losses, train_image_counts


def drawn_figures(inputs: ReportInputs) -> Drawn:
    """The figures that are on the page and in PNG files."""
    table = inputs.dataset.test_table()
    shown, people = planes(inputs.features, table, inputs.dataset)
    return Drawn(
        cmc=cmc_curves(inputs.cmc),
        losses=loss_curves(inputs.prompts_log, inputs.embedding_log),
        distances=distance_panels(inputs.features, table),
        grids=camera_grids(inputs.camera_pairs),
        naming=naming_bars(inputs.naming),
        planes=shown,
        people=people,
    )


def context(params: Params, inputs: ReportInputs, drawn: Drawn) -> dict[str, Any]:
    """The template's values, by section."""
    return {
        **_head(params, inputs),
        **_retrieval(params, inputs, drawn),
        **_features(drawn),
        **_training(inputs, drawn),
        "ablation": ablation_shown(inputs.ablation, params, inputs.data_md5),
        **_data(params, inputs),
        "steps": next_steps(_evidence(params, inputs)),
    }


def _head(params: Params, inputs: ReportInputs) -> dict[str, Any]:
    figures = inputs.evaluation
    return {
        "opening": words.opening(figures),
        "order": words.order(figures),
        "directions": direction_results(figures),
        "trials": params.evaluation.trials,
        "notes": notes(figures["counts"]),
        "protocol": params.evaluation.described(),
        "clip": inputs.model["model"]["clip"],
        "test_people": inputs.ingest["people"]["test"],
    }


def _retrieval(params: Params, inputs: ReportInputs, drawn: Drawn) -> dict[str, Any]:
    gallery = Gallery(inputs.dataset.test_table(), inputs.dataset, inputs.shards, inputs.features["trained"])
    return {
        "cmc": [line_chart(curves) for curves in drawn.cmc],
        "lists": ranked_lists(inputs.queries, params.report.queries, gallery),
        "confusions": confusions(inputs.queries, params.report.queries, gallery),
        "grids": drawn.grids,
        "pairs_left_out": words.pairs_left_out(inputs.evaluation),
    }


def _features(drawn: Drawn) -> dict[str, Any]:
    shares = [(plane.between_people, plane.between_modalities) for plane in drawn.planes]
    return {
        "distances": [
            (panel, [line_chart(curves, LOW) for curves in panel.curves]) for panel in drawn.distances
        ],
        "separation": words.separation({panel.kind: panel.areas for panel in drawn.distances}),
        "scatters": [scatter(plane) for plane in drawn.planes],
        "scatter_people": drawn.people,
        "variance": words.variance(*shares) if shares else "",
    }


def _training(inputs: ReportInputs, drawn: Drawn) -> dict[str, Any]:
    people = inputs.ingest["people"]["train"]
    gallery = Gallery(inputs.dataset.train_table(), inputs.dataset, inputs.shards)
    return {
        "losses": {
            "whole": [line_chart(curves, SMALL) for curves in drawn.losses if len(curves.series) == 1],
            "terms": [line_chart(curves, NARROW) for curves in drawn.losses if len(curves.series) > 1],
        },
        "naming": drawn.naming,
        "naming_words": naming_words(inputs.naming, people),
        "maps": text_maps_shown(inputs.text_map_images, inputs.text_maps, gallery),
    }


def _data(params: Params, inputs: ReportInputs) -> dict[str, Any]:
    return {
        "data": facts.data_rows(inputs.ingest),
        "remarks": facts.data_remarks(inputs.ingest),
        "cameras": facts.camera_counts(inputs.ingest),
        "more_cameras": facts.more_cameras(inputs.ingest),
        "quarantine": facts.quarantine(inputs.quarantine),
        "parameters": facts.parameter_groups(params),
        "versions": facts.versions(),
        "clip_hash": inputs.model["model"]["clip_sha256"],
        "data_hash": inputs.data_hash,
    }


def _evidence(params: Params, inputs: ReportInputs) -> Evidence:
    table = inputs.dataset.train_table()
    return Evidence(
        figures=inputs.evaluation,
        camera_pairs=inputs.camera_pairs,
        queries=inputs.queries,
        naming=inputs.naming,
        losses=phase_losses(inputs.prompts_log, inputs.embedding_log),
        train_images=train_image_counts(table.label, table.modality),
        images_of_batch=params.embedding.images,
        refused=inputs.ingest["quarantined"],
        images=len(inputs.dataset.samples) + inputs.quarantine.num_rows,
    )
