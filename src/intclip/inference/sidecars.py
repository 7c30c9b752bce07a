"""Predicted labels as keywords in XMP sidecars (photo.jpg.xmp), for other photo programs.

Labels become `dc:subject`, and with their parents `lr:hierarchicalSubject` ("Social|Friends").
Existing content of a sidecar is kept, and keywords are added to existing ones. Keywords added by intclip are recorded
in a separate property, so that a later run can remove only those that are no longer predicted.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intclip.errors import StorageError, reason
from intclip.extras import require
from intclip.files import atomic_path
from intclip.inference.prediction import Prediction

MAX_BYTES = 16 * 2**20
"""Largest sidecar read."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NAMES = {
    "x": "adobe:ns:meta/",
    "rdf": _RDF,
    "dc": "http://purl.org/dc/elements/1.1/",
    "lr": "http://ns.adobe.com/lightroom/1.0/",
    "intclip": "urn:intclip:xmp/1.0/",
}
_SUBJECT = f"{{{_NAMES['dc']}}}subject"
_TREE = f"{{{_NAMES['lr']}}}hierarchicalSubject"
_ADDED = f"{{{_NAMES['intclip']}}}added"
_LI, _DESCRIPTION, _ROOT = f"{{{_RDF}}}li", f"{{{_RDF}}}Description", f"{{{_RDF}}}RDF"
_CONTAINERS = {f"{{{_RDF}}}{kind}" for kind in ("Bag", "Seq", "Alt")}
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""Characters not allowed in XML."""
_EMPTY = (
    f'<x:xmpmeta xmlns:x="{_NAMES["x"]}"><rdf:RDF xmlns:rdf="{_RDF}">'
    '<rdf:Description rdf:about=""/></rdf:RDF></x:xmpmeta>'
)


def write_sidecar(photo: Path, prediction: Prediction) -> Path | None:
    """Write the predicted labels into a photo's sidecar.

    Args:
        photo: A file.
        prediction: Its prediction.

    Returns: The sidecar; None if nothing changed.

    Raises:
        StorageError: The photo is not a file, or its sidecar cannot be read or written; it is not changed.
    """
    if not photo.is_file():
        raise StorageError(f"{photo} is not a file and cannot have a sidecar; remove --xmp")
    path = photo.with_name(photo.name + ".xmp")
    content = _read(path)
    labels = [_clean(label) for label in prediction.labels]
    paths = [_tree_path(label, prediction.taxonomy.parents) for label in prediction.labels]
    merged = merge_keywords(content, str(path), labels, paths)
    if merged is None:
        return None
    with atomic_path(path) as partial:
        partial.write_bytes(merged)
    return path


def merge_keywords(content: bytes | None, name: str, labels: Sequence[str], paths: Sequence[str]) -> bytes | None:
    """Replace the keywords added by an earlier call in a sidecar's content.

    Args:
        content: Content of the sidecar; None if there is none.
        name: Name of the sidecar, for messages.
        labels: For `dc:subject`.
        paths: For `lr:hierarchicalSubject`, from the root to the label, joined by "|".

    Returns:
        The new content; None if unchanged.

    Raises:
        StorageError: The content is not an XMP sidecar, or not well-formed XML.
    """
    etree = require("lxml.etree", "xmp")
    tree = _parse(etree, _EMPTY.encode() if content is None else content, name)
    root = next(tree.getroot().iter(_ROOT), None)
    if root is None:
        raise StorageError(f"{name} is not an XMP sidecar: it has no rdf:RDF; move it away, or remove --xmp")
    before = {(kind, word) for kind in (_SUBJECT, _TREE) for word in _words(root, kind)}
    ours = {_split(word) for word in _words(root, _ADDED)}
    wanted = [(_SUBJECT, label) for label in labels] + [(_TREE, path) for path in paths if "|" in path]
    added = [pair for pair in wanted if pair not in before or pair in ours]
    if set(wanted) <= before and ours == set(added):
        return None
    for kind in (_SUBJECT, _TREE):
        gone = {word for other, word in ours if other == kind} - {word for other, word in wanted if other == kind}
        _set_words(etree, root, kind, gone, [word for other, word in wanted if other == kind])
    marks = [_join(pair) for pair in added]
    _set_words(etree, root, _ADDED, set(_words(root, _ADDED)) - set(marks), marks)
    if content is None:
        etree.indent(tree)
    declared = content is None or content.lstrip(b"\xef\xbb\xbf\xff\xfe\0").startswith(b"<?xml")
    result: bytes = etree.tostring(tree, encoding="UTF-8", xml_declaration=declared)
    return result


def _read(path: Path) -> bytes | None:
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_BYTES:
            raise StorageError(f"{path} is larger than {MAX_BYTES >> 20} MiB and cannot be a sidecar; move it away")
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {reason(error)}; check its permissions") from error


def _parse(etree: Any, content: bytes, name: str) -> Any:
    """Parse an untrusted document without entities, network or external files."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_blank_text=False
    )
    try:
        tree = etree.ElementTree(etree.fromstring(content, parser))
    except (etree.XMLSyntaxError, ValueError, LookupError) as error:
        raise StorageError(f"{name} is not well-formed XML ({reason(error)}); repair it or move it away") from error
    if tree.docinfo.doctype or tree.docinfo.internalDTD is not None:
        raise StorageError(f"{name} has a document type declaration, which sidecars do not have; move it away")
    return tree


