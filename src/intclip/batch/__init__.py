"""Predict any number of photos to Parquet shards, in one process or with Ray, resumable.

    DIR/manifest.json     description of the job: source, model, shard ranges
    DIR/inputs.parquet    every photo's path, one row group per shard
    DIR/shards/           part-0000000.parquet …, each written atomically
    DIR/progress.json     progress of a running job
    DIR/duplicates.parquet  with deduplication: duplicates

`references` lists a source's photos, `job` plans and reads a job, `mapper` computes a shard (for both runners),
`run` drives the job, `check` verifies it, `duplicates` marks duplicates.
"""
