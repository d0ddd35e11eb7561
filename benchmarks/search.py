"""Galleries and search, measured on features of rendered people: the figures of docs/search.md.

    python benchmarks/search.py              100,000 images: building, exact search, the index
    python benchmarks/search.py --large      1 million images through the index; 6,144 numbers a feature
    python benchmarks/search.py --others     the index beside hnswlib's, which is installed for this run alone

It needs the demo's model (`make demo`), or another one of csdn-small's size: --model FOLDER. The features of
100,000 images are computed once, in minutes, and kept in --cache. Queries are images that are not in the
gallery, of people who are. Recall is recall@10: the share of the ten nearest images of exact search that are
found.

Of the 1 million images 100,000 are rendered (--rendered). The others are distractors: normalised mixtures of
the features of two rendered images of different people. Features of 6,144 numbers are the rendered ones,
rotated into so many numbers at random: time and size are those of 6,144 numbers, the similarities are not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import faiss
import numpy as np
import torch
from machine import machine
from search_features import OF_PERSON, PART, Features, with_distractors

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from make_images import Project

from csdn.data.catalog import load_dataset
from csdn.data.features import extract_local
from csdn.evaluation.baselines import flipped
from csdn.evaluation.run import test_batches
from csdn.params import load_params
from csdn.search import index
from csdn.search.build import add_images, make_index, rows_of
from csdn.search.embedder import Embedder
from csdn.search.gallery import Gallery
from csdn.search.images import GalleryImage, list_images
from csdn.search.search import EXACT_UP_TO, Searcher
from csdn.synthetic.sets import write_images

IMAGES, LARGE, WIDE = 100_000, 1_000_000, 6_144
Mark = Callable[[int], None]

ROUNDS, SINGLE = 3, 200  # rounds of what is compared; queries that are searched one at a time
TOP = 10
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/embedding"), metavar="FOLDER")
    parser.add_argument("--cache", type=Path, default=Path("build/search"), metavar="FOLDER")
    parser.add_argument("--rendered", type=int, default=IMAGES, help="images of --large that are rendered")
    parser.add_argument("--images", type=int, default=LARGE, help="images of --large")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--others", action="store_true")
    options = parser.parse_args()
    embedder = Embedder.open(options.model, device="cpu")
    faiss.omp_set_num_threads(torch.get_num_threads())
    print(f"{date.today()}  {machine()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, FAISS {faiss.__version__}; features of {embedder.dimension} numbers\n")
    features = Features(embedder, options.cache)
    with tempfile.TemporaryDirectory(dir=options.cache) as name:
        if options.large:
            show_large(features, options.rendered, options.images, Path(name))
        elif options.others:
            show_others(features, Path(name))
        else:
            show_build(embedder, options.model, Path(name))
            show_exact(features, Path(name))


def show(what: str, value: str, aim: str = "") -> None:
    print(f"{what:52}{value:>16}{aim:>12}", flush=True)


# Building a gallery, beside the stage evaluate.


def show_build(embedder: Embedder, model: Path, folder: Path) -> None:
    """Images per second without the first batch, which includes the start of evaluation's processes."""
    write_images("demo", folder / "drop")
    project, params = Project(folder / "project"), load_params("params.yaml")
    project.add(folder / "drop")
    project.ingest(test_percent=90)
    batches = test_batches(load_dataset(project.data).test_table(), params, project.data)
    images = list_images(str(folder / "drop"), "visible").images
    network = embedder.network

    def evaluation(mark: Mark) -> None:
        embeds, done = {"trained": flipped(network.embed)}, 0
        for indices, _ in extract_local(batches, lambda device: embeds, params, embedder.device, 0):
            done += len(indices)
            mark(done)

    def gallery(mark: Mark) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            made = empty_gallery(Path(name) / "gallery", embedder.dimension)
            add_images(made, images, embedder, {}, lambda done, _: mark(done))

    pairs = [(rate(evaluation), rate(gallery)) for _ in range(ROUNDS)]
    slow, fast = (max(rates) for rates in zip(*pairs, strict=True))
    print(f"building a gallery, {len(images):,} images, best of {ROUNDS}")
    show("  evaluation embeds", f"{slow:.0f} images/s")
    show("  csdn gallery build", f"{fast:.0f} images/s")
    show("  ratio", f"{fast / slow:.2f}", ">= 1")


