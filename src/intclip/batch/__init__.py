"""Predictions of any number of photos as Parquet shards: by one process or by Ray, resumable, each photo once.

    DIR/manifest.json     what the job is: source, model, shard ranges
    DIR/inputs.parquet    every photo's path, a row group a shard
    DIR/shards/           part-0000000.parquet …, each written beside and renamed
    DIR/progress.json     how far a running job is
    DIR/duplicates.parquet  with deduplication: which photos repeat which

`references` says which photos a source names, `job` plans and reads a job, `mapper` does one shard (both engines call
it), `run` drives it, `check` verifies it, `duplicates` marks repeats.
"""
