"""Find photos by a sentence, by a photo or by an intent: embeddings and probabilities of many photos, kept on disk.

    DIR/index.json            which generation holds, and the model
    DIR/g-000001/photos.parquet   path, stamp, probabilities, embedding; a row a photo
    DIR/g-000001/errors.parquet   photos that could not be read
    DIR/g-000001/vectors.faiss    the embeddings, searchable; ids are rows of photos.parquet
    DIR/work/                 a batch job over photos that are new, while it runs

`index` makes and updates one, `vectors` is FAISS, `query` asks.
"""