def rate(work: Callable[[Mark], None]) -> float:
    """Images per second; work calls mark(images done so far) after each batch."""
    marks: list[tuple[float, int]] = []
    work(lambda done: marks.append((time.perf_counter(), done)))
    ended = time.perf_counter()
    (began, first), (_, last) = marks[0], marks[-1]
    return (last - first) / (ended - began)


# Exact search, and the index, at 100,000.


def show_exact(features: Features, folder: Path) -> None:
    rendered = features.rendered(IMAGES)
    gallery = filled([rendered], folder / "gallery")
    searcher, queries = Searcher(gallery), features.queries("infrared").astype(np.float32)
    matrix, some = torch.from_numpy(rendered.astype(np.float32)), torch.from_numpy(queries)
    product = torch.empty(len(queries), len(matrix))
    times = [
        (
            seconds(lambda: torch.mm(some, matrix.T, out=product)),
            seconds(lambda: searcher.nearest(queries, TOP)),
        )
        for _ in range(ROUNDS + 1)
    ][1:]  # the first round is the warm-up
    bare, ours = (min(found) for found in zip(*times, strict=True))
    print(f"\nexact search of {len(queries):,} queries in {IMAGES:,} images, best of {ROUNDS}")
    show("  matrix product alone, float32", f"{bare:.2f} s")
    show("  exact search", f"{ours:.2f} s")
    show("  ratio", f"{ours / bare:.2f}", "<= 1.3")
    show("  one query", one_by_one(lambda query: searcher.search(query, TOP), queries), "< 150 ms")
    show_index(gallery, all_queries(features), aims=False)


# A large gallery, and features of many numbers.


def show_large(features: Features, rendered: int, images: int, folder: Path) -> None:
    kept = features.rendered(rendered)
    print(f"{images:,} images: {rendered:,} rendered, the others mixtures of two of them")
    gallery = filled(with_distractors(kept, images), folder / "large")
    show_index(gallery, all_queries(features), aims=True)
    print(f"\n{WIDE:,} numbers, {IMAGES:,} rendered images, rotated")
    rotate = rotation(kept.shape[1], WIDE)
    blocks = (kept[start : start + PART] @ rotate for start in range(0, IMAGES, PART))
    gallery = filled(blocks, folder / "wide")
    queries = {modality: own @ rotate for modality, own in all_queries(features).items()}
    searcher = Searcher(gallery)
    show("  one query, exact", one_by_one(lambda query: searcher.search(query, TOP), queries["infrared"]))
    show_index(gallery, queries, aims=False)


def rotation(dimension: int, wide: int) -> np.ndarray:
    """float32 [dimension, wide] with orthonormal rows: products of features stay what they are."""
    rng = np.random.default_rng(0)
    return np.ascontiguousarray(np.linalg.qr(rng.standard_normal((wide, dimension)))[0].T, np.float32)


def show_index(gallery: Gallery, queries: dict[str, np.ndarray], aims: bool) -> None:
    """Build the index; its size, recall and the time of a query through it."""
    print(f"\nindex of {len(gallery):,} images")
    took = seconds(lambda: make_index(gallery))
    show("  build", f"{took:.1f} s", "< 600 s" * aims)
    entry = gallery.manifest.index
    show("  file", f"{gallery.index_path(entry).stat().st_size / MIB:.0f} MiB")
    show(f"  recall of {entry.queries} images of the gallery (gallery info)", f"{entry.recall:.3f}")
    searcher = Searcher(gallery)
    for modality, own in queries.items():
        found = searcher.through(searcher.index, own, TOP)[1]
        exact = searcher.nearest(own, TOP, exact=True)[1]
        show(
            f"  recall of {len(own):,} new {modality} images", f"{recall(found, exact):.3f}", ">= 0.95" * aims
        )
    if len(gallery) > EXACT_UP_TO:
        took = one_by_one(lambda query: searcher.search(query, TOP), queries["infrared"])
    else:  # searched exactly, unless asked otherwise
        took = one_by_one(lambda query: searcher.through(searcher.index, query, TOP), queries["infrared"])
    show("  one query", took, "< 50 ms" * aims)


