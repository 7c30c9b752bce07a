"""`Predictor`: predict, explain, export, quantise."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.data.images import ImageInput
from intclip.data.transforms import PhotoChange
from intclip.errors import IntclipError
from intclip.inference.card import ATTENTION_OUTPUT, CHANNEL_PREFIX, EMBEDDING, MAP_PREFIX, Channel, ModelCard
from intclip.inference.conflict import Conflict, find_conflict
from intclip.inference.engines import Arrays, Engine, EngineName, Precision, TorchEngine, prepare_forks
from intclip.inference.exported import Graph, check_format, check_suffix
from intclip.inference.pipeline import Images, Pixels, Post, Scored, Texts, expand, pair_posts, score_batch, score_posts
from intclip.inference.prediction import Prediction, Predictions

if TYPE_CHECKING:
    from intclip.evidence.evidence import Evidence
    from intclip.evidence.words import WordEvidence
    from intclip.inference.word_engine import WordEngine
    from intclip.methods.base import Method, WordUnit

Thresholds = float | Mapping[str, float] | Sequence[float] | npt.NDArray[np.floating[Any]]
"""One for all labels, K, or some by name (others keep the model's)."""
PHOTOS: tuple[Channel, ...] = ("image",)
"""The channels of a photo without text."""


def _call(reload: "Callable[[], Predictor]") -> "Predictor":
    return reload()


def untrained_note(backbone: str) -> str:
    """Return a note for zero-shot predictions of a small backbone."""
    return f"{backbone} is a small model that was not trained on these labels; treat its answers as guesses."


class Predictor:
    """Predicts intents of photos; created by `intclip.load`.

    Thread-safe.

    Args:
        card: Labels, preprocessing, thresholds.
        engine: Inference engine.
        graph: The converted model; None for torch.
        build: Builds the torch method; None for an exported file.
        precision: Precision of the engine.
        device: Device for torch.
        threads: Compute threads; default: all cores.
        metrics: Metrics of the training, as in its bundle.

    Attributes:
        card: Labels, preprocessing, thresholds.
        taxonomy: The K labels and their hierarchy.
        thresholds: (K,) float32, for posts with all channels of the model.
        channels: Channels that the model uses: "image", "text", or both.
        alone: Channels that suffice without the other.
        metrics: Metrics of the training by split, as in its bundle; empty if there are none.
        maps: Names of the evidence maps of `explain`: "sight", "semantic", "fused", or none.
        reload: Loads the same model again, as pickling does; None if it is only in memory.
        torch_lock: Held while the torch network computes, by engines and by other users of `method`.
    """

    def __init__(
        self,
        card: ModelCard,
        *,
        engine: EngineName,
        graph: Graph | None = None,
        build: "Callable[[], Method] | None" = None,
        precision: Precision = "f32",
        device: str = "auto",
        threads: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        self.card = card
        self.metrics = dict(metrics or {})
        self.taxonomy = card.read_taxonomy()
        self.thresholds = card.threshold_array()
        self.channels, self.alone = tuple(card.channels), tuple(card.alone)
        self.maps = tuple(card.maps)
        self.engine_name: EngineName = engine
        self.reload: Callable[[], Predictor] | None = None
        self._graph, self._build = graph, build
        self._precision, self._device, self._threads = precision, device, threads
        self._engines: dict[tuple[bool, bool], Engine] = {}
        self._method: Method | None = None
        self._words: WordEngine | None = None
        self._lock = threading.RLock()
        self.torch_lock = threading.Lock()

    def __repr__(self) -> str:
        labels = f"{len(self.taxonomy.names)} labels of {self.taxonomy.name}"
        return f"<Predictor {self.card.model}: {labels}, {self.engine_name}>"

    def __reduce__(self) -> tuple[Callable[..., "Predictor"], tuple[Any, ...]]:
        """Pickle the call of `intclip.load` instead of the model, so that another process loads it from the same place.

        Raises:
            IntclipError: The model was not loaded, but quantised in memory.
        """
        if self.reload is None:
            raise IntclipError(f"{self.card.model} is only in memory; export it, and load the exported file")
        return _call, (self.reload,)

    def predict(
        self,
        images: Images | None = None,
        *,
        texts: Texts | None = None,
        batch_size: int = 32,
        thresholds: Thresholds | None = None,
        errors: Literal["raise", "collect"] = "raise",
        workers: int | None = None,
    ) -> Predictions:
        """Predict photos or posts, in order.

        A photo alone and the same photo in a batch agree within 1e-5 (f32).

        Args:
            images: Paths, PIL images, uint8 arrays (H, W, 3), encoded bytes; folders and glob patterns are expanded.
                One photo gives a list of one.
            texts: Texts of the photos, one per photo, None or blank if there is none; for models whose `channels`
                include "text".
            batch_size: Photos per batch.
            thresholds: Replace the model's.
            errors: "raise" stops at the first unreadable photo; "collect" returns a `Prediction` with an `error` for
                it.
            workers: Decoding threads; default: the number of usable cores.

        Raises:
            ImageError: A photo cannot be read; the message names it.
            IntclipError: The model does not use text, the numbers of texts and photos differ, or there are none.
        """
        return Predictions(
            self.predict_iter(
                images, texts=texts, batch_size=batch_size, thresholds=thresholds, errors=errors, workers=workers
            )
        )

    def predict_iter(
        self,
        images: Images | None = None,
        *,
        texts: Texts | None = None,
        batch_size: int = 32,
        thresholds: Thresholds | None = None,
        errors: Literal["raise", "collect"] = "raise",
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """Like `predict`, but lazily for any iterable, in bounded memory."""
        if errors not in ("raise", "collect"):
            raise ValueError(f"errors must be 'raise' or 'collect', not {errors!r}")
        if texts is not None:
            self.check_words()
        self.resolve_thresholds(thresholds)  # reject invalid ones before reading anything
        for scored in self.score(pair_posts(images, texts), batch_size=batch_size, workers=workers):
            if scored.error is not None and errors == "raise":
                raise scored.error
            yield self.prediction(scored, thresholds)

    def score(
        self,
        posts: Iterable[Post],
        *,
        batch_size: int = 32,
        workers: int | None = None,
        maps: bool = False,
        embedding: bool = False,
        augment: PhotoChange | None = None,
    ) -> Iterator[Scored]:
        """Return the outputs of posts, in order, with the channels used; see `score_posts`.

        Args:
            posts: Photos, texts, or both.
            batch_size: Posts per batch.
            workers: Decoding threads.
            augment: Applied to every photo before preprocessing.
            maps: Include the evidence maps of photos, if the model has any.
            embedding: Include the image embeddings of photos without text; see `engine`.
        """
        return score_posts(
            posts,
            self.card.preprocessing,
            partial(self._compute, maps=maps and bool(self.maps), embedding=embedding),
            batch_size=batch_size,
            channels=self.channels,
            alone=self.alone,
            workers=workers,
            augment=augment,
        )

    def prediction(self, scored: Scored, thresholds: Thresholds | None = None) -> Prediction:
        """Convert the outputs of a post to a prediction.

        Args:
            scored: From `score` or `read_batch`.
            thresholds: Replace the model's.
        """
        levels = self.resolve_thresholds(thresholds, scored.channels)
        if scored.error is not None:
            unknown = np.full(len(self.taxonomy.names), np.nan, dtype=np.float32)
            return Prediction(unknown, levels, self.taxonomy, scored.source, str(scored.error))
        found = scored.outputs["probabilities"].astype(np.float32)
        return Prediction(found, levels, self.taxonomy, scored.source, conflict=self._conflict(scored.outputs))

    def read_batch(
        self, pixels: Pixels, rows: Sequence[int | None], texts: Sequence[str | None], sources: Sequence[str]
    ) -> list[Prediction]:
        """Predict posts with decoded photos, for servers.

        Args:
            pixels: (P, 3, S, S), normalised.
            rows: Row in `pixels` of each post's photo; None if it has none.
            texts: Text of each post; None if it has none.
            sources: Names of the posts.
        """
        words = [text if text and text.strip() and "text" in self.channels else None for text in texts]
        found = score_batch(pixels, rows, words, self._compute)
        posts = []
        for outputs, row, text, source in zip(found, rows, words, sources, strict=True):
            read = [name for name, there in (("image", row is not None), ("text", text is not None)) if there]
            posts.append(Scored(source, outputs, channels=cast("tuple[Channel, ...]", tuple(read))))
        return [self.prediction(post) for post in posts]

    def predict_pixels(self, pixels: Pixels) -> Pixels:
        """Return probabilities (B, K) of normalised pixels (B, 3, S, S): only the engine, for benchmarks."""
        return self.engine()(pixels)["probabilities"].astype(np.float32, copy=False)

    def word_scores(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Score texts for each label (T, K): log-odds, or cosines for a zero-shot model.

        Raises:
            IntclipError: The model does not use text, or only together with a photo.
        """
        self._word_unit()
        return self.method().word_scores(texts)

    def explain_words(self, text: str, label: str, *, how: str = "occlusion") -> "WordEvidence":
        """Return the evidence for a label in a text.

        Args:
            text: The post's text.
            label: Name or alias of a label.
            how: "occlusion" or "shapley"; see `intclip.evidence.words.word_evidence`.

        Raises:
            TaxonomyError: The label is unknown; the message suggests the closest ones.
            IntclipError: The model cannot use text alone, or the text is empty.
            MissingExtraError: "shapley" without captum.
        """
        from intclip.evidence.words import word_evidence

        index = self.taxonomy.index(label)
        return word_evidence(text, self.taxonomy.names[index], index, self.word_scores, self._word_unit(), how)

    def explain(
        self,
        image: ImageInput,
        label: str,
        *,
        kind: str = "regions",
    ) -> "Evidence":
        """Return the evidence for a label in a photo.

        Args:
            image: As for `predict`.
            label: Name or alias of a label.
            kind: "regions", the model's region logits, exact, one forward pass; "fine", the same averaged over the
                photo and enlarged parts, ten passes; or, computed in torch, "positive", "negative", "gradcam",
                "rollout". See `intclip.evidence.kinds`.

        Raises:
            ImageError: The photo cannot be read.
            TaxonomyError: The label is unknown; the message suggests the closest ones.
            IntclipError: The method or exported file does not have this kind of evidence.
            MissingExtraError: Grad-CAM without captum.
        """
        from intclip.inference.explaining import explain

        return explain(self, image, label, kind=kind)

    def export(
        self, path: str | os.PathLike[str], format: Literal["onnx", "openvino"] = "onnx", *, maps: bool = False
    ) -> Path:
        """Export the model to a file that runs without intclip and includes labels, preprocessing and thresholds.

        Args:
            path: `*.onnx`, or `*.xml` for OpenVINO (plus a .bin file for the weights).
            format: "onnx" or "openvino".
            maps: Include the evidence maps in the outputs.

        Raises:
            IntclipError: The suffix is wrong, the model exists only in the other format, or it has no maps.
            StorageError: The file cannot be written.
        """
        wanted = check_format(format)
        check_suffix(path, wanted)
        self.check_photos()
        if maps:
            self._check_maps()
        graph = self._graph
        if graph is None or graph.format != wanted:
            if self.card.arithmetic == "int8":
                raise IntclipError("an int8 model can only be exported as openvino")
            from intclip.inference.export import build_graph

            graph = build_graph(self.method(), self.card, wanted, maps=bool(self.maps))
        return replace(graph, card=self.card.photos_alone()).export(path, maps=maps)

    def quantize(self, photos: ImageInput | Iterable[ImageInput], *, limit: int = 300) -> "Predictor":
        """Quantise the model to int8 (OpenVINO), with ranges measured on the user's photos.

        Args:
            photos: As for `predict`; a few hundred typical ones.
            limit: Maximum number used.

        Raises:
            ImageError: A photo cannot be read, or there are none.
            MissingExtraError: OpenVINO or nncf is not installed.
        """
        from intclip.inference.quantization import quantize_graph

        self.check_photos()
        graph = self._graph
        if graph is None or graph.format != "openvino":
            from intclip.inference.export import build_graph

            graph = build_graph(self.method(), self.card, "openvino", maps=bool(self.maps))
        quantized = quantize_graph(replace(graph, card=self.card.photos_alone()), expand(photos), limit=limit)
        return Predictor(quantized.card, engine="openvino", graph=quantized, threads=self._threads)

    def method(self) -> "Method":
        """The torch method, for evaluation and what engines cannot do.

        It is built on first use and shared with torch engines.

        Raises:
            IntclipError: The model was loaded from an exported file, which has no torch method.
        """
        if self._build is None:
            raise IntclipError(f"{self.card.model} is an exported graph; load the original bundle or backbone for this")
        with self._lock:
            if self._method is None:
                prepare_forks()
                self._method = self._build().eval()
            return self._method

    @property
    def note(self) -> str | None:
        """One sentence that users of its answers should know; None if none."""
        if self.card.method != "zero_shot" or self.card.backbone not in LITE_BACKBONES:
            return None
        return untrained_note(self.card.backbone)

    def engine(self, *, maps: bool = False, embedding: bool = False) -> Engine:
        """Return the compiled model, created on first use.

        Args:
            maps: Include the evidence maps in the outputs.
            embedding: Include the backbone's image embedding (B, D), unit length.

        Raises:
            IntclipError: The model has no maps or embeddings.
        """
        self.check_photos()
        with self._lock:
            if (maps, embedding) not in self._engines:
                if maps:
                    self._check_maps()
                self._engines[maps, embedding] = self._make_engine(maps, embedding)
            return self._engines[maps, embedding]

    def resolve_thresholds(
        self, thresholds: Thresholds | None, channels: Sequence[Channel] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return thresholds (K,) from a caller's; see `Thresholds`.

        Args:
            thresholds: Replace the model's.
            channels: Channels of the post, for the model's own; default: all of the model's.

        Raises:
            IntclipError: Not one or K, or outside [0, 1].
            TaxonomyError: A label is unknown.
        """
        levels = self.card.threshold_array(channels)
        if thresholds is None:
            return levels
        if isinstance(thresholds, Mapping):
            for name, value in thresholds.items():
                levels[self.taxonomy.index(name)] = value
        else:
            given = np.asarray(thresholds, dtype=np.float32)
            if given.shape not in ((), levels.shape):
                raise IntclipError(f"give one threshold or {len(levels)}, one per label; got shape {given.shape}")
            levels[:] = given
        if not np.all((levels >= 0) & (levels <= 1)):
            raise IntclipError("thresholds are probabilities in [0, 1]")
        return levels

    def _compute(
        self, pixels: Pixels | None, texts: Sequence[str] | None, *, maps: bool = False, embedding: bool = False
    ) -> Arrays:
        """Compute the outputs of a batch. Photos alone need no torch, even for models with text."""
        if texts is None and pixels is not None:
            return self.engine(maps=maps, embedding=embedding)(pixels)
        with self._lock:
            if self._words is None:
                from intclip.inference.word_engine import WordEngine

                self._words = WordEngine(
                    self.method(),
                    exclusive=self.taxonomy.exclusive,
                    device=self._device,
                    precision=self._precision,
                    threads=self._threads,
                    lock=self.torch_lock,
                )
        outputs = self._words(pixels, texts or [])
        if maps and pixels is not None:
            photos = self.engine(maps=True)(pixels)
            outputs |= {name: values for name, values in photos.items() if name.startswith(MAP_PREFIX)}
        return outputs

    def _word_unit(self) -> "WordUnit":
        """Return the kind of `word_scores`."""
        unit = self.method().word_unit
        if unit is None:
            uses = "text only together with a photo" if "text" in self.channels else "only photos"
            hint = "lite, zero-shot:NAME and models of `intclip fit` explain text"
            raise IntclipError(f"{self.card.model} uses {uses}; {hint}")
        return unit

    def _conflict(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Conflict | None:
        """Return the conflict of a post whose channels were also scored separately."""
        parts = {name: outputs.get(CHANNEL_PREFIX + name) for name in self.channels}
        photo, words = parts.get("image"), parts.get("text")
        if photo is None or words is None:
            return None
        levels = [self.card.threshold_array([name]) for name in ("image", "text")]
        exclusive = self.taxonomy.exclusive
        return find_conflict(self.taxonomy.names, (photo, levels[0]), (words, levels[1]), exclusive=exclusive)

    def check_photos(self) -> None:
        """Check that the model uses photos.

        Raises:
            IntclipError: It uses only text.
        """
        if "image" not in self.channels:
            raise IntclipError(f"{self.card.model} uses only text; this needs a model that uses photos")

    def check_words(self) -> None:
        """Check that the model uses text.

        Raises:
            IntclipError: It does not.
        """
        if "text" in self.channels:
            return
        if self._build is None:
            raise IntclipError(f"{self.card.model} was exported and uses only photos; load its bundle to pass text")
        raise IntclipError(f"{self.card.model} uses only photos; train a model that uses text with `intclip fit`")

    def _make_engine(self, maps: bool, embedding: bool) -> Engine:
        outputs = ["probabilities", "logits"]
        if maps:
            outputs += [MAP_PREFIX + name for name in self.maps] + [ATTENTION_OUTPUT] * self.card.attention
        outputs += [EMBEDDING] * embedding
        if self._graph is not None:
            if embedding and EMBEDDING not in self._graph.outputs:
                raise IntclipError(f"{self.card.model} was exported without embeddings; load the original model")
            return self._graph.engine(tuple(outputs), precision=self._precision, threads=self._threads)
        from intclip.inference.graph import PhotoGraph

        return TorchEngine(
            PhotoGraph(self.method(), exclusive=self.taxonomy.exclusive, maps=maps, embedding=embedding),
            device=self._device,
            precision=self._precision,
            threads=self._threads,
            outputs=outputs,
            lock=self.torch_lock,
        )

    def _check_maps(self) -> None:
        if not self.maps:
            raise IntclipError(f"method {self.card.method} has no evidence maps; use one that has, such as lite")
        if self._graph is not None and not self._graph.has_maps:
            raise IntclipError(f"{self.card.model} was exported without evidence maps; export it again with maps")
