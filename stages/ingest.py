"""Stage ingest: pack the drops of the ledger into shards; write the tables of people and samples."""

from csdn.runtime.process import run_stage


def main() -> None:
    # Imported here: each worker process imports this file again, and needs none of these modules.
    from csdn.runtime.console import stage

    with stage("ingest") as progress:
        from csdn.ingest.counts import summary_lines
        from csdn.ingest.ledger import read_ledger
        from csdn.ingest.run import ingest
        from csdn.params import load_params
        from csdn.runtime.sanitize import escape_control_chars

        params = load_params()
        if params.scaling.workers:
            from csdn.cluster.ingest import packed_on_ray

            packer = packed_on_ray(params.scaling)
        else:
            from csdn.ingest.pack import packed_shards as packer
        notes: list[str] = []
        with progress("ingest", "images") as report:
            figures = ingest(
                read_ledger(),
                data=params.data,
                settings=params.ingest,
                minimum_people=params.embedding.identities_per_batch,
                packer=packer,
                progress=report,
                note=notes.append,
            )
        print(*map(escape_control_chars, notes + summary_lines(figures)), sep="\n")


if __name__ == "__main__":
    run_stage(main, "ingest", reduce="ingest.max_pixels")