# The index beside hnswlib's.


def show_others(features: Features, folder: Path) -> None:
    """FAISS's inverted file with SQ8, by different numbers of clusters looked into, and hnswlib's graph."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "pip"),
    ]
    subprocess.run([*command, "hnswlib"], check=True)
    sys.path.append(str(folder / "pip"))
    import hnswlib

    rendered, queries = features.rendered(IMAGES), all_queries(features)["infrared"]
    gallery = filled([rendered], folder / "gallery")
    print(f"{IMAGES:,} images; one query at a time on one thread, of the new infrared images")
    cores = torch.get_num_threads()
    build = seconds(lambda: make_index(gallery))
    searcher = Searcher(gallery)
    exact = searcher.nearest(queries, TOP, exact=True)[1]
    size = gallery.index_path(gallery.manifest.index).stat().st_size
    print(f"\nFAISS, built in {build:.1f} s with its recall, {size / MIB:.0f} MiB")
    for probes in (16, 32, 64, 128):
        index.PROBES = probes
        found = searcher.through(searcher.index, queries, TOP)[1]
        took = one_by_one(lambda query: searcher.through(searcher.index, query, TOP), queries)
        show(f"  {probes} clusters: recall {recall(found, exact):.3f}", took)
    graph = hnswlib.Index("ip", rendered.shape[1])
    graph.init_index(IMAGES, M=16, ef_construction=200)
    build = seconds(lambda: graph.add_items(rendered, num_threads=cores))
    graph.save_index(str(folder / "hnsw"))
    size = (folder / "hnsw").stat().st_size
    print(f"\nhnswlib, built in {build:.1f} s, {size / MIB:.0f} MiB")
    graph.set_num_threads(1)
    for ef in (50, 100, 200, 400, 800):
        graph.set_ef(ef)
        found = graph.knn_query(queries, TOP)[0]
        took = one_by_one(lambda query: graph.knn_query(query, TOP), queries)
        show(f"  ef {ef}: recall {recall(found, exact):.3f}", took)


# What the measurements share.


def empty_gallery(folder: Path, dimension: int) -> Gallery:
    return Gallery.create(str(folder), "0" * 64, dimension, "float16", True)


def filled(blocks: Iterable[np.ndarray], folder: Path) -> Gallery:
    """A gallery of these features; each OF_PERSON images one after another are of one person."""
    gallery, count = None, 0
    for block in blocks:
        gallery = gallery or empty_gallery(folder, block.shape[1])
        numbers = range(count, count + len(block))
        images = [
            GalleryImage(f"/{n}.png", f"p{n // OF_PERSON}", "cam1", "visible", None, 0, bytes)
            for n in numbers
        ]
        gallery.add(block, rows_of(images, [bytes(32)] * len(images)))
        count += len(block)
    return gallery


def all_queries(features: Features) -> dict[str, np.ndarray]:
    return {modality: features.queries(modality).astype(np.float32) for modality in ("infrared", "visible")}


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([np.isin(*pair).mean() for pair in zip(exact, found, strict=True)]))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_by_one(search: Callable[[np.ndarray], object], queries: np.ndarray) -> str:
    """The median time of a query that is searched alone."""
    search(queries[:1])  # warm-up
    times = [seconds(lambda n=n: search(queries[n : n + 1])) for n in range(SINGLE)]
    return f"{np.median(times) * 1e3:.1f} ms"


if __name__ == "__main__":
    main()
