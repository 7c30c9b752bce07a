"""Search photos by a sentence, a photo or an intent, with embeddings and probabilities on disk.

    DIR/index.json            current generation, and the model
    DIR/g-000001/photos.parquet   path, stamp, probabilities, embedding; one row per photo
    DIR/g-000001/errors.parquet   photos that could not be read
    DIR/g-000001/vectors.faiss    the embeddings, searchable; ids are rows of photos.parquet
    DIR/work/                 a batch job over new photos, while it runs

`index` creates and updates an index, `vectors` wraps FAISS, `query` searches.
"""
