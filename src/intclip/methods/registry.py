"""Methods by name, one line each. See docs/add-a-method.md."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from intclip.backbones.base import Backbone
from intclip.errors import RecipeError, first_problem
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Method, Options

METHODS: dict[str, str] = {
    "prior": "intclip.methods.prior.model:Prior",
    "zero_shot": "intclip.methods.zero_shot.model:ZeroShot",
    "linear_probe": "intclip.methods.linear_probe.model:LinearProbe",
    "mlp_probe": "intclip.methods.mlp_probe.model:MLPProbe",
    "ridge_probe": "intclip.methods.ridge_probe.model:RidgeProbe",
    "coop": "intclip.methods.coop.model:CoOp",
    "cocoop": "intclip.methods.cocoop.model:CoCoOp",
    "tip_adapter": "intclip.methods.tip_adapter.model:TipAdapter",
    "dualcoop": "intclip.methods.dualcoop.model:DualCoOp",
    "positive_coop": "intclip.methods.positive_coop.model:PositiveCoOp",
    "vision_only": "intclip.methods.vision_only.model:VisionOnly",
    "dualcoop_pp": "intclip.methods.dualcoop_pp.model:DualCoOpPP",
    "sparc": "intclip.methods.sparc.model:Sparc",
    "fdil": "intclip.methods.fdil.model:Fdil",
    "intclip": "intclip.methods.intclip.model:IntCLIP",
    "intclip_words": "intclip.methods.intclip_words.model:IntclipWords",
    "mccl": "intclip.methods.mccl.model:MCCL",
    "query2label": "intclip.methods.query2label.model:Query2Label",
    "sst": "intclip.methods.sst.model:SST",
    "asl_resnet": "intclip.methods.asl_resnet.model:AslResnet",
    "intentonomy": "intclip.methods.intentonomy.model:Intentonomy",
    "pipnet": "intclip.methods.pipnet.model:PipNet",
    "cpad": "intclip.methods.cpad.model:CPAD",
    "hleg": "intclip.methods.hleg.model:HLEG",
    "labcr": "intclip.methods.labcr.model:LabCR",
    "ecwa": "intclip.methods.ecwa.model:Ecwa",
    "wseip": "intclip.methods.wseip.model:Wseip",
    "msrca": "intclip.methods.msrca.model:Msrca",
    "cglf_net": "intclip.methods.cglf_net.model:CglfNet",
    "fame_vil": "intclip.methods.fame_vil.model:FameVil",
    "multiguard": "intclip.methods.multiguard.model:MultiGuard",
    "post_heads": "intclip.methods.post_heads.model:PostHeads",
    "ensemble": "intclip.methods.ensemble.model:Ensemble",
}
"""Methods by name, as "module:Class"; the module is imported at first use."""


def method_class(name: str) -> type[Method]:
    """Return the class of a method; "-" and "_" are equivalent in its name.

    Raises:
        RecipeError: Unknown name.
    """
    key = name.replace("-", "_")
    if key not in METHODS:
        near = difflib.get_close_matches(key, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METHODS)}"
        raise RecipeError(f"unknown method {name!r}; {hint}")
    module, _, name_of_class = METHODS[key].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), name_of_class)
    return found


def name_of(method: Method) -> str:
    """Return the name of a built method.

    Raises:
        RecipeError: The method's class is not in the registry.
    """
    place = f"{type(method).__module__}:{type(method).__qualname__}"
    found = next((name for name, known in METHODS.items() if known == place), None)
    if found is None:
        raise RecipeError(f"{place} is not in the registry of methods; add it there")
    return found


def method_options(name: str) -> type[Options]:
    """Return the options class of a method.

    Raises:
        RecipeError: Unknown name.
    """
    return method_class(name).Options


def build_method(name: str, backbone: Backbone, taxonomy: Taxonomy, options: Mapping[str, Any] | Options) -> Method:
    """Build a method, untrained.

    Args:
        name: Key of `METHODS`; "-" and "_" are equivalent.
        backbone: The frozen backbone.
        taxonomy: The labels to predict.
        options: The method's options, or a mapping of them; missing options have their defaults.

    Raises:
        RecipeError: Unknown name or option, or a value out of range.
    """
    found = method_class(name)
    if not isinstance(options, found.Options):
        given = options.model_dump() if isinstance(options, Options) else dict(options)
        try:
            options = found.Options.model_validate(given)
        except ValidationError as error:
            raise RecipeError(_one_line(name, error, found.Options)) from error
    build: Callable[..., Method] = found
    return build(backbone, taxonomy, options)


def _one_line(name: str, error: ValidationError, options: type[Options]) -> str:
    first = error.errors()[0]
    where, message = first_problem(error)
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        near = difflib.get_close_matches(where, options.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(options.model_fields)}"
        return f"method {name} has no option {where!r}; {hint}"
    return f"option {where} of method {name}: {message} (got {first['input']!r})"
