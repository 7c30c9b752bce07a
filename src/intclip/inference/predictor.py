"""A model ready for photos: predict, explain, export, quantise."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.data.images import ImageInput
from intclip.errors import IntclipError
from intclip.inference.card import ATTENTION_OUTPUT, EMBEDDING, MAP_PREFIX, ModelCard
from intclip.inference.engines import Arrays, Engine, EngineName, Precision, TorchEngine, compile_module
from intclip.inference.exported import Graph, check_format, check_suffix
from intclip.inference.pipeline import Images, Texts, expand, pair_posts, score_posts
from intclip.inference.prediction import Prediction, Predictions
from intclip.inference.word_reading import WordReading

if TYPE_CHECKING:
    from intclip.evidence.evidence import Evidence
    from intclip.inference.word_engine import WordEngine
    from intclip.methods.base import Method

Thresholds = float | Mapping[str, float] | Sequence[float] | npt.NDArray[np.floating[Any]]
"""One for all labels, K of them, or some by name (the others keep the model's own)."""


class Predictor(WordReading):
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
        thresholds: (K,) float32, one a label.
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
        self._torch: Method | None = None
        self._words: WordEngine | None = None
        self._lock = threading.Lock()

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
            self._check_words()
        posts = pair_posts(images, texts)
        levels = self.resolve_thresholds(thresholds)
        unknown = np.full(len(self.taxonomy.names), np.nan, dtype=np.float32)
        photos = score_posts(posts, self.card.preprocessing, self._compute, batch_size=batch_size, workers=workers)
        for photo in photos:
            if photo.error is not None:
                if errors == "raise":
                    raise photo.error
                yield Prediction(unknown.copy(), levels, self.taxonomy, photo.source, str(photo.error))
            else:
                yield Prediction(photo.outputs["probabilities"].copy(), levels, self.taxonomy, photo.source)

    def predict_pixels(
        self, pixels: npt.NDArray[np.float32], texts: Sequence[str | None] = ()
    ) -> npt.NDArray[np.float32]:
        """Probabilities (B, K) of normalised pixels (B, 3, S, S): the engine alone, for servers and batch jobs.

        Args:
            pixels: Of B photos.
            texts: B of them, for a model that reads words; none at all where no photo has words.
        """
        return self._compute(pixels, texts)["probabilities"].astype(np.float32, copy=False)

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
        if maps:
            self._check_maps()
        graph = self._graph
        if graph is None or graph.format != wanted or (wanted == "onnx" and graph.has_maps != maps):
            if self.card.arithmetic == "int8":
                raise IntclipError("an int8 model exports in the format it was quantised in: openvino")
            from intclip.inference.export import build_graph

            graph = build_graph(self.method(), self.card, wanted, maps=maps)
        return graph.save(path, maps=maps)

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

        graph = self._graph
        if graph is None or graph.format != "openvino":
            from intclip.inference.export import build_graph

            graph = build_graph(self.method(), self.card, "openvino", maps=bool(self.card.maps))
        quantized = quantize_graph(graph, expand(photos), limit=limit)
        return Predictor(quantized.card, engine="openvino", graph=quantized, threads=self._threads)

    def method(self) -> "Method":
        """The torch method behind the model, built anew: for evaluation, and what engines cannot do.

        Raises:
            IntclipError: The model was loaded from an exported file, which holds no torch method.
        """
        if self._build is None:
            raise IntclipError(
                f"{self.card.model} is an exported graph; load the bundle or backbone it came from for this"
            )
        return self._build()

    @property
    def note(self) -> str | None:
        """What a reader of its answers should know, in one sentence; None where there is nothing to say."""
        if self.card.method != "zero_shot" or self.card.backbone not in LITE_BACKBONES:
            return None
        return f"{self.card.backbone} is a small model that was not trained on these labels; its answers are guesses."

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps of evidence that `explain` tells: "sight", "semantic", "fused", or none."""
        return tuple(self.card.maps)

    @property
    def fine(self) -> bool:
        """Whether `explain` tells finer maps too, of kind "fine"."""
        return bool(self.card.maps)

    @property
    def channels(self) -> tuple[str, ...]:
        """See `WordReading`. Words beside photos take the torch method, which an exported file has not."""
        return ("image", "text") if self.card.words and self._build is not None else ("image",)

    def torch_method(self) -> "Method":
        """The torch method behind the model on the CPU, built at first use and kept; raises as `method`."""
        with self._lock:
            if self._torch is None:
                self._torch = self.method().eval()
            return self._torch

    def engine(self, *, maps: bool = False, embedding: bool = False) -> Engine:
        """The compiled model, made at first use.

        Args:
            maps: With the evidence maps among its outputs.
            embedding: With the backbone's image embedding (B, D), at unit length, among its outputs.

        Raises:
            IntclipError: Maps or embeddings are asked for and there are none.
        """
        with self._lock:
            if (maps, embedding) not in self._engines:
                if maps:
                    self._check_maps()
                self._engines[maps, embedding] = self._make_engine(maps, embedding)
            return self._engines[maps, embedding]

    def resolve_thresholds(self, thresholds: Thresholds | None) -> npt.NDArray[np.float32]:
        """Thresholds (K,) from what a caller gives; see `Thresholds`.

        Raises:
            IntclipError: Not one or K of them, or outside [0, 1].
            TaxonomyError: A name is no label.
        """
        levels = self.thresholds.copy()
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

    def _compute(self, pixels: npt.NDArray[np.float32], texts: Sequence[str | None]) -> Arrays:
        """Outputs of a batch. Photos alone need no torch, even of a model that reads words."""
        if not any(text and text.strip() for text in texts):
            return self.engine()(pixels)
        with self._lock:
            if self._words is None:
                from intclip.inference.word_engine import WordEngine

                self._words = WordEngine(
                    self.method(),
                    exclusive=self.taxonomy.exclusive,
                    device=self._device,
                    precision=self._precision,
                    threads=self._threads,
                )
        return self._words(pixels, texts)

    def _check_words(self) -> None:
        if "text" in self.channels:
            return
        if self.card.words:
            raise IntclipError(f"{self.card.model} was exported and reads photos alone; load its bundle to give words")
        raise IntclipError(f"{self.card.model} reads photos alone; `intclip fit` makes a model that reads words too")

    def _make_engine(self, maps: bool, embedding: bool) -> Engine:
        outputs = ["probabilities", "logits"]
        if maps:
            outputs += [MAP_PREFIX + name for name in self.card.maps] + [ATTENTION_OUTPUT] * self.card.attention
        if self._graph is not None and not embedding:
            return self._graph.engine(tuple(outputs), precision=self._precision, threads=self._threads)
        from intclip.inference.graph import PhotoGraph, example_pixels

        method = self.method()
        module = PhotoGraph(method, exclusive=self.taxonomy.exclusive, maps=maps, embedding=embedding)
        if self._graph is None:
            outputs += [EMBEDDING] if embedding else []
            return TorchEngine(
                module, device=self._device, precision=self._precision, threads=self._threads, outputs=outputs
            )
        # Graphs on disk hold no embedding; few programs want one, so it is converted where one does.
        return compile_module(
            module,
            example_pixels(method.backbone),
            engine=self._graph.format,
            precision=self._precision,
            threads=self._threads,
        )

    def _check_maps(self) -> None:
        if not self.card.maps:
            raise IntclipError(f"method {self.card.method} has no evidence maps; take one with regions, such as lite")
        if self._graph is not None and not self._graph.has_maps:
            raise IntclipError(f"{self.card.model} was exported without evidence maps; export it again with maps")