def _properties(root: Any, kind: str) -> list[Any]:
    return [child for description in root.iterchildren(_DESCRIPTION) for child in description.iterchildren(kind)]


def _words(root: Any, kind: str) -> list[str]:
    """Return the values of a property in all descriptions, in any kind of list."""
    items = [item for found in _properties(root, kind) for item in found.iter(_LI)]
    simple = [found for found in _properties(root, kind) if not len(found)]
    as_attributes = [description.get(kind) for description in root.iterchildren(_DESCRIPTION)]
    words = (*(item.text for item in (*items, *simple)), *as_attributes)
    return [word for word in words if word and word.strip()]


def _set_words(etree: Any, root: Any, kind: str, gone: Iterable[str], wanted: Sequence[str]) -> None:
    """Remove and add values of a property, in its list or a new one."""
    for found in _properties(root, kind):
        for item in list(found.iter(_LI)):
            if item.text in gone:
                item.getparent().remove(item)
    known = set(_words(root, kind))
    missing = [word for word in dict.fromkeys(wanted) if word not in known]
    bag = next((part for found in _properties(root, kind) for part in found if part.tag in _CONTAINERS), None)
    if bag is None and missing:
        bag = _new_bag(etree, root, kind)
    for word in missing:
        etree.SubElement(bag, _LI).text = word
    for found in _properties(root, kind):
        if gone and not _words(root, kind):
            found.getparent().remove(found)


def _new_bag(etree: Any, root: Any, kind: str) -> Any:
    """Create a list for a property; a single existing value becomes its first element."""
    description = next(root.iterchildren(_DESCRIPTION), None)
    if description is None:
        description = etree.SubElement(root, _DESCRIPTION, {f"{{{_RDF}}}about": ""})
    names = {prefix: name for prefix, name in _NAMES.items() if kind.startswith(f"{{{name}}}")}
    single = next(iter(_properties(root, kind)), None)
    found = etree.SubElement(description, kind, nsmap=names) if single is None else single
    words = [found.text] if found.text and found.text.strip() and not len(found) else []
    if words:
        found.text = None
    for other in root.iterchildren(_DESCRIPTION):
        if (word := other.attrib.pop(kind, None)) is not None:
            words.append(word)
    bag = etree.SubElement(found, f"{{{_RDF}}}Bag")
    for word in words:
        etree.SubElement(bag, _LI).text = word
    return bag


def _tree_path(label: str, parents: Mapping[str, Sequence[str]]) -> str:
    """Return a label's path from the root, for programs that show a keyword tree."""
    return "|".join(_clean(name).replace("|", "/") for name in (*reversed(parents.get(label, ())), label))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub(" ", text)


def _join(pair: tuple[str, str]) -> str:
    return f"{'subject' if pair[0] == _SUBJECT else 'hierarchicalSubject'}:{pair[1]}"


def _split(mark: str) -> tuple[str, str]:
    kind, _, word = mark.partition(":")
    return (_SUBJECT if kind == "subject" else _TREE), word
