"""A model ready for photos: predict, explain, export, quantise."""

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
from intclip.inference.engines import Arrays, Engine, EngineName, Precision, TorchEngine
from intclip.inference.exported import Graph, check_format, check_suffix
from intclip.inference.pipeline import Images, Pixels, Post, Scored, Texts, expand, pair_posts, score_batch, score_posts
from intclip.inference.prediction import Prediction, Predictions

if TYPE_CHECKING:
    from intclip.evidence.evidence import Evidence
    from intclip.evidence.words import WordEvidence
    from intclip.inference.word_engine import WordEngine
    from intclip.methods.base import Method, WordUnit

Thresholds = float | Mapping[str, float] | Sequence[float] | npt.NDArray[np.floating[Any]]
"""One for all labels, K of them, or some by name (the others keep the model's own)."""
PHOTOS: tuple[Channel, ...] = ("image",)
"""The channels of a photo without words."""


def untrained_note(backbone: str) -> str:
    """What a reader of zero-shot answers of a small backbone should know."""
    return f"{backbone} is a small model that was not trained on these labels; its answers are guesses."


class Predictor:
    """Intents of photos; made by `intclip.load`.

    It may be shared by threads; each batch is answered to the thread that asked.

    Args:
        card: Labels, preprocessing, thresholds.
        engine: Which library computes.
        graph: The converted model; None for torch.
        build: Makes the torch method; None for a model that was loaded from an exported file.
        precision: Arithmetic of the engine.
        device: For torch.
        threads: Threads the engine computes with; all cores by default.

    Attributes:
        card: See above.
        taxonomy: The K labels and their hierarchy.
        thresholds: (K,) float32, one a label, of posts with all channels that the model reads.
        torch_lock: Held while the torch network computes, by engines and by whoever computes with `method` itself.
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
    ) -> None:
        self.card = card
        self.taxonomy = card.read_taxonomy()
        self.thresholds = card.threshold_array()
        self.engine_name: EngineName = engine
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
        """Predictions of photos, in order.

        A photo alone and the same photo in a batch agree within 1e-5 (f32).

        Args:
            images: Paths, PIL images, uint8 arrays (H, W, 3), encoded bytes; folders and glob patterns stand for the
                photos in them. One photo gives a list of one.
            texts: The words beside the photos, one text each, None or blank where there are none; for a model whose
                `channels` have "text".
            batch_size: Photos that the engine takes at once.
            thresholds: In place of the model's own.
            errors: "raise" stops at the first photo that cannot be read; "collect" gives it a `Prediction` with an
                `error`.
            workers: Threads that decode; as many as there are usable cores by default.

        Raises:
            ImageError: A photo cannot be read; the message names it.
            IntclipError: There are texts and the model reads none, not as many texts as photos, or neither of both.
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
        """`predict` as a stream: any number of photos in bounded memory, from any iterable, read as it goes."""
        if errors not in ("raise", "collect"):
            raise ValueError(f"errors must be 'raise' or 'collect', not {errors!r}")
        if texts is not None:
            self.check_words()
        self.resolve_thresholds(thresholds)  # wrong ones are refused before anything is read
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
        augment: PhotoChange | None = None,
    ) -> Iterator[Scored]:
        """Outputs of posts, in order, each with what of it was read; see `score_posts`.

        Args:
            posts: Photos, words, or both.
            batch_size: Posts computed at once.
            workers: Threads that decode.
            augment: Changes every photo before preprocessing.
            maps: With the evidence maps of photos among the outputs, where the model has any.
        """
        return score_posts(
            posts,
            self.card.preprocessing,
            partial(self._compute, maps=maps and bool(self.card.maps)),
            batch_size=batch_size,
            channels=self.channels,
            alone=self.alone,
            workers=workers,
            augment=augment,
        )

    def prediction(self, scored: Scored, thresholds: Thresholds | None = None) -> Prediction:
        """What the outputs of a post say.

        Args:
            scored: From `score`, or computed by `read_batch`.
            thresholds: In place of the model's own.
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
        """Predictions of posts whose photos are decoded already, for servers.

        Args:
            pixels: (P, 3, S, S), normalised.
            rows: The row in `pixels` of each post's photo; None where a post has none.
            texts: The words of each post; None where a post has none.
            sources: What each post is called.
        """
        words = [text if text and text.strip() and "text" in self.channels else None for text in texts]
        found = score_batch(pixels, rows, words, self._compute)
        posts = []
        for outputs, row, text, source in zip(found, rows, words, sources, strict=True):
            read = [name for name, there in (("image", row is not None), ("text", text is not None)) if there]
            posts.append(Scored(source, outputs, channels=cast("tuple[Channel, ...]", tuple(read))))
        return [self.prediction(post) for post in posts]

    def predict_pixels(self, pixels: Pixels) -> Pixels:
        """Probabilities (B, K) of normalised pixels (B, 3, S, S): the engine alone, for batch jobs and benchmarks."""
        return self.engine()(pixels)["probabilities"].astype(np.float32, copy=False)

    def word_scores(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """How much texts alone speak for each label (T, K): log-odds, or cosines of a zero-shot model.

        Raises:
            IntclipError: The model reads no words, or reads them only beside a photo.
        """
        self._word_unit()
        return self.method().word_scores(texts)

    def explain_words(self, text: str, label: str, *, how: str = "occlusion") -> "WordEvidence":
        """Which words of a text carry a label.

        Args:
            text: The words of a post.
            label: Name or alias of a label.
            how: "occlusion" or "shapley"; see `intclip.evidence.words.word_evidence`.

        Raises:
            TaxonomyError: There is no such label; the nearest ones are named.
            IntclipError: The model reads no words by themselves, or the text has none.
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
        """Where in a photo a label's evidence lies.

        Args:
            image: As `predict` takes it.
            label: Name or alias of a label.
            kind: "regions", the model's own region logits, exact and one forward pass; "fine", the same of the photo
                and of its enlarged parts, ten passes; or an alternative, computed in torch: "positive", "negative",
                "gradcam", "rollout". See `intclip.evidence.kinds`.

        Raises:
            ImageError: The photo cannot be read.
            TaxonomyError: There is no such label; the nearest ones are named.
            IntclipError: The method, or the exported file, has no such evidence.
            MissingExtraError: Grad-CAM without captum.
        """
        from intclip.inference.explaining import explain

        return explain(self, image, label, kind=kind)

    def export(
        self, path: str | os.PathLike[str], format: Literal["onnx", "openvino"] = "onnx", *, maps: bool = False
    ) -> Path:
        """Write the model as a file that runs without intclip, with labels, preprocessing and thresholds inside.

        Args:
            path: `*.onnx`, or `*.xml` for OpenVINO (its weights go into the .bin beside it).
            format: "onnx" or "openvino".
            maps: Keep the evidence maps among the outputs.

        Raises:
            IntclipError: Wrong suffix, the model is only there in the other format, or it has no maps to keep.
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
                raise IntclipError("an int8 model exports in the format it was quantised in: openvino")
            from intclip.inference.export import build_graph

            graph = build_graph(self.method(), self.card, wanted, maps=bool(self.card.maps))
        return replace(graph, card=self.card.photos_alone()).export(path, maps=maps)

    def quantize(self, photos: ImageInput | Iterable[ImageInput], *, limit: int = 300) -> "Predictor":
        """The same model in int8 (OpenVINO), its ranges measured on some of the user's photos.

        Args:
            photos: As for `predict`; some hundred typical ones.
            limit: How many of them are used.

        Raises:
            ImageError: A photo cannot be read, or there are none.
            MissingExtraError: OpenVINO or nncf is not installed.
        """
        from intclip.inference.quantization import quantize_graph

        self.check_photos()
        graph = self._graph
        if graph is None or graph.format != "openvino":
            from intclip.inference.export import build_graph

            graph = build_graph(self.method(), self.card, "openvino", maps=bool(self.card.maps))
        quantized = quantize_graph(replace(graph, card=self.card.photos_alone()), expand(photos), limit=limit)
        return Predictor(quantized.card, engine="openvino", graph=quantized, threads=self._threads)

    def method(self) -> "Method":
        """The torch method behind the model: for evaluation, and what engines cannot do.

        It is built at first use and kept: the engines of torch compute with the same one, on their device.

        Raises:
            IntclipError: The model was loaded from an exported file, which holds no torch method.
        """
        if self._build is None:
            raise IntclipError(
                f"{self.card.model} is an exported graph; load the bundle or backbone it came from for this"
            )
        with self._lock:
            if self._method is None:
                self._method = self._build().eval()
            return self._method

    @property
    def note(self) -> str | None:
        """What a reader of its answers should know, in one sentence; None where there is nothing to say."""
        if self.card.method != "zero_shot" or self.card.backbone not in LITE_BACKBONES:
            return None
        return untrained_note(self.card.backbone)

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps of evidence that `explain` tells: "sight", "semantic", "fused", or none."""
        return tuple(self.card.maps)

    @property
    def fine(self) -> bool:
        """Whether `explain` tells finer maps too, of kind "fine"."""
        return bool(self.card.maps)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What the model reads of a post: photos ("image"), words ("text"), or both."""
        return tuple(self.card.channels)

    @property
    def alone(self) -> tuple[Channel, ...]:
        """Which of its channels suffice without the other."""
        return tuple(self.card.alone)

    def engine(self, *, maps: bool = False, embedding: bool = False) -> Engine:
        """The compiled model, made at first use.

        Args:
            maps: With the evidence maps among its outputs.
            embedding: With the backbone's image embedding (B, D), at unit length, among its outputs.

        Raises:
            IntclipError: Maps or embeddings are asked for and there are none.
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
        """Thresholds (K,) from what a caller gives; see `Thresholds`.

        Args:
            thresholds: In place of the model's own.
            channels: What a post has, for the model's own; all that the model reads by default.

        Raises:
            IntclipError: Not one or K of them, or outside [0, 1].
            TaxonomyError: A name is no label.
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
                raise IntclipError(f"give one threshold or {len(levels)}, one a label; got shape {given.shape}")
            levels[:] = given
        if not np.all((levels >= 0) & (levels <= 1)):
            raise IntclipError("thresholds are probabilities: they lie in [0, 1]")
        return levels

    def _compute(self, pixels: Pixels | None, texts: Sequence[str] | None, *, maps: bool = False) -> Arrays:
        """Outputs of a batch. Photos alone need no torch, even of a model that reads words."""
        if texts is None and pixels is not None:
            return self.engine(maps=maps)(pixels)
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
        """What `word_scores` are."""
        unit = self.method().word_unit
        if unit is None:
            reads = "words only beside a photo" if "text" in self.channels else "photos alone"
            hint = "lite, zero-shot:NAME and models of `intclip fit` explain words"
            raise IntclipError(f"{self.card.model} reads {reads}; {hint}")
        return unit

    def _conflict(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Conflict | None:
        """Of a post whose photo and words were read each by itself, too."""
        parts = {name: outputs.get(CHANNEL_PREFIX + name) for name in self.channels}
        photo, words = parts.get("image"), parts.get("text")
        if photo is None or words is None:
            return None
        levels = [self.card.threshold_array([name]) for name in ("image", "text")]
        exclusive = self.taxonomy.exclusive
        return find_conflict(self.taxonomy.names, (photo, levels[0]), (words, levels[1]), exclusive=exclusive)

    def check_photos(self) -> None:
        """Hold that the model reads photos.

        Raises:
            IntclipError: It reads words alone.
        """
        if "image" not in self.channels:
            raise IntclipError(f"{self.card.model} reads words alone; this takes a model that reads photos")

    def check_words(self) -> None:
        """Hold that the model reads words.

        Raises:
            IntclipError: It does not.
        """
        if "text" in self.channels:
            return
        if self._build is None:
            raise IntclipError(f"{self.card.model} was exported and reads photos alone; load its bundle to give words")
        raise IntclipError(f"{self.card.model} reads photos alone; `intclip fit` makes models that read words")

    def _make_engine(self, maps: bool, embedding: bool) -> Engine:
        outputs = ["probabilities", "logits"]
        if maps:
            outputs += [MAP_PREFIX + name for name in self.card.maps] + [ATTENTION_OUTPUT] * self.card.attention
        outputs += [EMBEDDING] * embedding
        if self._graph is not None:
            if embedding and EMBEDDING not in self._graph.outputs:
                raise IntclipError(f"{self.card.model} was exported without embeddings; load the model it came from")
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
        if not self.card.maps:
            raise IntclipError(f"method {self.card.method} has no evidence maps; take one with regions, such as lite")
        if self._graph is not None and not self._graph.has_maps:
            raise IntclipError(f"{self.card.model} was exported without evidence maps; export it again with maps")
