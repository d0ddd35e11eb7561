"""Stage ingest: the drops of the ledger -> shards, index, people, samples."""

from csdn.process import quick_imports, run_stage


def main() -> None:
    # Imported here: each worker process imports this file again, and needs none of it.
    from csdn.console import stage

    with stage("ingest") as progress:
        with quick_imports():
            from csdn.data.drops import read_ledger
            from csdn.data.ingest import ingest
            from csdn.data.summary import summary_lines
            from csdn.params import load_params
            from csdn.safe import printable

        params = load_params()
        if params.scaling.workers:
            from csdn.cluster.packing import packed_on_ray

            packer = packed_on_ray(params.scaling)
        else:
            from csdn.data.packing import packed_shards as packer
        notes: list[str] = []
        with progress("ingest", "images") as report:
            figures = ingest(
                read_ledger(),
                data=params.data,
                settings=params.ingest,
                minimum_people=params.embedding.people,
                packer=packer,
                progress=report,
                note=notes.append,
            )
        print(*map(printable, notes + summary_lines(figures)), sep="\n")


if __name__ == "__main__":
    run_stage(main, "ingest", lower="ingest.max_pixels")
