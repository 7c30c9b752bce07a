"""Methods by name: one line each. See docs/add-a-method.md."""

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from intclip.backbones.base import Backbone
from intclip.errors import RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Method, Options

METHODS: dict[str, str] = {
    "prior": "intclip.methods.prior",
    "zero_shot": "intclip.methods.zero_shot",
    "linear_probe": "intclip.methods.linear_probe",
    "mlp_probe": "intclip.methods.mlp_probe",
    "ridge_probe": "intclip.methods.ridge_probe",
    "coop": "intclip.methods.coop",
    "cocoop": "intclip.methods.cocoop",
    "tip_adapter": "intclip.methods.tip_adapter",
    "dualcoop": "intclip.methods.dualcoop",
    "intclip": "intclip.methods.intclip",
    "intclip_words": "intclip.methods.intclip_words",
    "mccl": "intclip.methods.mccl",
    "query2label": "intclip.methods.query2label",
    "sst": "intclip.methods.sst",
    "asl_resnet": "intclip.methods.asl_resnet",
    "intentonomy": "intclip.methods.intentonomy",
    "pipnet": "intclip.methods.pipnet",
    "cpad": "intclip.methods.cpad",
    "hleg": "intclip.methods.hleg",
    "labcr": "intclip.methods.labcr",
    "multiguard": "intclip.methods.multiguard",
    "ensemble": "intclip.methods.ensemble",
}
"""Method name to its module, which exports `OPTIONS` (a subclass of `Options`) and `build`."""


def method_options(name: str) -> type[Options]:
    """The options class of a method.

    Raises:
        RecipeError: Unknown name.
    """
    options: type[Options] = _module(name).OPTIONS
    return options


def build_method(name: str, backbone: Backbone, taxonomy: Taxonomy, options: Mapping[str, Any] | Options) -> Method:
    """Build a method, untrained.

    Args:
        name: Key of `METHODS`; "-" and "_" are the same.
        backbone: The frozen backbone it reads.
        taxonomy: The labels it tells.
        options: The method's options, or a mapping of them; what is left out takes its default.

    Raises:
        RecipeError: Unknown name or option, or a value out of range.
    """
    module = _module(name)
    if not isinstance(options, module.OPTIONS):
        given = options.model_dump() if isinstance(options, Options) else dict(options)
        try:
            options = module.OPTIONS.model_validate(given)
        except ValidationError as error:
            raise RecipeError(_one_line(name, error, module.OPTIONS)) from error
    method: Method = module.build(backbone, taxonomy, options)
    return method


def _module(name: str) -> ModuleType:
    key = name.replace("-", "_")
    if key not in METHODS:
        near = difflib.get_close_matches(key, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METHODS)}"
        raise RecipeError(f"unknown method {name!r}; {hint}")
    return importlib.import_module(METHODS[key])


def _one_line(name: str, error: ValidationError, options: type[Options]) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        near = difflib.get_close_matches(where, options.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(options.model_fields)}"
        return f"method {name} has no option {where!r}; {hint}"
    return f"option {where} of method {name}: {first['msg'].lower()} (got {first['input']!r})"
