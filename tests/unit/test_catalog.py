"""The tables of `data/`: what is read of them, and that their bytes do not depend on how they are written."""

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from feed_data import train_source, write_data

from csdn.data.catalog import (
    ROW_GROUP,
    SAMPLES_SCHEMA,
    load_dataset,
    read_facts,
    read_table,
    take_rows,
    write_batches,
    write_table,
)
from csdn.data.loader import TrainLoader
from csdn.runtime.errors import UserError


def overwrite(path, column):
    """Replace the stored values of a column by zeros."""
    chunk = pq.read_metadata(path).row_group(0).column(SAMPLES_SCHEMA.get_field_index(column))
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)


@pytest.mark.parametrize("unused", ["path", "drop", "places"])
def test_training_reads_no_column_that_it_does_not_need(tmp_path, unused):
    table = write_data(tmp_path)
    overwrite(tmp_path / "samples.parquet", unused)
    again = load_dataset(tmp_path).train_table()
    assert again.digest.tolist() == table.digest.tolist()
    with pytest.raises(UserError, match=r"samples\.parquet is damaged"):
        read_table(tmp_path / "samples.parquet", SAMPLES_SCHEMA)


@pytest.mark.parametrize("used", ["key", "shard", "offset", "person_row"])
def test_a_damaged_column_is_an_error_that_names_the_file(tmp_path, used):
    write_data(tmp_path)
    overwrite(tmp_path / "samples.parquet", used)
    with pytest.raises(UserError, match=r"samples\.parquet is damaged"):
        load_dataset(tmp_path).train_table()


def test_a_missing_column_is_an_error_that_names_it(tmp_path):
    write_data(tmp_path)
    path = tmp_path / "samples.parquet"
    write_table(path, read_table(path, SAMPLES_SCHEMA).drop_columns("camera"))
    with pytest.raises(UserError, match=r"samples\.parquet is damaged \(there is no column camera\)"):
        load_dataset(tmp_path)


def test_a_process_of_the_loader_gets_only_where_the_images_are(tmp_path):
    """Shard 4, offset 8, size 8, kind 1 and hash 32: 53 bytes an image, not its label or its camera."""
    table, images = write_data(tmp_path), 100_000
    columns = {name: column for name, column in vars(table).items() if isinstance(column, np.ndarray)}
    large = replace(table, **{name: np.resize(column, images) for name, column in columns.items()})
    loader = TrainLoader(train_source(large, tmp_path / "shards"), processes=0)
    sent = pickle.dumps(loader.batches.loader.dataset)
    assert 53 * images < len(sent) < 54 * images


@pytest.mark.parametrize("rows", [0, 5, ROW_GROUP, ROW_GROUP + 5])
def test_a_tables_bytes_do_not_depend_on_how_its_rows_arrive(tmp_path, rows):
    numbers = np.arange(rows)
    table = pa.table({"number": numbers, "text": pa.array(numbers % 1000).cast(pa.string())})
    write_table(tmp_path / "whole", table, {"a": 1})
    write_batches(tmp_path / "parts", table.schema, table.to_batches(max_chunksize=300_001), {"a": 1})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    plain = table.replace_schema_metadata({"csdn_index_version": "3", "csdn_facts": '{"a": 1}'})
    pq.write_table(plain, tmp_path / "plain", compression="zstd")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "whole").read_bytes()
    assert read_facts(tmp_path / "parts") == {"a": 1}


def test_rows_are_taken_by_number(tmp_path):
    table = pa.table({"number": np.arange(300_000), "other": np.zeros(300_000)})
    write_table(tmp_path / "table", table)
    chosen = np.array([0, 3, 131_071, 131_072, 299_999])
    found = take_rows(ds.dataset(tmp_path / "table"), ["number"], chosen)
    assert found.to_pydict() == {"number": chosen.tolist()}
    assert take_rows(ds.dataset(tmp_path / "table"), ["number"], chosen[:0]).num_rows == 0
